"""Ground-truth masks on the grid of the pixel representations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rdsnet.ops.reference.windows import clamped


def mask_targets(
    masks: Tensor,
    size: tuple[int, int],
    strides: tuple[float, float],
    *,
    windows: Tensor | None = None,
) -> Tensor:
    """See :func:`rdsnet.ops.mask_targets`."""
    stride = whole_stride(strides)
    if stride is None:
        return _interpolated(masks, size, strides)
    masks = masks.view(torch.uint8) if masks.dtype == torch.bool else masks.to(torch.uint8)
    targets = torch.zeros(len(masks), *size, dtype=torch.uint8, device=masks.device)
    if windows is None or not masks.is_cpu:
        _write_votes(masks, stride, targets)
        return targets
    # Few cells rather than few calls. A GPU would rather have it the other way round.
    for mask, target, window in zip(masks, targets, clamped(windows, size).tolist()):
        x1, y1, x2, y2 = window
        if x1 < x2 and y1 < y2:
            pixels = mask[stride * y1 : stride * y2, stride * x1 : stride * x2]
            _write_votes(pixels, stride, target[y1:y2, x1:x2])
    return targets


def whole_stride(strides: tuple[float, float]) -> int | None:
    """The number of pixels that all cells are wide and high; None if there is no such number."""
    vertical, horizontal = strides
    return int(vertical) if vertical == horizontal == int(vertical) else None


def _interpolated(masks: Tensor, size: tuple[int, int], strides: tuple[float, float]) -> Tensor:
    """Targets on cells of any size: bilinear interpolation as it is written."""
    input_size = [round(cells * stride) for cells, stride in zip(size, strides)]
    height, width = (min(a, b) for a, b in zip(input_size, masks.shape[1:]))
    covered = torch.zeros(len(masks), 1, *input_size, device=masks.device)
    covered[:, 0, :height, :width] = masks[:, :height, :width]
    at_centres = F.interpolate(covered, size, mode="bilinear", align_corners=False)
    return (at_centres[:, 0] > 0.5).to(torch.uint8)


def _write_votes(masks: Tensor, stride: int, targets: Tensor) -> None:
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


def windows_of_masks(
    windows: Tensor, target_index: Tensor, num_masks: int, size: tuple[int, int]
) -> Tensor:
    """What is looked at of each mask: the smallest window around those of its objects.

    Args:
        windows: (N, 4) int64, cells of a grid of ``size``.
        target_index: (N,) int64, the mask of each object.

    Returns:
        (num_masks, 4) int64; reversed where no object has the mask.
    """
    corner = target_index[:, None].expand(-1, 2)
    low = windows.new_full((num_masks, 2), max(size))
    low = low.scatter_reduce(0, corner, windows[:, :2], "amin")
    high = torch.zeros_like(low).scatter_reduce(0, corner, windows[:, 2:], "amax")
    return torch.cat([low, high], dim=1)
