"""The mask loss of every object, with online hard example mining (paper, Sec. 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from rdsnet.ops.reference.correlation import correlate
from rdsnet.ops.reference.windows import clamped


def mask_ohem_loss(
    psi: Tensor,
    phi: Tensor,
    image_index: Tensor,
    windows: Tensor,
    targets: Tensor,
    target_index: Tensor,
    negatives_per_positive: float | None,
) -> Tensor:
    """See :func:`rdsnet.ops.mask_ohem_loss`."""
    windows = clamped(windows, psi.shape[-2:])
    logits, offsets = correlate(psi, phi, image_index, windows)
    foreground = windows_of(targets, target_index.tolist(), windows.tolist()) > 0
    # Two-class cross-entropy on softmax(bg, fg): softplus of the logit with the wrong sign.
    losses = F.softplus(torch.where(foreground, -logits, logits))
    if negatives_per_positive is None:
        kept = torch.ones_like(foreground)
    else:
        kept = foreground.clone()
        kept[hardest_negatives(logits.detach(), foreground, offsets, negatives_per_positive)] = True
    objects = torch.repeat_interleave(torch.arange(len(windows), device=psi.device), offsets.diff())
    total = losses.new_zeros(len(windows)).index_add(0, objects, losses * kept)
    count = F.pad(kept.cumsum(0), (1, 0))[offsets].diff()
    return total / (count + 1)


def windows_of(maps: Tensor, index: list[int], windows: list[list[int]]) -> Tensor:
    """Pixels of ``maps[index[n]]`` inside window n, packed row by row like the logits."""
    pieces = [maps[m, y1:y2, x1:x2].flatten() for m, (x1, y1, x2, y2) in zip(index, windows)]
    return torch.cat(pieces) if pieces else maps.new_zeros(0)


def hardest_negatives(
    logits: Tensor, foreground: Tensor, offsets: Tensor, negatives_per_positive: float
) -> Tensor:
    """Indices (into the packed pixels) of each object's hardest background pixels.

    Hardest means largest loss. The loss of a background pixel, softplus(z), grows with z, so the
    logits themselves are compared: far below 0 losses are all 0 in float32, logits still differ.
    """
    chosen = []
    bounds = offsets.tolist()
    for start, end in zip(bounds[:-1], bounds[1:]):
        positives = foreground[start:end]
        num_positives = int(positives.sum())
        num_negatives = min(
            int(num_positives * negatives_per_positive), end - start - num_positives
        )
        if num_negatives > 0:
            negatives = logits[start:end].masked_fill(positives, -math.inf)
            chosen.append(negatives.topk(num_negatives, sorted=False).indices + start)
    return torch.cat(chosen) if chosen else offsets.new_zeros(0)
