"""From the feature grid to the output, one axis at a time.

Bilinear interpolation is separable and linear, so any chain of bilinear resizes between the
pixel representations and the output image is, per axis, one table: for every output pixel the
first grid cell it looks at and the weights of that cell and its two successors. The table is
made once per image and axis and serves every object.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rdsnet.ops import compiled

NUM_TAPS = 3


class Taps(NamedTuple):
    """A linear map from ``grid`` cells to ``output`` pixels along one axis.

    Output pixel ``o`` is ``sum_k weights[o, k] * grid[min(first[o] + k, len(grid) - 1)]``.

    Attributes:
        first: (output,) int64, the first grid cell of each output pixel.
        weights: (output, 3) float, the weights of cells ``first``, ``first + 1``, ``first + 2``.
    """

    first: Tensor
    weights: Tensor

    def to(self, *args, **kwargs) -> Taps:
        """Move to a device; a dtype applies to the weights alone."""
        weights = self.weights.to(*args, **kwargs)
        return Taps(self.first.to(weights.device), weights)


def resize_taps(
    output: int,
    image: int,
    grid: int,
    stride: float,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Taps:
    """Taps of the bilinear resize with half-pixel centres from end to end.

    Output pixel ``o`` looks at ``u = (o + 0.5) * image / output / stride - 0.5`` on the grid,
    clamped to ``[0, grid - 1]``, and interpolates linearly between ``floor(u)`` and
    ``floor(u) + 1``. The third weight is always 0 here; other conventions need it.

    Args:
        output: size of the output along this axis, pixels.
        image: size of the network's input image along this axis, before padding, pixels.
        grid: number of grid cells along this axis (the padded image divided by the stride).
        stride: pixels of the network's input per grid cell.

    Raises:
        ValueError: if a size is not positive.
    """
    for name, value in dict(output=output, image=image, grid=grid, stride=stride).items():
        if value <= 0:
            raise ValueError(f"resize_taps: {name} must be positive, got {value}")
    if torch.device(device or "cpu").type == "cpu" and dtype == torch.float32 and compiled.usable():
        return Taps(*torch.ops.rdsnet.resize_taps(output, image / output / stride, grid))
    centres = torch.arange(output, device=device, dtype=torch.float64) + 0.5
    position = (centres * (image / output / stride) - 0.5).clamp_(0, grid - 1)
    first = position.floor()
    fraction = position - first
    weights = torch.stack([1 - fraction, fraction, torch.zeros_like(fraction)], dim=1)
    return Taps(first.long(), weights.to(dtype))
