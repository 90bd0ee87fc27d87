"""Masks of any number of objects in memory for one, in operations that ``torch.export`` can trace.

The same identities as in the definition (:mod:`rdsnet.ops.reference`): one product with
phi_fg - phi_bg on the grid, one bilinear interpolation to the output, comparison of logits. There a
loop in Python stays inside each object's window; here a loop in the graph (ONNX: ``Scan``) makes
one whole map after the other, of which the bits and the maxima are kept. So beside the masks
themselves a graph needs the memory of a few maps, however many objects there are.

Shapes: N objects, D representation dimensions, (h, w) grid, (H, W) output.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rdsnet.ops import Taps, exporting
from rdsnet.ops.reference.taps import interpolated
from rdsnet.ops.taps import NUM_TAPS


def masks_one_by_one(
    delta: Tensor,
    psi: Tensor,
    windows: Tensor,
    taps_y: Taps,
    taps_x: Taps,
    threshold: float,
    maxima_alone: bool = False,
) -> tuple[Tensor, ...]:
    """Masks inside windows, with their maxima, as :func:`rdsnet.ops.assemble_masks` has them.

    Args:
        delta: (N, D), phi_fg - phi_bg.
        psi: (D, h, w).
        windows: (N, 4) int64 in output pixels, within the output.
        taps_y, taps_x: from the grid to the H rows and the W columns of the output.
        threshold: probability above which a pixel is foreground.
        maxima_alone: leaves the masks out.

    Returns:
        the largest foreground probabilities of each column (N, W) and of each row (N, H), and the
        masks (N, H, W) bool.
    """
    rows, columns = (torch.arange(t.first.shape[0], device=psi.device) for t in (taps_y, taps_x))
    logit_threshold = math.log(threshold / (1 - threshold))

    def of_object(nothing: Tensor, own: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple]:
        delta, (x1, y1, x2, y2) = own[0], own[1].unbind()
        grid = torch.tensordot(delta, psi, 1)  # (h, w)
        logits = interpolated(interpolated(grid.t(), *taps_x).t(), *taps_y)  # (H, W)
        inside = ((rows >= y1) & (rows < y2))[:, None] & ((columns >= x1) & (columns < x2))
        logits = logits.masked_fill(~inside, -math.inf)
        # sigmoid(z) > t is z > logit(t); the sigmoid of a maximum is the maximum of sigmoids, and
        # that of -inf is 0.
        maxima = logits.amax(0).sigmoid(), logits.amax(1).sigmoid()
        masks = () if maxima_alone else (logits > logit_threshold,)
        return nothing.clone(), (*maxima, *masks)

    def of_none(delta: Tensor, windows: Tensor) -> tuple[Tensor, ...]:
        of_columns, of_rows = (delta[:, :1] * taps.weights[:, 0] for taps in (taps_x, taps_y))
        masks = () if maxima_alone else ((of_rows[:, :, None] * of_columns[:, None]) > 0,)
        return (of_columns, of_rows, *masks)

    if exporting():
        from torch._higher_order_ops.scan import scan

        def of_some(delta: Tensor, windows: Tensor) -> tuple[Tensor, ...]:
            # The tracer wants to know that there is one.
            all_rows = torch.arange(torch.sym_max(delta.shape[0], 1), device=delta.device)
            return scan(of_object, delta.new_zeros(1), (delta[all_rows], windows[all_rows]))[1]

        # onnxruntime refuses to loop over nothing.
        some = torch.full((), delta.shape[0], device=delta.device) > 0
        found = torch.cond(some, of_some, of_none, (delta, windows))
        for one_each in found:
            torch._check(one_each.shape[0] == delta.shape[0])
        return found
    if not len(delta):
        return of_none(delta, windows)
    each = [of_object(delta, own)[1] for own in zip(delta, windows)]
    return tuple(torch.stack(column) for column in zip(*each))


def logits_in_windows(
    delta: Tensor, psi: Tensor, windows: Tensor, taps_y: Taps, taps_x: Taps
) -> tuple[Tensor, Tensor]:
    """What masks are made from, on the grid: only the cells that a window looks at.

    Args: as of :func:`masks_one_by_one`.

    Returns:
        cells (N, 4) int64 x1, y1, x2, y2, end exclusive; and their foreground-minus-background
        logits (sum of areas,), object after object, row by row.
    """
    empty = (windows[:, 2:] <= windows[:, :2]).any(1)
    sides = []
    for taps, first, end, cells in (
        (taps_x, windows[:, 0], windows[:, 2], psi.shape[2]),
        (taps_y, windows[:, 1], windows[:, 3], psi.shape[1]),
    ):
        last = taps.first.shape[0] - 1
        beyond = taps.first[(end - 1).clamp(min=0)] + NUM_TAPS
        sides.append((taps.first[first.clamp(max=last)], beyond.clamp(max=cells)))
    (x1, x2), (y1, y2) = sides
    cells = torch.stack([x1, y1, x2, y2], dim=1).masked_fill(empty[:, None], 0)
    logits = (delta @ psi.flatten(1)).view(-1, *psi.shape[1:])
    return cells, logits.masked_select(inside(cells, psi.shape[1:]))


def inside(windows: Tensor, size: tuple[int, int]) -> Tensor:
    """Which pixels of (H, W) = ``size`` lie in the windows (N, 4): (N, H, W) bool."""
    x1, y1, x2, y2 = windows[:, :, None].unbind(1)
    row = torch.arange(size[0], device=windows.device)
    column = torch.arange(size[1], device=windows.device)
    in_rows = (row >= y1) & (row < y2)
    in_columns = (column >= x1) & (column < x2)
    return in_rows[:, :, None] & in_columns[:, None, :]
