"""Boxes in inclusive pixels: integer coordinate i is the pixel with index i.

``x2, y2`` name the last pixel inside, so a box is ``x2 - x1 + 1`` wide. The same box in
Detectron2's continuous coordinates, where pixel i covers [i, i + 1), is ``x1, y1, x2 + 1, y2 + 1``.
Inside this project boxes are inclusive; what goes in and out of the model is continuous.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rdsnet.ops import as_vector


def to_continuous(boxes: Tensor) -> Tensor:
    """Inclusive pixels (..., 4) -> Detectron2's continuous coordinates."""
    return boxes + boxes.new_tensor([0, 0, 1, 1])


def to_inclusive(boxes: Tensor) -> Tensor:
    """Detectron2's continuous coordinates (..., 4) -> inclusive pixels."""
    return boxes - boxes.new_tensor([0, 0, 1, 1])


def clip_inclusive(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Clip inclusive boxes (N, 4) to the pixels 0..W-1, 0..H-1 of an image of ``size`` (H, W)."""
    height, width = size
    limits = as_vector([width - 1, height - 1] * 2, boxes.dtype, boxes.device)
    return torch.minimum(boxes.clamp(min=0), limits)


def inclusive_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of inclusive boxes, with sides of x2 - x1 + 1: (N, 4), (M, 4) -> (N, M)."""
    low = torch.maximum(boxes1[:, None, :2], boxes2[:, :2])
    high = torch.minimum(boxes1[:, None, 2:], boxes2[:, 2:])
    intersection = (high - low + 1).clamp(min=0).prod(dim=2)
    area1, area2 = ((b[:, 2:] - b[:, :2] + 1).prod(dim=1) for b in (boxes1, boxes2))
    return intersection / (area1[:, None] + area2 - intersection)


class InclusiveBox2BoxTransform:
    """Box coding as in Faster R-CNN, on inclusive boxes; interface of Detectron2's transform.

    Decoding clamps dw and dh on both sides: a decoded box is at most ``scale_clamp_ratio`` times
    larger and smaller than its anchor, while Detectron2 limits growth only.
    """

    def __init__(self, scale_clamp_ratio: float = 1000 / 16) -> None:
        self.scale_clamp = math.log(scale_clamp_ratio)

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """(N, 4) anchors and (N, 4) objects -> (N, 4) dx, dy, dw, dh."""
        size, target_size = (b[:, 2:] - b[:, :2] + 1 for b in (src_boxes, target_boxes))
        centre, target_centre = ((b[:, :2] + b[:, 2:]) * 0.5 for b in (src_boxes, target_boxes))
        shift = (target_centre - centre) / size
        return torch.cat([shift, torch.log(target_size / size)], dim=1)

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """(N, 4) dx, dy, dw, dh and (N, 4) anchors -> (N, 4) boxes, not clipped."""
        scale = deltas[:, 2:].clamp(-self.scale_clamp, self.scale_clamp).exp()
        size = boxes[:, 2:] - boxes[:, :2] + 1
        centre = (boxes[:, :2] + boxes[:, 2:]) * 0.5 + size * deltas[:, :2]
        half = size * scale * 0.5
        return torch.cat([centre - half + 0.5, centre + half - 0.5], dim=1)


def padded_windows(boxes: Tensor, padding: float, size: tuple[int, int]) -> Tensor:
    """The windows that the authors' code crops masks to, around inclusive boxes.

    Each side moves out by ``padding`` x (box side + 1), at least 1 px; the coordinates, clamped to
    the map, are then cut to integers. So a window starts up to one pixel before the padded box and
    ends up to one pixel inside it, where the core asks whether a pixel's centre is inside.

    Args:
        boxes: (N, 4) in pixels of the map; a reversed side is turned round.
        padding: per side; between 0 and 1: share of the box's side + 1; otherwise pixels. 0 leaves
            the box as it is, without clamping.
        size: (H, W) of the map.

    Returns:
        (N, 4) int64 x1, y1, x2, y2, end exclusive. A box beyond the map has an empty window.
    """
    height, width = size
    limits = boxes.new_tensor([width, height])
    low = torch.minimum(boxes[:, :2], boxes[:, 2:])
    high = torch.maximum(boxes[:, :2], boxes[:, 2:])
    if padding != 0:
        reach = (padding * (high - low + 1)).clamp(min=1) if 0 < padding < 1 else padding
        low, high = (low - reach).clamp(min=0), torch.minimum(high + reach, limits)
    return torch.cat([low, high], dim=1).long()
