"""A file of ``rdsnet export`` with the interface of a predictor."""

from __future__ import annotations

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms
from detectron2.engine import DefaultPredictor

from rdsnet.export.runtime import ExportedModel


class ExportedPredictor(DefaultPredictor):
    """As :class:`~rdsnet.prediction.predictor.CountingPredictor`, for an ONNX file.

    Args:
        cfg: as of :class:`~rdsnet.export.runtime.ExportedModel`.

    Attributes:
        max_detections: ``TEST.DETECTIONS_PER_IMAGE``.
        was_cut_off: whether the last image had more. One with as many as the file gives counts too:
            what it left out is not known.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Not the parent's, which would build the model in PyTorch.
        self.cfg, self.model = cfg.clone(), ExportedModel(cfg)
        sides = [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST]
        self.aug = transforms.ResizeShortestEdge(sides, cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT
        self.max_detections, self.was_cut_off = cfg.TEST.DETECTIONS_PER_IMAGE, False
        self.model.max_detections += 1  # one more than is returned

    def __call__(self, original_image: np.ndarray) -> dict:
        found = super().__call__(original_image)["instances"]
        self.was_cut_off = len(found) > self.max_detections or self.model.reached_most
        return {"instances": found[: self.max_detections]}
