"""A file of ``rdsnet export`` with the interface of a predictor."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import transforms

from rdsnet.checkpoint.exported import is_exported
from rdsnet.data.channels import Channels
from rdsnet.export.runtime import ExportedModel
from rdsnet.prediction.predictor import CountingPredictor


class ExportedPredictor(CountingPredictor):
    """As its parent, for an ONNX or OpenVINO file.

    An image with as many objects as the file gives counts as cut off too: what was left out is not
    known.

    Args:
        cfg: as of :class:`~rdsnet.export.runtime.ExportedModel`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Not the parent's, which would build the model in PyTorch.
        self.cfg, self.model = cfg.clone(), ExportedModel(cfg)
        sides = [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST]
        self.aug = transforms.ResizeShortestEdge(sides, cfg.INPUT.MAX_SIZE_TEST)
        self.input_format, self.channels = cfg.INPUT.FORMAT, Channels.of(cfg)
        self.max_detections, self.were_cut_off = cfg.TEST.DETECTIONS_PER_IMAGE, [False]
        self.model.max_detections += 1  # one more than is returned

    def find(self, prepared: Sequence[dict]) -> list[dict]:
        results, cut_off = [], []
        for one in prepared:
            results += super().find([one])
            cut_off.append(self.was_cut_off or self.model.reached_most)
        self.were_cut_off = cut_off
        return results


def build_predictor(cfg: CfgNode, trust_checkpoint: bool = False) -> CountingPredictor:
    """What runs the ``MODEL.WEIGHTS`` of a config: a checkpoint, or an exported file."""
    if is_exported(cfg.MODEL.WEIGHTS):
        return ExportedPredictor(cfg)
    return CountingPredictor(cfg, trust_checkpoint)
