"""Masks from the compact form of a file's results.

``docs/export.md`` has the same in numpy, for those who have not installed this package.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rdsnet.export.graph import CompactObjects, Objects
from rdsnet.ops import CompactMasks, Taps
from rdsnet.ops.masks import run_lengths_from_window
from rdsnet.ops.reference.taps import interpolated


def decoded(found: CompactObjects, threshold: float) -> CompactMasks:
    """The masks, without their maxima: MBRM, which asks for those, has run in the graph.

    Args:
        threshold: probability above which a pixel is foreground.
    """
    size = (len(found.row_cells), len(found.column_cells))
    logit_threshold = math.log(threshold / (1 - threshold))
    sides = found.cells[:, 2:] - found.cells[:, :2]
    patches = found.logits.split(sides.prod(1).tolist())
    areas, runs = [], []
    for patch, window, cells in zip(patches, found.windows.tolist(), found.cells.tolist()):
        (x1, y1, x2, y2), (left, top, right, bottom) = window, cells
        columns = Taps(found.column_cells[x1:x2] - left, found.column_weights[x1:x2])
        rows = Taps(found.row_cells[y1:y2] - top, found.row_weights[y1:y2])
        if not len(patch):
            areas.append(0)
            runs.append(torch.tensor([size[0] * size[1]]))
            continue
        patch = interpolated(patch.view(bottom - top, right - left), *rows)
        bits = interpolated(patch.t(), *columns).t() > logit_threshold
        areas.append(int(bits.sum()))
        runs.append(run_lengths_from_window(bits, tuple(window), size))
    lengths = torch.tensor([0, *map(len, runs)])
    return CompactMasks(
        size,
        found.windows,
        torch.tensor(areas, dtype=torch.int64),
        torch.zeros(len(runs), size[0]),
        torch.zeros(len(runs), size[1]),
        torch.cat(runs) if runs else lengths[:0],
        lengths.cumsum(0),
    )


def as_objects(found: tuple[Tensor, ...], threshold: float) -> Objects:
    """Either form with dense masks."""
    if len(found) == len(Objects._fields):
        return Objects(*found)
    found = CompactObjects(*found)
    return Objects(*found[:4], decoded(found, threshold).dense())
