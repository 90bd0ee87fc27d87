"""An exported file in the place of its model, for prediction and evaluation."""

from __future__ import annotations

import json

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import nn

from rdsnet.checkpoint.changes import IMAGES, is_among
from rdsnet.checkpoint.description import read_config
from rdsnet.checkpoint.exported import read_texts
from rdsnet.config import flat, get_cfg
from rdsnet.export.decoding import decoded
from rdsnet.export.graph import CompactObjects, Objects
from rdsnet.export.sessions import exported_function
from rdsnet.modeling.rdsnet import requested_size

# What may be said anew when a file is used. All else of the model is written into it.
# (A precision may be no other than the file's; it has a message of its own.)
_OPEN = (
    *("MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.RDSNET.DENSE_MASKS"),
    "MODEL.RDSNET.INFERENCE.PRECISION",
    *("MODEL.RETINANET.SCORE_THRESH_TEST", "MODEL.RETINANET.TOPK_CANDIDATES_TEST"),
)


class ExportedModel(nn.Module):
    """Called as :class:`~rdsnet.modeling.RDSNet` is at inference, with the same results.

    Args:
        cfg: the config in the file (:func:`~rdsnet.checkpoint.description.read_config`), with what
            is to be different; ``MODEL.WEIGHTS``: the file.

    Attributes:
        most: objects of an image that the file gives.
        reached_most: whether the last image had as many, so that there may be more.

    Raises:
        ValueError: the config asks for what is not in the file.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        path = cfg.MODEL.WEIGHTS
        stored, texts = read_config(path), read_texts(path)
        _check_settings(cfg, stored, path, texts.get("precision", "float32"))
        self.path = path
        takes = json.loads(texts["input"])
        self.size, self.dtype = takes["shape"][1:], getattr(torch, takes["dtype"])
        self.run = exported_function(path, cfg.MODEL.DEVICE)
        self.mask_threshold = stored.MODEL.RDSNET.MASK_THRESHOLD
        # The file's own is applied inside, where scores are not yet multiplied by those of masks.
        threshold = cfg.MODEL.RETINANET.SCORE_THRESH_TEST
        is_higher = threshold > stored.MODEL.RETINANET.SCORE_THRESH_TEST
        self.score_threshold = threshold if is_higher else 0.0
        self.max_detections = cfg.TEST.DETECTIONS_PER_IMAGE
        self.dense_masks = cfg.MODEL.RDSNET.DENSE_MASKS
        self.most, self.reached_most = stored.TEST.DETECTIONS_PER_IMAGE, False
        self.eval()

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Inputs and results as of :class:`~rdsnet.modeling.RDSNet`, one image after the other."""
        with torch.autocast("cpu", enabled=False):  # decoding is exact
            return [{"instances": self._instances(one)} for one in batched_inputs]

    def _instances(self, inputs: dict) -> Instances:
        image, output_size = inputs["image"].cpu(), requested_size(inputs)
        if isinstance(self.size[0], int) and tuple(image.shape[1:]) != tuple(self.size):
            raise ValueError(
                f"'{self.path}' takes images of {self.size[0]} x {self.size[1]} pixels alone, and "
                f"this one has {image.shape[1]} x {image.shape[2]} after resizing. Written without "
                "--size, a file takes any"
            )
        found = self.run(image.to(self.dtype), output_size)
        boxes, regressed_boxes, scores, classes = found[:4]
        if len(found) == len(Objects._fields):
            masks = Objects(*found).masks
            size = tuple(masks.shape[1:])
        else:
            masks = decoded(CompactObjects(*found), self.mask_threshold)
            size = masks.size
            masks = masks.dense() if self.dense_masks else masks
        if size != tuple(output_size):
            raise ValueError(
                f"'{self.path}' gives results in the size of what goes into it, {size} pixels, and "
                f"they are wanted in {output_size}: images must not be resized (--opts "
                "INPUT.MIN_SIZE_TEST 0)"
            )
        self.reached_most = len(scores) >= self.most
        instances = Instances(
            output_size,
            pred_boxes=Boxes(boxes),
            regressed_boxes=Boxes(regressed_boxes),
            scores=scores,
            pred_classes=classes,
            pred_masks=masks,
        )
        return instances[scores > self.score_threshold][: self.max_detections]


def _check_settings(cfg: CfgNode, stored: CfgNode, path: str, own_precision: str) -> None:
    """Raise ValueError for what the config asks for and the file cannot do."""
    own = get_cfg()
    own.merge_from_other_cfg(stored)  # with its types
    then, now = flat(own), flat(cfg)
    fixed = [key for key in then if is_among(key, ("MODEL", "INPUT.FORMAT", *IMAGES))]
    changed = [key for key in fixed if key not in _OPEN and now.get(key) != then[key]]
    if changed:
        key = changed[0]
        raise ValueError(
            f"{key} is {then[key]} in '{path}' and cannot be changed to {now.get(key)}: export the "
            f"checkpoint again with --opts {key} {now.get(key)}"
        )
    precision = now["MODEL.RDSNET.INFERENCE.PRECISION"]
    if precision not in ("auto", "float32"):
        raise ValueError(
            f"'{path}' computes in {own_precision}, not in {precision} (--precision): leave it "
            "out, or take the checkpoint"
        )
    for key, option, is_beyond in (
        ("MODEL.RETINANET.SCORE_THRESH_TEST", "--score-threshold", lambda new, old: new < old),
        ("TEST.DETECTIONS_PER_IMAGE", "--max-detections", lambda new, old: new > old),
    ):
        if is_beyond(now[key], then[key]):
            raise ValueError(
                f"{option} {now[key]:g} is beyond what is in '{path}', which was written with "
                f"{then[key]:g}: export the checkpoint again with {option} {now[key]:g}"
            )
