"""Expanded cropping (paper, Sec. 3.2): masks stay near their boxes, but do not hang on them.

Pixels outside the expanded box of an object are background at inference and take no part in the
loss in training. Expanding by 1.5 in training shows the model enough background; expanding by 1.2
at inference lets a mask reach beyond a box that is too tight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rdsnet.ops import compiled


def expanded_windows(
    boxes: Tensor,
    expand: float,
    size: tuple[int, int] | Sequence[tuple[int, int]],
    image_index: Tensor | None = None,
) -> Tensor:
    """Windows of the pixels whose centres lie in the expanded boxes.

    A box grows by ``expand`` around its centre to X1, Y1, X2, Y2. Pixel i has its centre at
    i + 0.5, so the window is x1 = ceil(X1 - 0.5), x2 = ceil(X2 - 0.5), likewise y, clamped to the
    map.

    Args:
        boxes: (N, 4) x1, y1, x2, y2 in continuous coordinates, in pixels of the map.
        expand: factor on width and height (paper: 1.5 in training, 1.2 at inference).
        size: (H, W) of the map; where every image has a map of its own, a list of (H, W).
        image_index: (N,) int64, the image of each box, if size is a list.

    Returns:
        (N, 4) int64 x1, y1, x2, y2, end exclusive, within the map. A box that is reversed or
        not finite has an empty window.

    Raises:
        ValueError: if boxes has another shape or expand is not positive.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"expanded_windows: boxes must have shape (N, 4), got {tuple(boxes.shape)}"
        )
    if not expand > 0:
        raise ValueError(f"expanded_windows: expand must be positive, got {expand}")
    sizes = [size] if image_index is None else size
    if boxes.is_cpu and compiled.usable(boxes):
        flat = [side for size in sizes for side in size]
        boxes = boxes.detach() if boxes.requires_grad else boxes
        return torch.ops.rdsnet.expanded_windows(boxes, expand, flat, image_index)
    # float32 cannot tell half pixels apart far out; in float64 the rounding is never in doubt.
    low, high = boxes.double().split(2, dim=1)
    centre, half = (low + high) / 2, (high - low) * (expand / 2)
    corners = torch.cat([centre - half, centre + half], dim=1)
    invalid = ~torch.isfinite(corners).all(dim=1) | (high < low).any(dim=1)
    limits = corners.new_tensor([[width, height, width, height] for height, width in sizes])
    limits = limits[0] if image_index is None else limits[image_index]
    windows = torch.minimum((corners - 0.5).ceil().nan_to_num().clamp(min=0), limits).long()
    return windows.masked_fill(invalid[:, None], 0)
