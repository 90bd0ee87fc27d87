"""Detectron2's DefaultPredictor with weights that are read safely."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor

from rdsnet.checkpoint import Checkpointer
from rdsnet.checkpoint.changes import check_other_use


class Predictor(DefaultPredictor):
    """From a BGR image (H, W, 3) uint8 to ``{"instances": Instances}``, as in Detectron2.

    Args:
        cfg: with ``MODEL.WEIGHTS``.
        trust_checkpoint: see :func:`rdsnet.checkpoint.read_checkpoint`; Detectron2's own predictor
            runs the code in a .pkl without asking.

    Raises:
        ValueError: the weights do not fit, or have learnt the classes in another order.
    """

    def __init__(self, cfg: CfgNode, trust_checkpoint: bool = False) -> None:
        without_weights = cfg.clone()
        without_weights.defrost()
        without_weights.MODEL.WEIGHTS = ""
        super().__init__(without_weights)
        check_other_use(cfg, cfg.MODEL.WEIGHTS)
        Checkpointer(self.model, trust=trust_checkpoint).load(cfg.MODEL.WEIGHTS)
