"""Which anchors learn what: matching with objects and crowds, and hard negatives."""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, pairwise_ioa, pairwise_iou
from torch import Tensor

BACKGROUND, IGNORED, FOREGROUND = 0, -1, 1


@torch.no_grad()
def match_anchors(
    objects: Boxes,
    anchors: Boxes,
    crowds: Boxes | None = None,
    *,
    thresholds: tuple[float, float] = (0.4, 0.5),
    crowd_threshold: float = 0.7,
) -> tuple[Tensor, Tensor]:
    """Match anchors to objects, and give every object an anchor of its own.

    An anchor is matched to the object of its largest IoU: foreground from the upper threshold on,
    background below the lower one, ignored in between. Then object and anchor with the largest IoU
    of all are paired, whatever it is, and so on with those that are left, until every object has an
    anchor. An anchor that is not foreground is ignored when more than ``crowd_threshold`` of its
    area lies inside a crowd.

    Args:
        objects: M boxes.
        anchors: R boxes.
        crowds: boxes that stand for many objects.

    Returns:
        labels (R,) int64: FOREGROUND, BACKGROUND, IGNORED; matched (R,) int64, index of an object
        (of no meaning where the label is not FOREGROUND).
    """
    low, high = thresholds
    device = anchors.device
    labels = torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=device)
    matched = torch.zeros_like(labels)
    if len(objects):
        iou = pairwise_iou(objects, anchors)
        best, matched = iou.max(dim=0)
        labels[best >= low] = IGNORED
        labels[best >= high] = FOREGROUND
        paired, own = best_anchors(iou)
        labels[own] = FOREGROUND
        matched[own] = paired
    if crowds is not None and len(crowds):
        inside = pairwise_ioa(crowds, anchors).amax(dim=0) > crowd_threshold
        labels[inside & (labels != FOREGROUND)] = IGNORED
    return labels, matched


def best_anchors(iou: Tensor) -> tuple[Tensor, Tensor]:
    """Pair objects with anchors, the largest IoU first, none twice.

    Of equal IoUs the first object comes first, then the first anchor. Where there are more objects
    than anchors, some have none.

    Args:
        iou: (M, R).

    Returns:
        objects, anchors: (min(M, R),) int64.
    """
    count = min(iou.shape)
    # The other objects can take at most M - 1 of an object's M best anchors.
    values, anchors = iou.sort(dim=1, descending=True, stable=True)
    values, anchors = values[:, :count].flatten(), anchors[:, :count].flatten()
    pairs, anchors = values.argsort(descending=True, stable=True).tolist(), anchors.tolist()
    chosen: dict[int, int] = {}
    taken = set()
    for pair in pairs:
        number, anchor = pair // count, anchors[pair]
        if number not in chosen and anchor not in taken:
            chosen[number] = anchor
            taken.add(anchor)
    return torch.tensor([list(chosen), list(chosen.values())], device=iou.device).unbind()


@torch.no_grad()
def hard_negatives(background_loss: Tensor, labels: Tensor, per_positive: float = 3) -> Tensor:
    """The background anchors that look least like background.

    Args:
        background_loss: (B, R) loss of every anchor as background, -log of that probability.
        labels: (B, R) as of :func:`match_anchors`.
        per_positive: background anchors per foreground anchor of the same image. An image without
            foreground has none.

    Returns:
        (B, R) bool.
    """
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    for image, (loss, label) in enumerate(zip(background_loss, labels)):
        negatives = (label == BACKGROUND).nonzero().squeeze(1)
        count = min(int(per_positive * int((label == FOREGROUND).sum())), len(negatives))
        chosen[image, negatives[loss[negatives].topk(count).indices]] = True
    return chosen
