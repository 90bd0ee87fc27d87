"""Fast NMS (YOLACT, Sec. 5): a box falls to any better one, even one that has fallen itself.

So all decisions are independent: sort each class by score, form the matrix of IoUs, and keep a box
when none of the boxes before it overlaps it by more than the threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fast_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float = 0.5, top_k: int = 200
) -> Tensor:
    """Indices of the boxes that are kept, best first.

    Args:
        boxes: (N, 4) x1, y1, x2, y2.
        scores: (N,).
        classes: (N,) int64; boxes of different classes do not compete.
        iou_threshold: a box stays up to this IoU.
        top_k: only so many best boxes of every class take part; the others are dropped.

    Returns:
        (M,) int64.
    """
    if not len(boxes):
        return classes.new_zeros(0)
    by_score = scores.argsort(descending=True, stable=True)
    grouped = by_score[classes[by_score].argsort(stable=True)]
    _, group, counts = classes[grouped].unique_consecutive(return_inverse=True, return_counts=True)
    rank = torch.arange(len(grouped), device=boxes.device) - (counts.cumsum(0) - counts)[group]
    chosen = rank < top_k
    grouped, group, rank = grouped[chosen], group[chosen], rank[chosen]

    # One row per class; the entries that a class leaves empty hold boxes without area.
    table = boxes.new_zeros(len(counts), int(rank.max()) + 1, 4)
    table[group, rank] = boxes[grouped]
    kept = grouped[largest_overlap_before(table)[group, rank] <= iou_threshold]
    return kept[scores[kept].argsort(descending=True, stable=True)]


def largest_overlap_before(boxes: Tensor) -> Tensor:
    """Largest IoU of each box with those before it in its row: (C, k, 4) -> (C, k)."""
    return batched_iou(boxes).triu(diagonal=1).amax(dim=1)


def batched_iou(boxes: Tensor) -> Tensor:
    """IoU of all pairs in each row: (C, k, 4) -> (C, k, k); 0 where a box has no area."""
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    intersection = (high - low).clamp(min=0).prod(dim=3)
    area = (boxes[:, :, 2:] - boxes[:, :, :2]).prod(dim=2)
    union = area[:, :, None] + area[:, None, :] - intersection
    return intersection / union.clamp(min=torch.finfo(boxes.dtype).tiny)
