"""The mask loss L_mask (paper, Sec. 3.2 and 3.4): correlation, expanded cropping, OHEM.

Every positive anchor meets the pixels of its own image inside its expanded ground-truth box. The
loss is taken on the grid of the pixel representations, on ground-truth masks brought to it (the
paper); or at the pixels of the network's input, where these masks are exact, on logits that are
interpolated as at inference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rdsnet.modeling.cropping import training_windows
from rdsnet.modeling.processes import process_count, sum_over_processes
from rdsnet.ops import object_losses


def mask_loss(
    psi: Tensor,
    phi: Tensor,
    image_index: Tensor,
    boxes: Tensor,
    masks: Sequence[Tensor],
    object_index: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    *,
    strides: tuple[float, float],
    at_pixels: bool = False,
    expand: float = 1.5,
    negatives_per_positive: float | None = 1,
) -> Tensor:
    """L_mask: mean over the objects of their windowed two-class cross-entropy.

    Args:
        psi: (B, D, h, w) pixel representations.
        phi: (N, 2, D) representations of the positive anchors.
        image_index: (N,) int64, image of each of them.
        boxes: (N, 4) their ground-truth boxes, continuous coordinates, pixels of the network's
            input.
        masks: the ground-truth masks of every image, (M, H, W) bool or 0/1, at the resolution of
            the network's input.
        object_index: (N,) int64, ground-truth mask of each positive anchor among those of its
            image.
        image_sizes: (H, W) of every image before padding.
        strides: pixels of the network's input per cell of psi, vertically and horizontally.
        at_pixels: where the loss is taken.
        expand: growth of the boxes (paper: 1.5).
        negatives_per_positive: background pixels kept per foreground pixel (paper: 1); None: all.

    Returns:
        Scalar, see :func:`mean_over_objects`.
    """
    windows = training_windows(
        boxes, image_index, image_sizes, expand, (1, 1) if at_pixels else strides
    )
    losses = object_losses(
        psi,
        phi,
        image_index,
        windows,
        masks,
        object_index,
        strides,
        negatives_per_positive,
        at_pixels=at_pixels,
    )
    return mean_over_objects(losses)


def mean_over_objects(losses: Tensor) -> Tensor:
    """sum of losses (N,) / (N + 1), where N counts the objects of all processes together.

    See :mod:`rdsnet.modeling.processes`. The 1 keeps the mean defined, and attached to all
    parameters, when there is no object.
    """
    objects = sum_over_processes(torch.tensor(len(losses), device=losses.device))
    return losses.sum() / ((objects + 1) / process_count())
