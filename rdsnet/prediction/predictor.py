"""Detectron2's DefaultPredictor with weights that are read safely."""

from __future__ import annotations

import numpy as np
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor

from rdsnet.checkpoint import Checkpointer
from rdsnet.checkpoint.changes import check_other_use
from rdsnet.checkpoint.exported import is_exported
from rdsnet.checkpoint.shipped import weights_file
from rdsnet.prediction.exported import ExportedPredictor


class Predictor(DefaultPredictor):
    """From a BGR image (H, W, 3) uint8 to ``{"instances": Instances}``, as in Detectron2.

    Args:
        cfg: with ``MODEL.WEIGHTS``, a path, an address or the name of a model in the box.
        trust_checkpoint: see :func:`rdsnet.checkpoint.read_checkpoint`; Detectron2's own predictor
            runs the code in a .pkl without asking.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: the weights do not fit, or have learnt the classes in another order.
    """

    def __init__(self, cfg: CfgNode, trust_checkpoint: bool = False) -> None:
        weights = weights_file(cfg.MODEL.WEIGHTS)
        without_weights = cfg.clone()
        without_weights.defrost()
        without_weights.MODEL.WEIGHTS = ""
        super().__init__(without_weights)
        check_other_use(cfg, weights)
        Checkpointer(self.model, trust=trust_checkpoint).load(weights)


class CountingPredictor(Predictor):
    """A :class:`Predictor` that knows when ``TEST.DETECTIONS_PER_IMAGE`` has cut objects off.

    It looks for one object more than it returns.

    Attributes:
        max_detections: ``TEST.DETECTIONS_PER_IMAGE``.
        was_cut_off: whether the last image had more.
    """

    def __init__(self, cfg: CfgNode, trust_checkpoint: bool = False) -> None:
        self.max_detections, self.was_cut_off = cfg.TEST.DETECTIONS_PER_IMAGE, False
        one_more = cfg.clone()
        one_more.defrost()
        one_more.TEST.DETECTIONS_PER_IMAGE += 1
        super().__init__(one_more, trust_checkpoint)

    def __call__(self, original_image: np.ndarray) -> dict:
        found = super().__call__(original_image)["instances"]  # best first
        self.was_cut_off = len(found) > self.max_detections
        return {"instances": found[: self.max_detections]}


def build_predictor(
    cfg: CfgNode, trust_checkpoint: bool = False
) -> CountingPredictor | ExportedPredictor:
    """What runs the ``MODEL.WEIGHTS`` of a config: a checkpoint, or an exported file."""
    if is_exported(cfg.MODEL.WEIGHTS):
        return ExportedPredictor(cfg)
    return CountingPredictor(cfg, trust_checkpoint)
