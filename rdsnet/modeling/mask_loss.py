"""The mask loss L_mask (paper, Sec. 3.2 and 3.4): correlation, expanded cropping, OHEM.

Every positive anchor meets the pixels of its own image inside its expanded ground-truth box. The
loss is taken on the grid of the pixel representations, on ground-truth masks brought to it (the
paper); or at the pixels of the network's input, where the masks are exact, on logits that are
interpolated as at inference.

A grid is described by its ``strides``: pixels of the network's input per cell, vertically and
horizontally.
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
from rdsnet.ops import compiled, resize_taps

RESOLUTIONS = ("grid", "image")
"""Where the loss is taken: ``MODEL.RDSNET.MASK_LOSS.RESOLUTION``."""
MASK_DTYPES = (torch.bool, torch.uint8)
"""Of masks that the operators take as they are."""


def mask_targets(
    masks: Tensor,
    size: tuple[int, int],
    strides: tuple[float, float],
    *,
    windows: Tensor | None = None,
) -> Tensor:
    """Ground-truth masks on the grid of the pixel representations.

    A cell is foreground when bilinear interpolation of the mask at its centre is above 0.5. The
    centre of a cell of 4 x 4 pixels is the corner that its four middle pixels share, where
    interpolation is their mean: above 0.5 is "at least 3 of the 4". So it is for every even
    stride; of an odd one the middle pixel decides.

    Args:
        masks: (M, H, W) bool or 0/1, at the resolution of the network's input.
        size: (h, w) of the grid. Cells beyond the image are background.
        strides: pixels per cell, vertically and horizontally.
        windows: (M, 4) cells of each mask that will be looked at, x1, y1, x2, y2, end exclusive;
            cells outside may be left background. None: all.

    Returns:
        (M, h, w) uint8.
    """
    stride = whole_stride(strides)
    if stride is None:
        input_size = [round(cells * s) for cells, s in zip(size, strides)]
        height, width = (min(a, b) for a, b in zip(input_size, masks.shape[1:]))
        covered = torch.zeros(len(masks), 1, *input_size, device=masks.device)
        covered[:, 0, :height, :width] = masks[:, :height, :width]
        at_centres = F.interpolate(covered, size, mode="bilinear", align_corners=False)
        return (at_centres[:, 0] > 0.5).to(torch.uint8)
    if masks.is_cpu and masks.dtype in MASK_DTYPES and compiled.usable(masks):
        if windows is None:
            windows = torch.tensor([[0, 0, size[1], size[0]]]).expand(len(masks), 4)
        return torch.ops.rdsnet.mask_targets(masks, windows, stride, *size)
    masks = masks.view(torch.uint8) if masks.dtype == torch.bool else masks.to(torch.uint8)
    targets = torch.zeros(len(masks), *size, dtype=torch.uint8, device=masks.device)
    if masks.is_cpu and windows is not None:
        # Few cells rather than few calls. A GPU would rather have it the other way round.
        limits = torch.tensor([size[1], size[0]] * 2)
        for m, window in enumerate(torch.minimum(windows.clamp(min=0), limits).tolist()):
            x1, y1, x2, y2 = window
            if x1 < x2 and y1 < y2:
                pixels = masks[m, stride * y1 : stride * y2, stride * x1 : stride * x2]
                _write_targets(pixels, stride, targets[m, y1:y2, x1:x2])
        return targets
    _write_targets(masks, stride, targets)
    return targets


def whole_stride(strides: tuple[float, float]) -> int | None:
    """The number of pixels that all cells are wide and high; None if there is no such number."""
    vertical, horizontal = strides
    return int(vertical) if vertical == horizontal == int(vertical) else None


def _write_targets(masks: Tensor, stride: int, targets: Tensor) -> None:
    """Whether 3 of the 4 middle pixels are foreground: masks (..., H, W) to targets (..., h, w).

    uint8, 0 or 1. Cells that have no 4 middle pixels are left as they are.
    """
    first, second = (stride - 1) // 2, stride // 2  # the same, if odd
    lower = masks[..., second::stride, :]
    rows = masks[..., first::stride, :][..., : lower.shape[-2], :] + lower
    right = rows[..., second::stride]
    votes = (rows[..., first::stride][..., : right.shape[-1]] + right)[
        ..., : targets.shape[-2], : targets.shape[-1]
    ]
    targets[..., : votes.shape[-2], : votes.shape[-1]] = votes >= 3


def training_windows(
    boxes: Tensor,
    image_index: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    expand: float,
    strides: tuple[float, float],
) -> Tensor:
    """Windows on the grid around boxes given in image pixels.

    A window ends where its own image ends, not where the batch's padding does, so that the loss of
    an image does not depend on the images that it shares a batch with.

    Args:
        boxes: (N, 4) ground-truth boxes, continuous coordinates, pixels of the network's input.
        image_index: (N,) image of each box.
        image_sizes: (H, W) of every image of the batch before padding.
        expand: factor on width and height.
        strides: pixels per cell, vertically and horizontally.

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
    masks: Sequence[Tensor],
    object_index: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    *,
    strides: tuple[float, float],
    resolution: str = "grid",
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
        strides: of the grid of psi.
        resolution: "grid" or "image", where the loss is taken.
        expand: growth of the boxes (paper: 1.5).
        negatives_per_positive: background pixels kept per foreground pixel (paper: 1); None: all.

    Returns:
        Scalar: sum over objects / (N + 1), where N counts the objects of all processes (see
        :mod:`rdsnet.modeling.processes`). The 1 keeps it defined, and attached to all parameters,
        when there is no object.
    """
    if resolution == "image":
        windows = expanded_windows(boxes, expand, image_sizes, image_index)
        losses_of_objects = object_losses_at_pixels
    else:
        windows = training_windows(boxes, image_index, image_sizes, expand, strides)
        losses_of_objects = object_losses
    losses = losses_of_objects(
        psi, phi, image_index, windows, masks, object_index, strides, negatives_per_positive
    )
    objects = sum_over_processes(torch.tensor(len(losses), device=psi.device))
    return losses.sum() / ((objects + 1) / process_count())


def object_losses(
    psi: Tensor,
    phi: Tensor,
    image_index: Tensor,
    windows: Tensor,
    masks: Sequence[Tensor],
    object_index: Tensor,
    strides: tuple[float, float],
    negatives_per_positive: float | None,
) -> Tensor:
    """:func:`rdsnet.ops.mask_ohem_loss` of every object, (N,), from masks as :func:`mask_loss` has.

    On the CPU one operator reads the masks where a window looks; elsewhere they are brought to the
    grid first.
    """
    stride = whole_stride(strides)
    read_in_place = psi.is_cpu and all(m.dtype in MASK_DTYPES for m in masks)
    if stride is not None and read_in_place and compiled.usable(psi):
        return torch.ops.rdsnet.mask_ohem_loss_from_images(
            psi, phi, image_index, windows, masks, object_index, stride, negatives_per_positive
        )[0]
    counts = [len(own) for own in masks]
    first = torch.tensor([0, *counts[:-1]], device=object_index.device).cumsum(0)
    target_index = object_index + first[image_index]
    # What is looked at of each mask: from the least x1, y1 to the largest x2, y2.
    place = target_index[:, None].expand(-1, 2)
    low = windows.new_full((sum(counts), 2), max(psi.shape[2:]))
    low = low.scatter_reduce(0, place, windows[:, :2], "amin")
    high = torch.zeros_like(low).scatter_reduce(0, place, windows[:, 2:], "amax")
    looked_at = torch.cat([low, high], dim=1).split(counts)
    size = tuple(psi.shape[2:])
    targets = [mask_targets(m, size, strides, windows=w) for m, w in zip(masks, looked_at)]
    return ops.mask_ohem_loss(
        psi,
        phi,
        image_index,
        windows,
        torch.cat(targets),
        target_index,
        negatives_per_positive,
    )


def object_losses_at_pixels(
    psi: Tensor,
    phi: Tensor,
    image_index: Tensor,
    windows: Tensor,
    masks: Sequence[Tensor],
    object_index: Tensor,
    strides: tuple[float, float],
    negatives_per_positive: float | None,
) -> Tensor:
    """:func:`rdsnet.ops.mask_ohem_loss_at_pixels` of every object, (N,).

    Arguments as in :func:`object_losses`, but windows are in pixels of the network's input.
    """
    taps_y, taps_x = (
        resize_taps(round(cells * stride), round(cells * stride), cells, stride, device=psi.device)
        for cells, stride in zip(psi.shape[2:], strides)
    )
    return ops.mask_ohem_loss_at_pixels(
        psi,
        phi,
        image_index,
        windows,
        masks,
        object_index,
        taps_y,
        taps_x,
        negatives_per_positive,
    )
