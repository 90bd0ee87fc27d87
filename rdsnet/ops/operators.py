"""One function per operator: checks its arguments, then runs the kernel or the definition.

Nowhere else is decided which of the two it is. A kernel may serve part of what the definition does
(some dtypes, the CPU); the conditions stand in the function. The losses are in
:mod:`rdsnet.ops.losses`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rdsnet.ops import compiled, reference
from rdsnet.ops.arguments import (
    check_bounds,
    check_edges,
    check_index,
    check_representations,
    check_taps,
    check_windows,
)
from rdsnet.ops.masks import CompactMasks
from rdsnet.ops.reference.edges import PRIOR_CUT, PRIOR_REACH
from rdsnet.ops.taps import Taps


def correlate(
    psi: Tensor, phi: Tensor, image_index: Tensor, windows: Tensor
) -> tuple[Tensor, Tensor]:
    """Correlation (Eq. 1): foreground-minus-background logit of objects at their own pixels.

    sigmoid(logit) is the foreground channel of softmax(phi . psi).

    Args:
        psi: (B, D, h, w) pixel representations.
        phi: (N, 2, D) object representations.
        image_index: (N,) int64, the image that each object lies in.
        windows: (N, 4) integers, the pixels of the grid that each object looks at.

    Returns:
        logits (sum of window areas,), object after object, row by row, and offsets (N + 1,) int64.
        Half-precision input gives float32 logits. Differentiable in psi and phi; what lies outside
        an object's window has no part in its gradients, whatever it is.

    Raises:
        ValueError, TypeError: for arguments of another shape or kind.
    """
    name = "correlate"
    check_representations(name, psi, phi)
    check_index(name, "image_index", image_index, len(phi))
    check_windows(name, windows, len(phi))
    if compiled.usable(psi):
        return torch.ops.rdsnet.correlate(psi, phi, image_index, windows)
    check_bounds(name, "image_index", image_index, psi.shape[0])
    return reference.correlate(psi, phi, image_index, windows)


@torch.no_grad()
def assemble_masks(
    psi: Tensor, phi: Tensor, windows: Tensor, taps_y: Taps, taps_x: Taps, threshold: float = 0.4
) -> CompactMasks:
    """Masks of the objects of one image at the output resolution, inside their windows.

    Correlation, bilinear interpolation to the output and thresholding of the foreground
    probability; pixels outside a window are background.

    Args:
        psi: (D, h, w) pixel representations of the image.
        phi: (N, 2, D) representations of its objects.
        windows: (N, 4) integers in output pixels, end exclusive.
        taps_y, taps_x: the maps from the h rows and w columns of the grid to the H rows and W
            columns of the output (:func:`resize_taps`).
        threshold: a pixel is foreground when its probability is larger.

    Raises:
        ValueError, TypeError: for arguments of another shape or kind.
    """
    name = "assemble_masks"
    check_representations(name, psi, phi, batched=False)
    check_windows(name, windows, len(phi))
    check_taps(name, "taps_y", taps_y)
    check_taps(name, "taps_x", taps_x)
    if not 0 < threshold < 1:
        raise ValueError(f"{name}: threshold must lie between 0 and 1, got {threshold}")
    if compiled.usable(psi):
        results = torch.ops.rdsnet.assemble_masks(psi, phi, windows, *taps_y, *taps_x, threshold)
        return CompactMasks((len(taps_y.first), len(taps_x.first)), *results)
    check_bounds(name, "taps_y.first", taps_y.first, psi.shape[1])
    check_bounds(name, "taps_x.first", taps_x.first, psi.shape[2])
    return reference.assemble_masks(psi, phi, windows, taps_y, taps_x, threshold)


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
    return reference.resize_taps(output, image, grid, stride, device=device, dtype=dtype)


def expanded_windows(
    boxes: Tensor,
    expand: float,
    size: tuple[int, int] | Sequence[tuple[int, int]],
    image_index: Tensor | None = None,
) -> Tensor:
    """Windows of the pixels whose centres lie in the expanded boxes (paper, Sec. 3.2).

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
    if boxes.is_cpu and compiled.usable(boxes):
        flat = [side for size in ([size] if image_index is None else size) for side in size]
        boxes = boxes.detach() if boxes.requires_grad else boxes
        return torch.ops.rdsnet.expanded_windows(boxes, expand, flat, image_index)
    return reference.expanded_windows(boxes, expand, size, image_index)


def refine_edges(
    column_maxima: Tensor,
    row_maxima: Tensor,
    boxes: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    gamma: float,
    min_sigma: float,
    empty_threshold: float,
    readout: str = "argmax",
) -> Tensor:
    """Mask based boundary refinement (Eq. 2): every edge to where its posterior says it is.

    :class:`rdsnet.modeling.MBRM` has the formulas, the coordinates and the meaning of the keywords.

    Args:
        column_maxima: (N, W) largest foreground probability of each pixel column.
        row_maxima: (N, H) largest foreground probability of each pixel row.
        boxes: (N, 4) regressed boxes, output pixels, continuous coordinates.
        weight, bias: 2 s + 1 weights of the kernel for left and top edges, and one number.

    Returns:
        (N, 4) refined boxes. What the mask says nothing about stays as regressed: boxes of
        empty masks, edges too far outside the image for the prior to reach it, boxes that were
        reversed, and boxes that would be left without extent.

    Raises:
        ValueError: for maxima or boxes of another shape.
    """
    check_edges("refine_edges", column_maxima, row_maxima, boxes)
    single_on_cpu = all(
        x.is_cpu and x.dtype == torch.float32 for x in (column_maxima, row_maxima, boxes, weight)
    )
    if readout == "argmax" and single_on_cpu and compiled.usable(boxes):
        return torch.ops.rdsnet.refine_edges(
            column_maxima,
            row_maxima,
            boxes,
            weight,
            bias,
            gamma,
            min_sigma,
            math.log(PRIOR_CUT),
            PRIOR_REACH,
            empty_threshold,
        )
    return reference.refine_edges(
        column_maxima,
        row_maxima,
        boxes,
        weight,
        bias,
        gamma=gamma,
        min_sigma=min_sigma,
        empty_threshold=empty_threshold,
        readout=readout,
    )


def edge_log_posteriors(
    column_maxima: Tensor,
    row_maxima: Tensor,
    boxes: Tensor,
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    gamma: float,
    min_sigma: float,
    sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """log P(X = i | M') (Eq. 3) of the four edges at one given pixel i each.

    Differentiable in the kernel. Has a definition alone: a kernel is fitted once, in seconds.

    Args:
        column_maxima, row_maxima, boxes, weight, bias, gamma, min_sigma: as in
            :func:`refine_edges`.
        pixels: (N, 4) int64, the columns of left and right edges, the rows of top and bottom ones:
            x1, y1, x2, y2.
        sizes: (N, 2) height and width of each object's image, when maxima from different images
            are padded with zeros to a common (H, W). Default: (H, W) for all.

    Returns:
        (4, N) logarithms for left, top, right and bottom edges, and (4, N) bool: whether the prior
        reaches the pixel. Where it does not, the logarithm has no meaning.

    Raises:
        ValueError: for maxima or boxes of another shape.
    """
    check_edges("edge_log_posteriors", column_maxima, row_maxima, boxes)
    return reference.edge_log_posteriors(
        column_maxima,
        row_maxima,
        boxes,
        pixels,
        weight,
        bias,
        gamma=gamma,
        min_sigma=min_sigma,
        sizes=sizes,
    )
