"""The mask loss L_mask (paper, Sec. 3.2 and 3.4): correlation, expanded cropping, OHEM.

Every positive anchor meets the pixels of its own image inside its expanded ground-truth box. The
loss works on the grid of the pixel representations (stride 4), on ground-truth masks brought to
that grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rdsnet import ops
from rdsnet.modeling.cropping import expanded_windows
from rdsnet.modeling.processes import process_count, sum_over_processes

STRIDE = 4
"""Image pixels per cell of the pixel representations."""


def mask_targets(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Ground-truth masks on the grid of the pixel representations.

    The centre of a cell of 4 x 4 pixels is the corner that its four middle pixels share. Bilinear
    interpolation there is their mean, and a mean above 0.5 is "at least 3 of the 4".

    Args:
        masks: (M, H, W) bool or 0/1, at the resolution of the network's input.
        size: (h, w) of the grid. Cells beyond the image are background.

    Returns:
        (M, h, w) uint8.
    """
    votes = torch.zeros(len(masks), *size, dtype=torch.uint8, device=masks.device)
    for row in (1, 2):
        for column in (1, 2):
            middle = masks[:, row::STRIDE, column::STRIDE][:, : size[0], : size[1]]
            votes[:, : middle.shape[1], : middle.shape[2]] += middle.to(torch.uint8)
    return (votes >= 3).to(torch.uint8)


def training_windows(
    boxes: Tensor, image_index: Tensor, image_sizes: Sequence[tuple[int, int]], expand: float
) -> Tensor:
    """Windows on the grid around boxes given in image pixels.

    A window ends where its own image ends, not where the batch's padding does, so that the loss of
    an image does not depend on the images that it shares a batch with.

    Args:
        boxes: (N, 4) ground-truth boxes, continuous coordinates, pixels of the network's input.
        image_index: (N,) image of each box.
        image_sizes: (H, W) of every image of the batch before padding.
        expand: factor on width and height.

    Returns:
        (N, 4) int64, cells, end exclusive.
    """
    windows = torch.zeros(len(boxes), 4, dtype=torch.int64, device=boxes.device)
    for i, (height, width) in enumerate(image_sizes):
        own = image_index == i
        grid = (-(-height // STRIDE), -(-width // STRIDE))
        windows[own] = expanded_windows(boxes[own] / STRIDE, expand, grid)
    return windows


def mask_loss(
    psi: Tensor,
    phi: Tensor,
    image_index: Tensor,
    boxes: Tensor,
    targets: Tensor,
    target_index: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    *,
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
        targets: (M, h, w) uint8, see :func:`mask_targets`, of all images of the batch.
        target_index: (N,) int64, ground-truth mask of each positive anchor.
        image_sizes: (H, W) of every image before padding.
        expand: growth of the boxes (paper: 1.5).
        negatives_per_positive: background pixels kept per foreground pixel (paper: 1); None: all.

    Returns:
        Scalar: sum over objects / (N + 1), where N counts the objects of all processes (see
        :mod:`rdsnet.modeling.processes`). The 1 keeps it defined, and attached to all parameters,
        when there is no object.
    """
    windows = training_windows(boxes, image_index, image_sizes, expand)
    losses = ops.mask_ohem_loss(
        psi, phi, image_index, windows, targets, target_index, negatives_per_positive
    )
    objects = sum_over_processes(torch.tensor(len(losses), device=psi.device))
    return losses.sum() / ((objects + 1) / process_count())
