"""Adaptive training sample selection: which anchors learn an object (ATSS, Zhang et al. 2020).

Instead of fixed IoU thresholds every object has its own. Of the anchors nearest to its centre those
are its positives that overlap it by at least the mean of all these overlaps plus their standard
deviation. One square anchor per location is then enough, and small objects get as many anchors as
large ones. Not part of RDSNet's paper.

Shapes: M objects, R anchors of an image over all levels.
"""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor


def match_adaptively(
    anchors: list[Boxes], gt_boxes: Boxes, candidates_per_level: int
) -> tuple[Tensor, Tensor]:
    """Match the anchors of an image to its objects.

    An object's candidates are the anchors whose centres are nearest to its own, so many on every
    level. Those of them are its positives that have an IoU with it of at least the mean plus the
    (sample) standard deviation of the candidates' IoUs, and their centre inside its box. Where
    there is none, the candidate of largest IoU is taken, so that every object is learnt. An anchor
    that several objects want goes to the one that it overlaps most.

    Args:
        anchors: per level.
        gt_boxes: M objects.
        candidates_per_level: 9 times the anchors per location in the ATSS paper.

    Returns:
        object_index (R,) int64 and labels (R,) int8, 1: positive, 0: background. The index has no
        meaning where the label is 0.
    """
    boxes = Boxes.cat(anchors)
    object_index = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    labels = torch.zeros(len(boxes), dtype=torch.int8, device=boxes.device)
    if len(gt_boxes) == 0:
        return object_index, labels
    centres = boxes.get_centers()
    candidates = _nearest(anchors, gt_boxes.get_centers(), candidates_per_level)  # (M, C)
    iou = pairwise_iou(gt_boxes, boxes)  # (M, R)
    overlaps = iou.gather(1, candidates)
    threshold = overlaps.mean(1) + (overlaps.std(1) if overlaps.shape[1] > 1 else 0)
    x1, y1, x2, y2 = gt_boxes.tensor[:, None].unbind(2)
    x, y = centres[candidates].unbind(2)
    inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
    chosen = (overlaps >= threshold[:, None]) & inside
    # Objects that lie between the anchors' centres: the nearest in size and place.
    left_out = ~chosen.any(1)
    chosen[left_out, overlaps[left_out].argmax(1)] = True

    wanted = torch.full_like(iou, -1)
    objects = torch.arange(len(gt_boxes), device=boxes.device)[:, None].expand_as(candidates)
    wanted[objects[chosen], candidates[chosen]] = overlaps[chosen]
    best, object_index = wanted.max(0)
    return object_index, (best >= 0).to(torch.int8)


def _nearest(anchors: list[Boxes], centres: Tensor, per_level: int) -> Tensor:
    """Indices (M, C) of the anchors nearest to each of M centres, so many of every level."""
    found, first = [], 0
    for level in anchors:
        distance = torch.cdist(centres, level.get_centers())
        count = min(per_level, len(level))
        found.append(distance.topk(count, largest=False).indices + first)
        first += len(level)
    return torch.cat(found, dim=1)
