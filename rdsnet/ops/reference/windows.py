"""Windows: the pixels that an object looks at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rdsnet.ops.sizes import as_vector


def expanded_windows(
    boxes: Tensor,
    expand: float,
    size: tuple[int, int] | Sequence[tuple[int, int]],
    image_index: Tensor | None = None,
) -> Tensor:
    """See :func:`rdsnet.ops.expanded_windows`."""
    # float32 cannot tell half pixels apart far out; in float64 the rounding is never in doubt.
    low, high = boxes.double().split(2, dim=1)
    centre, half = (low + high) / 2, (high - low) * (expand / 2)
    corners = torch.cat([centre - half, centre + half], dim=1)
    invalid = ~torch.isfinite(corners).all(dim=1) | (high < low).any(dim=1)
    sizes = [size] if image_index is None else size
    sides = [side for size in sizes for side in size[::-1]]
    limits = as_vector(sides, corners.dtype, corners.device).view(-1, 2).repeat(1, 2)
    limits = limits[0] if image_index is None else limits[image_index]
    windows = torch.minimum((corners - 0.5).ceil().nan_to_num().clamp(min=0), limits).long()
    return windows.masked_fill(invalid[:, None], 0)


def clamped(windows: Tensor, size: tuple[int, int]) -> Tensor:
    """Windows (N, 4) without what lies outside a map of ``size`` (H, W)."""
    height, width = size
    return torch.minimum(windows.clamp(min=0), windows.new_tensor([width, height, width, height]))


def window_areas(windows: Tensor) -> Tensor:
    """Pixels of each window (N, 4); reversed windows are empty."""
    sides = (windows[:, 2:] - windows[:, :2]).clamp(min=0)
    return sides[:, 0] * sides[:, 1]
