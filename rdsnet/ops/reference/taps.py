"""Bilinear interpolation along one axis, as taps."""

from __future__ import annotations

import torch
from torch import Tensor

from rdsnet.ops.sizes import as_vector
from rdsnet.ops.taps import NUM_TAPS, Taps


def resize_taps(
    output: int,
    image: int,
    grid: int,
    stride: float,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Taps:
    """See :func:`rdsnet.ops.resize_taps`."""
    centres = torch.arange(output, device=device, dtype=torch.float64) + 0.5
    of_image, of_output = as_vector([image, output], torch.float64, device)
    position = (centres * (of_image / of_output / stride) - 0.5).clamp_(0, grid - 1)
    first = position.floor()
    fraction = position - first
    weights = torch.stack([1 - fraction, fraction, torch.zeros_like(fraction)], dim=1)
    return Taps(first.long(), weights.to(dtype))


def interpolated(grid: Tensor, first: Tensor, weights: Tensor) -> Tensor:
    """Apply taps along the first axis of ``grid`` (cells, columns) -> (output, columns)."""
    last, weights = grid.shape[0] - 1, weights.to(grid.dtype)
    return sum(
        weights[:, k, None] * grid.index_select(0, (first + k).clamp(max=last))
        for k in range(NUM_TAPS)
    )
