"""The mask loss of every object, with online hard example mining (paper, Sec. 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rdsnet.ops.reference.correlation import correlate
from rdsnet.ops.reference.taps import interpolated
from rdsnet.ops.reference.windows import clamped, window_areas
from rdsnet.ops.taps import Taps


def mask_ohem_loss(
    psi: Tensor,
    phi: Tensor,
    image_index: Tensor,
    windows: Tensor,
    targets: Tensor,
    target_index: Tensor,
    negatives_per_positive: float | None,
) -> Tensor:
    """See :func:`rdsnet.ops.mask_ohem_loss`."""
    windows = clamped(windows, psi.shape[-2:])
    logits, offsets = correlate(psi, phi, image_index, windows)
    foreground = _windows_of(targets, target_index.tolist(), windows.tolist()) > 0
    return _mined_losses(logits, foreground, offsets, negatives_per_positive)


def mask_ohem_loss_at_pixels(
    psi: Tensor,
    phi: Tensor,
    image_index: Tensor,
    windows: Tensor,
    masks: Sequence[Tensor],
    object_index: Tensor,
    taps_y: Taps,
    taps_x: Taps,
    negatives_per_positive: float | None,
) -> Tensor:
    """See :func:`rdsnet.ops.mask_ohem_loss_at_pixels`."""
    # A window ends where its own mask does.
    output = len(taps_y.first), len(taps_x.first)
    sizes = [[min(pair) for pair in zip(own.shape[1:], output)] for own in masks]
    limits = windows.new_tensor([[width, height] * 2 for height, width in sizes])[image_index]
    windows = torch.minimum(windows.clamp(min=0), limits)
    cells = _cells_of(windows, taps_y, taps_x, psi.shape[2:])
    grid_logits, grid_offsets = correlate(psi, phi, image_index, cells)

    pixels, foreground = [grid_logits[:0]], [grid_logits.new_zeros(0, dtype=torch.bool)]
    patches = grid_logits.split(grid_offsets.diff().tolist())
    places = zip(image_index.tolist(), object_index.tolist(), windows.tolist(), cells.tolist())
    for patch, (b, m, (x1, y1, x2, y2), (left, top, right, bottom)) in zip(patches, places):
        if x2 > x1 and y2 > y1:
            patch = patch.view(bottom - top, right - left)
            rows = interpolated(patch, taps_y.first[y1:y2] - top, taps_y.weights[y1:y2])
            columns = interpolated(rows.t(), taps_x.first[x1:x2] - left, taps_x.weights[x1:x2])
            pixels.append(columns.t().flatten())
            foreground.append(masks[b][m, y1:y2, x1:x2].flatten() > 0)
    areas = window_areas(windows)
    offsets = torch.cat([areas.new_zeros(1), areas.cumsum(0)])
    return _mined_losses(torch.cat(pixels), torch.cat(foreground), offsets, negatives_per_positive)


def _cells_of(windows: Tensor, taps_y: Taps, taps_x: Taps, size: tuple[int, int]) -> Tensor:
    """The windows (N, 4) of a grid of ``size`` that windows (N, 4) of pixels look at.

    ``first`` of the taps must not decrease. Windows without pixels have no cells.
    """
    sides = []
    for axis, (taps, cells) in enumerate(((taps_x, size[1]), (taps_y, size[0]))):
        used = 2 + (taps.weights[:, 2] != 0).any()
        last = len(taps.first) - 1
        begin = taps.first[windows[:, axis].clamp(0, last)]
        end = taps.first[(windows[:, axis + 2] - 1).clamp(0, last)] + used
        sides += [begin, end.clamp(max=cells)]
    x1, x2, y1, y2 = sides
    return torch.stack([x1, y1, x2, y2], dim=1) * (window_areas(windows) > 0)[:, None]


def _mined_losses(
    logits: Tensor, foreground: Tensor, offsets: Tensor, negatives_per_positive: float | None
) -> Tensor:
    """Losses (N,) of objects that own ``offsets[n]:offsets[n + 1]`` of logits and foreground."""
    # Two-class cross-entropy on softmax(bg, fg): softplus of the logit with the wrong sign.
    losses = F.softplus(torch.where(foreground, -logits, logits))
    if negatives_per_positive is None:
        kept = torch.ones_like(foreground)
    else:
        kept = foreground.clone()
        kept[_hardest_negatives(logits.detach(), foreground, offsets, negatives_per_positive)] = (
            True
        )
    count = len(offsets) - 1
    objects = torch.repeat_interleave(torch.arange(count, device=logits.device), offsets.diff())
    total = losses.new_zeros(count).index_add(0, objects, losses * kept)
    num_kept = F.pad(kept.cumsum(0), (1, 0))[offsets].diff()
    return total / (num_kept + 1)


def _windows_of(maps: Tensor, index: list[int], windows: list[list[int]]) -> Tensor:
    """Pixels of ``maps[index[n]]`` inside window n, packed row by row like the logits."""
    pieces = [maps[m, y1:y2, x1:x2].flatten() for m, (x1, y1, x2, y2) in zip(index, windows)]
    return torch.cat(pieces) if pieces else maps.new_zeros(0)


def _hardest_negatives(
    logits: Tensor, foreground: Tensor, offsets: Tensor, negatives_per_positive: float
) -> Tensor:
    """Indices (into the packed pixels) of each object's hardest background pixels.

    Hardest means largest loss. The loss of a background pixel, softplus(z), grows with z, so the
    logits themselves are compared: far below 0 losses are all 0 in float32, logits still differ.
    """
    chosen = []
    bounds = offsets.tolist()
    for start, end in zip(bounds[:-1], bounds[1:]):
        positives = foreground[start:end]
        num_positives = int(positives.sum())
        num_negatives = min(
            int(num_positives * negatives_per_positive), end - start - num_positives
        )
        if num_negatives > 0:
            negatives = logits[start:end].masked_fill(positives, -math.inf)
            chosen.append(negatives.topk(num_negatives, sorted=False).indices + start)
    return torch.cat(chosen) if chosen else offsets.new_zeros(0)
