"""Scores that say how well an object is found, not only that there is one.

AP ranks detections by their scores, so a score that grows with the overlap pays. Two ways, neither
of them part of RDSNet's paper: the class learns the overlap of the box (quality focal loss, Li et
al. 2020), and the score is multiplied by how sure the mask is of its pixels (as in SOLO, Wang et
al. 2020).

Shapes: N objects, D = 32, (h, w) grid of Psi.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CLASSIFICATION_LOSSES = ("focal", "quality_focal")
# A box is looked at in so many rows and columns of points.
POINTS = 16


def quality_focal_loss(logits: Tensor, qualities: Tensor, gamma: float) -> Tensor:
    """Sum of ``|p - q|^gamma * cross-entropy(p, q)`` over all scores p = sigmoid(logits).

    Args:
        logits, qualities: of one shape; qualities in [0, 1], 0 for what is no object of the class.
        gamma: how much more what is badly scored counts.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, qualities, reduction="none")
    return ((logits.sigmoid() - qualities).abs() ** gamma * cross_entropy).sum()


def mask_confidence(phi: Tensor, psi: Tensor, boxes: Tensor, threshold: float) -> Tensor:
    """How sure masks are of their pixels.

    The mean foreground probability of those of ``POINTS`` x ``POINTS`` evenly spread points of the
    box that belong to the mask, 0 where none does. Psi is interpolated as masks are, with which the
    dot product commutes.

    Args:
        phi: (N, 2, D), of the objects.
        psi: (D, h, w), of their image.
        boxes: (N, 4) on the grid of psi, in cells.
        threshold: probability from which a point belongs to the mask.

    Returns:
        (N,), in [0, 1].
    """
    # A grid of -1..1 from the first cell's outer edge to the last one's.
    steps = (torch.arange(POINTS, device=boxes.device) + 0.5) / POINTS
    x1, y1, x2, y2 = (boxes.to(psi.dtype) * 2).unbind(1)
    x = (x1[:, None] + (x2 - x1)[:, None] * steps) / psi.shape[2] - 1  # (N, P)
    y = (y1[:, None] + (y2 - y1)[:, None] * steps) / psi.shape[1] - 1
    shape = (-1, POINTS, POINTS)
    points = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)
    sampled = F.grid_sample(
        psi[None], points.flatten(1, 2)[None], padding_mode="border", align_corners=False
    )
    # foreground - background, (N, D) x (D, N, P * P)
    logits = torch.einsum("nd,dnp->np", phi[:, 1] - phi[:, 0], sampled[0])
    probability = logits.float().sigmoid()
    belongs = probability > threshold
    return (probability * belongs).sum(1) / belongs.sum(1).clamp(min=1)
