"""The mask loss L_mask (paper, Sec. 3.2 and 3.4): correlation, expanded cropping, OHEM.

Every positive anchor meets the pixels of its own image inside its expanded ground-truth box. The
loss works on the grid of the pixel representations (stride 4), on ground-truth masks brought to
that grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rdsnet import ops
from rdsnet.modeling.cropping import expanded_windows
from rdsnet.modeling.processes import process_count, sum_over_processes
from rdsnet.ops import compiled

STRIDE = 4
"""Image pixels per cell of the pixel representations."""


def mask_targets(
    masks: Tensor,
    size: tuple[int, int],
    input_size: tuple[int, int] | None = None,
    *,
    windows: Tensor | None = None,
) -> Tensor:
    """Ground-truth masks on the grid of the pixel representations.

    A cell is foreground when bilinear interpolation of the mask at its centre is above 0.5. The
    centre of a cell of 4 x 4 pixels is the corner that its four middle pixels share, where
    interpolation is their mean: above 0.5 is "at least 3 of the 4".

    Args:
        masks: (M, H, W) bool or 0/1, at the resolution of the network's input.
        size: (h, w) of the grid. Cells beyond the image are background.
        input_size: (H, W) in pixels that the grid covers; by default cells are 4 x 4 pixels.
        windows: (M, 4) cells of each mask that will be looked at, x1, y1, x2, y2, end exclusive;
            cells outside may be left background. None: all.

    Returns:
        (M, h, w) uint8.
    """
    if input_size is not None and input_size != (STRIDE * size[0], STRIDE * size[1]):
        height, width = (min(a, b) for a, b in zip(input_size, masks.shape[1:]))
        covered = torch.zeros(len(masks), 1, *input_size, device=masks.device)
        covered[:, 0, :height, :width] = masks[:, :height, :width]
        at_centres = F.interpolate(covered, size, mode="bilinear", align_corners=False)
        return (at_centres[:, 0] > 0.5).to(torch.uint8)
    if masks.is_cpu and masks.dtype in (torch.bool, torch.uint8) and compiled.usable(masks):
        if windows is None:
            windows = torch.tensor([[0, 0, size[1], size[0]]]).expand(len(masks), 4)
        return torch.ops.rdsnet.mask_targets(masks, windows, *size)
    if masks.is_cpu and windows is not None:
        # Few cells rather than few calls. A GPU would rather have it the other way round.
        targets = torch.zeros(len(masks), *size, dtype=torch.uint8)
        limits = torch.tensor([size[1], size[0]] * 2)
        for m, window in enumerate(torch.minimum(windows.clamp(min=0), limits).tolist()):
            x1, y1, x2, y2 = window
            if x1 < x2 and y1 < y2:
                pixels = masks[m : m + 1, y1 * STRIDE : y2 * STRIDE, x1 * STRIDE : x2 * STRIDE]
                targets[m, y1:y2, x1:x2] = mask_targets(pixels, (y2 - y1, x2 - x1))[0]
        return targets
    votes = torch.zeros(len(masks), *size, dtype=torch.uint8, device=masks.device)
    if masks.dtype != torch.bool:
        masks = masks.to(torch.uint8)
    for row in (1, 2):
        for column in (1, 2):
            middle = masks[:, row::STRIDE, column::STRIDE][:, : size[0], : size[1]]
            votes[:, : middle.shape[1], : middle.shape[2]] += middle
    return (votes >= 3).to(torch.uint8)


def training_windows(
    boxes: Tensor,
    image_index: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    expand: float,
    strides: tuple[float, float] = (STRIDE, STRIDE),
) -> Tensor:
    """Windows on the grid around boxes given in image pixels.

    A window ends where its own image ends, not where the batch's padding does, so that the loss of
    an image does not depend on the images that it shares a batch with.

    Args:
        boxes: (N, 4) ground-truth boxes, continuous coordinates, pixels of the network's input.
        image_index: (N,) image of each box.
        image_sizes: (H, W) of every image of the batch before padding.
        expand: factor on width and height.
        strides: image pixels per cell of the grid, vertically and horizontally.

    Returns:
        (N, 4) int64, cells, end exclusive.
    """
    # Rounding errors of a stride that is no whole number do not make a cell.
    grids = [
        tuple(math.ceil(side / s - 1e-6) for side, s in zip(image_size, strides))
        for image_size in image_sizes
    ]
    step = boxes.new_tensor([strides[1], strides[0]] * 2)
    return expanded_windows(boxes / step, expand, grids, image_index)


def kept_pixels(
    windows: Tensor, targets: Tensor, target_index: Tensor, negatives_per_positive: float | None
) -> Tensor:
    """Pixels that :func:`rdsnet.ops.mask_ohem_loss` keeps for each object.

    Args:
        windows: (N, 4) int64, inside the grid.
        targets, target_index, negatives_per_positive: as in that function.

    Returns:
        (N,) int64: all pixels of the window, or its foreground and the mined background.
    """
    x1, y1, x2, y2 = windows.unbind(1)
    areas = (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)
    if negatives_per_positive is None:
        return areas
    # Sums over rectangles from sums over everything above and to the left.
    sums = F.pad(targets.to(torch.int64).cumsum(1).cumsum(2), (1, 0, 1, 0))
    n = target_index
    foreground = sums[n, y2, x2] - sums[n, y1, x2] - sums[n, y2, x1] + sums[n, y1, x1]
    foreground = torch.where(areas > 0, foreground, 0)
    mined = (foreground.double() * negatives_per_positive).long()
    return foreground + torch.minimum(mined, areas - foreground)


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
