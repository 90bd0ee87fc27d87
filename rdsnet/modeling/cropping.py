"""Expanded cropping (paper, Sec. 3.2): masks stay near their boxes, but do not hang on them.

Pixels outside the expanded box of an object are background at inference and take no part in the
loss in training. Expanding by 1.5 in training shows the model enough background; expanding by 1.2
at inference lets a mask reach beyond a box that is too tight.

The pixels of an expanded box are its *window*: :func:`rdsnet.ops.expanded_windows`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from rdsnet.ops import expanded_windows

__all__ = ["expanded_windows", "training_windows"]


def training_windows(
    boxes: Tensor,
    image_index: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    expand: float,
    strides: tuple[float, float],
) -> Tensor:
    """Windows on a grid of the batch's images around boxes given in image pixels.

    A window ends where its own image ends, not where the batch's padding does, so that the loss of
    an image does not depend on the images that it shares a batch with.

    Args:
        boxes: (N, 4) ground-truth boxes, continuous coordinates, pixels of the network's input.
        image_index: (N,) int64, image of each box.
        image_sizes: (H, W) of every image of the batch before padding.
        expand: factor on width and height.
        strides: image pixels per cell of the grid, vertically and horizontally. (1, 1): windows in
            pixels.

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
