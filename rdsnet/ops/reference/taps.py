"""Bilinear interpolation along one axis, as taps."""

from __future__ import annotations

import torch

from rdsnet.ops.taps import Taps


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
    position = (centres * (image / output / stride) - 0.5).clamp_(0, grid - 1)
    first = position.floor()
    fraction = position - first
    weights = torch.stack([1 - fraction, fraction, torch.zeros_like(fraction)], dim=1)
    return Taps(first.long(), weights.to(dtype))
