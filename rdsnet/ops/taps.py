"""From the grid to the output, one axis at a time.

Bilinear interpolation is separable and linear, so any chain of bilinear resizes between the
pixel representations and the output image is, per axis, one table: for every output pixel the
first grid cell it looks at and the weights of that cell and its two successors. The table is
made once per image and axis and serves every object.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

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
