"""Do the anchors fit the objects, and by which factor would they fit better?

Objects are compared with the anchors as matching will: at the locations where anchors are, by IoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode

# Objects looked at, drawn at random if there are more.
_MAX_OBJECTS = 20_000
# Factors that are tried: powers of the fourth root of 2 between a quarter and four.
_FACTORS = tuple(2.0 ** (k / 4) for k in range(-8, 9))
# Smaller anchors than this, in pixels, are below what a grid of stride 8 can tell apart.
_SMALLEST_ANCHOR = 8.0
# The usual anchors are kept unless others match at least this share of the objects more.
_WORTH_A_CHANGE = 0.02


@dataclass(frozen=True)
class AnchorFit:
    """The usual anchors and the best ones; coverage is the share of objects that they match."""

    sizes: list[list[float]]
    coverage: float
    factor: float
    best_sizes: list[list[float]]
    best_coverage: float
    iou: float


def uses_anchors(cfg: CfgNode) -> bool:
    """Whether the detector matches anchors as they are compared here: RetinaNet's does by IoU."""
    rdsnet = cfg.MODEL.RDSNET
    return rdsnet.OBJECT_STREAM == "RetinaNetStream" and rdsnet.ASSIGNMENT.NAME == "iou"


def fit_anchors(cfg: CfgNode, boxes: np.ndarray) -> AnchorFit:
    """Look for the factor by which the anchors of a config match the most objects.

    Args:
        cfg: ``MODEL.ANCHOR_GENERATOR`` and ``MODEL.RETINANET`` say which anchors there are and
            from which IoU they match.
        boxes: (N, 4) XYXY in pixels of the network's input.
    """
    boxes = _sample(boxes)
    generator = cfg.MODEL.ANCHOR_GENERATOR
    strides = [2 ** int(name.removeprefix("p")) for name in cfg.MODEL.RETINANET.IN_FEATURES]
    sizes = [list(map(float, level)) for level in generator.SIZES]
    sizes = sizes * len(strides) if len(sizes) == 1 else sizes
    ratios, offset = generator.ASPECT_RATIOS[0], generator.OFFSET
    iou = cfg.MODEL.RETINANET.IOU_THRESHOLDS[-1]

    def coverage(factor: float) -> float:
        scaled = [[size * factor for size in level] for level in sizes]
        return float((best_ious(boxes, scaled, ratios, strides, offset) >= iou).mean())

    usual = coverage(1.0) if len(boxes) else 1.0
    factor, best = 1.0, usual
    smallest = min(map(min, sizes))
    for candidate in sorted(_FACTORS, key=lambda f: abs(np.log(f))):  # small changes first
        if len(boxes) and candidate * smallest >= _SMALLEST_ANCHOR:
            found = coverage(candidate)
            if found > best + _WORTH_A_CHANGE / 4 and found > usual + _WORTH_A_CHANGE:
                factor, best = candidate, found
    best_sizes = [[round(size * factor, 4) for size in level] for level in sizes]
    return AnchorFit(sizes, usual, factor, best_sizes, best, iou)


def best_ious(
    boxes: np.ndarray,
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
    strides: Sequence[int],
    offset: float,
) -> np.ndarray:
    """IoU of every object with the anchor that overlaps it most, (N,).

    Args:
        boxes: (N, 4) XYXY.
        sizes: per level the square roots of the anchors' areas, pixels.
        ratios: height / width of the anchors.
        strides: per level, pixels.
        offset: of the first anchor's centre from the image's corner, in strides.
    """
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = boxes[:, 2:] - boxes[:, :2]
    best = np.zeros(len(boxes))
    for level, stride in zip(sizes, strides, strict=True):
        # The anchor of the nearest location overlaps most, whatever its shape.
        location = (np.floor(centres / stride - offset + 0.5) + offset) * stride
        distance = np.abs(centres - location)
        for size in level:
            for ratio in ratios:
                anchor = np.array([size / np.sqrt(ratio), size * np.sqrt(ratio)])
                common = (sides + anchor) / 2 - distance
                common = np.minimum(common, np.minimum(sides, anchor)).clip(min=0).prod(1)
                union = sides.prod(1) + anchor.prod() - common
                np.maximum(best, common / union, out=best)
    return best


def _sample(boxes: np.ndarray) -> np.ndarray:
    if len(boxes) <= _MAX_OBJECTS:
        return boxes
    return boxes[np.random.default_rng(0).choice(len(boxes), _MAX_OBJECTS, replace=False)]
