"""The definition of the ops in PyTorch: what the compiled kernels must compute.

Softmax over background and foreground is a sigmoid of their difference, so an object meets the
pixels through one vector, ``phi[:, 1] - phi[:, 0]``, and everything here works on the logit
``z = (phi_fg - phi_bg) . psi`` (Eq. 1 of the paper: M_o = softmax(psi * phi), foreground channel =
sigmoid(z)). Nothing is computed outside an object's window.

Shapes: B images, N objects, D representation dimensions, (h, w) feature grid, (H, W) output.
This path runs when no compiled op is there. Export, whose graph has no loop over windows, computes
whole maps by the same identities (rdsnet/export/graph.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rdsnet.ops.masks import CompactMasks, run_lengths_from_window
from rdsnet.ops.taps import NUM_TAPS, Taps

TILE = 96
"""Cells along either side of a tile of the grid: logits are computed tile by tile."""


def window_areas(windows: Tensor) -> Tensor:
    """Pixels of each window (N, 4); reversed windows are empty."""
    sides = (windows[:, 2:] - windows[:, :2]).clamp(min=0)
    return sides[:, 0] * sides[:, 1]


class _Tile(NamedTuple):
    """A rectangle of the grid of one image, and the objects whose windows reach into it."""

    image: int
    x1: int
    y1: int
    x2: int
    y2: int
    objects: list[int]

    def of(self, maps: Tensor) -> Tensor:
        """The view (D, rows, columns) of maps (B, D, h, w)."""
        return maps[self.image, :, self.y1 : self.y2, self.x1 : self.x2]


def _tiles(images: list[int], windows: list[list[int]], height: int, width: int) -> Iterator[_Tile]:
    """All tiles of TILE x TILE cells (fewer at the border) that a window reaches into."""
    objects: dict[tuple[int, int, int], list[int]] = {}
    for n, (b, (x1, y1, x2, y2)) in enumerate(zip(images, windows)):
        if x2 > x1 and y2 > y1:
            for top in range(y1 // TILE * TILE, y2, TILE):
                for left in range(x1 // TILE * TILE, x2, TILE):
                    objects.setdefault((b, top, left), []).append(n)
    for (b, top, left), own in objects.items():
        yield _Tile(b, left, top, min(left + TILE, width), min(top + TILE, height), own)


def _shared_parts(
    tile: _Tile, values: Tensor, maps: list[Tensor], windows: list[list[int]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Per object of a tile the part that its window shares with it: as a view of its values in the
    tile (objects, rows, columns), and of its map (rows of the window, columns of the window).
    """
    for n, own in zip(tile.objects, values):
        left, top, right, bottom = windows[n]
        x1, y1 = max(tile.x1, left), max(tile.y1, top)
        x2, y2 = min(tile.x2, right), min(tile.y2, bottom)
        yield (
            own[y1 - tile.y1 : y2 - tile.y1, x1 - tile.x1 : x2 - tile.x1],
            maps[n][y1 - top : y2 - top, x1 - left : x2 - left],
        )


def _unpacked(packed: Tensor, windows: list[list[int]]) -> list[Tensor]:
    """Views (rows, columns) of the windows' packed pixels."""
    sides = [(max(y2 - y1, 0), max(x2 - x1, 0)) for x1, y1, x2, y2 in windows]
    areas = [rows * columns for rows, columns in sides]
    return [own.view(side) for own, side in zip(packed.split(areas), sides)]


class _WindowedProducts(torch.autograd.Function):
    """``delta[n] . psi[image_index[n]]`` at the pixels of window n, packed row by row.

    One matrix product per tile of the grid serves all objects that look at it. Autograd through
    slices would allocate a gradient of the size of psi for every object; here all objects add into
    one.
    """

    @staticmethod
    def forward(ctx, psi: Tensor, delta: Tensor, images: list[int], windows: list[list[int]]):
        ctx.save_for_backward(psi, delta)
        ctx.images, ctx.windows = images, windows
        areas = (max(x2 - x1, 0) * max(y2 - y1, 0) for x1, y1, x2, y2 in windows)
        logits = psi.new_empty(sum(areas))
        maps = _unpacked(logits, windows)
        for tile in _tiles(images, windows, *psi.shape[2:]):
            pixels = tile.of(psi)
            products = (delta[tile.objects] @ pixels.flatten(1)).view(-1, *pixels.shape[1:])
            for product, own in _shared_parts(tile, products, maps, windows):
                own.copy_(product)
        return logits

    @staticmethod
    def backward(ctx, grad: Tensor):
        psi, delta = ctx.saved_tensors
        maps = _unpacked(grad, ctx.windows)
        gradients = _gradients_by_tiles(psi, delta, ctx.images, ctx.windows, maps)
        # A tile has zeros outside of an object's window. Where they met infinity or NaN, in psi or
        # in delta, the products are NaN instead of 0.
        if not all(numbers.isfinite().all() for numbers in (delta, gradients[1])):
            gradients = _gradients_by_objects(psi, delta, ctx.images, ctx.windows, maps)
        return *gradients, None, None


def _gradients_by_tiles(
    psi: Tensor, delta: Tensor, images: list[int], windows: list[list[int]], maps: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradients by psi and delta for those by the logits, one map per window."""
    grad_psi, grad_delta = torch.zeros_like(psi), torch.zeros_like(delta)
    for tile in _tiles(images, windows, *psi.shape[2:]):
        pixels = tile.of(psi)
        grads = psi.new_zeros(len(tile.objects), *pixels.shape[1:])
        for own_grad, own in _shared_parts(tile, grads, maps, windows):
            own_grad.copy_(own)
        grads = grads.flatten(1)
        grad_delta[tile.objects] += grads @ pixels.flatten(1).t()
        tile.of(grad_psi).copy_((delta[tile.objects].t() @ grads).view(pixels.shape))
    return grad_psi, grad_delta


def _gradients_by_objects(
    psi: Tensor, delta: Tensor, images: list[int], windows: list[list[int]], maps: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """The same without a look at anything outside of an object's window; slower."""
    grad_psi, grad_delta = torch.zeros_like(psi), torch.zeros_like(delta)
    for n, (b, (x1, y1, x2, y2)) in enumerate(zip(images, windows)):
        grad_delta[n] = (psi[b, :, y1:y2, x1:x2] * maps[n]).sum((1, 2))
        grad_psi[b, :, y1:y2, x1:x2] += delta[n, :, None, None] * maps[n]
    return grad_psi, grad_delta


def correlate(
    psi: Tensor, phi: Tensor, image_index: Tensor, windows: Tensor
) -> tuple[Tensor, Tensor]:
    """See :func:`rdsnet.ops.correlate`."""
    dtype = torch.promote_types(psi.dtype, phi.dtype)
    if dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float32
    height, width = psi.shape[-2:]
    limits = windows.new_tensor([width, height, width, height])
    windows = torch.minimum(windows.clamp(min=0), limits)
    areas = window_areas(windows)
    offsets = torch.cat([areas.new_zeros(1), areas.cumsum(0)])
    delta = phi[:, 1].to(dtype) - phi[:, 0].to(dtype)
    # Autocast would do the products in half precision, and mix both in the backward pass.
    with torch.autocast(psi.device.type, enabled=False):
        logits = _WindowedProducts.apply(
            psi.to(dtype), delta, image_index.tolist(), windows.tolist()
        )
    return logits, offsets


def windows_of(maps: Tensor, index: list[int], windows: list[list[int]]) -> Tensor:
    """Pixels of ``maps[index[n]]`` inside window n, packed row by row like the logits."""
    pieces = [maps[m, y1:y2, x1:x2].flatten() for m, (x1, y1, x2, y2) in zip(index, windows)]
    return torch.cat(pieces) if pieces else maps.new_zeros(0)


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
    height, width = psi.shape[-2:]
    limits = windows.new_tensor([width, height, width, height])
    windows = torch.minimum(windows.clamp(min=0), limits)
    logits, offsets = correlate(psi, phi, image_index, windows)
    foreground = windows_of(targets, target_index.tolist(), windows.tolist()) > 0
    return _mined_losses(logits, foreground, offsets, negatives_per_positive)


def _mined_losses(
    logits: Tensor, foreground: Tensor, offsets: Tensor, negatives_per_positive: float | None
) -> Tensor:
    """Losses (N,) of objects that own ``offsets[n]:offsets[n + 1]`` of logits and foreground."""
    # Two-class cross-entropy on softmax(bg, fg): softplus of the logit with the wrong sign.
    losses = F.softplus(torch.where(foreground, -logits, logits))
    kept = foreground if negatives_per_positive is not None else torch.ones_like(foreground)
    if negatives_per_positive is not None:
        hardest = hardest_negatives(logits.detach(), foreground, offsets, negatives_per_positive)
        kept = kept.clone()
        kept[hardest] = True
    count = len(offsets) - 1
    objects = torch.repeat_interleave(torch.arange(count, device=logits.device), offsets.diff())
    total = losses.new_zeros(count).index_add(0, objects, losses * kept)
    num_kept = F.pad(kept.cumsum(0), (1, 0))[offsets].diff()
    return total / (num_kept + 1)


def hardest_negatives(
    logits: Tensor, foreground: Tensor, offsets: Tensor, negatives_per_positive: float
) -> Tensor:
    """Places (in the packed pixels) of each object's hardest background pixels.

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


def _interpolate(grid: Tensor, first: Tensor, weights: Tensor) -> Tensor:
    """Apply taps along the first axis of ``grid`` (cells, columns) -> (output, columns)."""
    last, weights = grid.shape[0] - 1, weights.to(grid.dtype)
    return sum(
        weights[:, k, None] * grid.index_select(0, (first + k).clamp(max=last))
        for k in range(NUM_TAPS)
    )


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
    cells = cells_of(windows, taps_y, taps_x, psi.shape[2:])
    grid_logits, grid_offsets = correlate(psi, phi, image_index, cells)

    pixels, foreground = [grid_logits[:0]], [grid_logits.new_zeros(0, dtype=torch.bool)]
    patches = grid_logits.split(grid_offsets.diff().tolist())
    places = zip(image_index.tolist(), object_index.tolist(), windows.tolist(), cells.tolist())
    for patch, (b, m, (x1, y1, x2, y2), (left, top, right, bottom)) in zip(patches, places):
        if x2 > x1 and y2 > y1:
            patch = patch.view(bottom - top, right - left)
            rows = _interpolate(patch, taps_y.first[y1:y2] - top, taps_y.weights[y1:y2])
            columns = _interpolate(rows.t(), taps_x.first[x1:x2] - left, taps_x.weights[x1:x2])
            pixels.append(columns.t().flatten())
            foreground.append(masks[b][m, y1:y2, x1:x2].flatten() > 0)
    areas = window_areas(windows)
    offsets = torch.cat([areas.new_zeros(1), areas.cumsum(0)])
    return _mined_losses(torch.cat(pixels), torch.cat(foreground), offsets, negatives_per_positive)


def cells_of(windows: Tensor, taps_y: Taps, taps_x: Taps, size: tuple[int, int]) -> Tensor:
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


def assemble_masks(
    psi: Tensor, phi: Tensor, windows: Tensor, taps_y: Taps, taps_x: Taps, threshold: float
) -> CompactMasks:
    """See :func:`rdsnet.ops.assemble_masks`."""
    size = (len(taps_y.first), len(taps_x.first))
    height, width = size
    num_objects, device = len(windows), psi.device
    dtype = torch.float64 if psi.dtype == torch.float64 else torch.float32
    windows = torch.minimum(
        windows.clamp(min=0), windows.new_tensor([width, height, width, height])
    )
    delta = phi[:, 1].to(dtype) - phi[:, 0].to(dtype)
    weights_y, weights_x = taps_y.weights.to(dtype), taps_x.weights.to(dtype)
    first_y, first_x = taps_y.first.tolist(), taps_x.first.tolist()
    logit_threshold = math.log(threshold / (1 - threshold))

    areas = torch.zeros(num_objects, dtype=torch.int64, device=device)
    row_maxima = torch.zeros(num_objects, height, dtype=dtype, device=device)
    column_maxima = torch.zeros(num_objects, width, dtype=dtype, device=device)
    runs = []
    for n, (x1, y1, x2, y2) in enumerate(windows.tolist()):
        if x2 <= x1 or y2 <= y1:
            runs.append(areas.new_full((1,), height * width))
            continue
        # The patch of the grid that the window looks at; correlation commutes with interpolation.
        top, bottom = min(first_y[y1:y2]), max(first_y[y1:y2]) + NUM_TAPS
        left, right = min(first_x[x1:x2]), max(first_x[x1:x2]) + NUM_TAPS
        patch = psi[:, top:bottom, left:right].to(dtype)
        with torch.autocast(device.type, enabled=False):
            patch = (delta[n] @ patch.flatten(1)).view(patch.shape[1:])
        rows = _interpolate(patch, taps_y.first[y1:y2] - top, weights_y[y1:y2])
        logits = _interpolate(rows.t(), taps_x.first[x1:x2] - left, weights_x[x1:x2]).t()
        # sigmoid(z) > t is z > logit(t), and the sigmoid of a maximum is the maximum of sigmoids.
        bits = logits > logit_threshold
        areas[n] = bits.sum()
        row_maxima[n, y1:y2] = logits.amax(1).sigmoid()
        column_maxima[n, x1:x2] = logits.amax(0).sigmoid()
        runs.append(run_lengths_from_window(bits, (x1, y1, x2, y2), size))
    lengths = areas.new_tensor([len(run) for run in runs])
    return CompactMasks(
        size,
        windows,
        areas,
        row_maxima,
        column_maxima,
        torch.cat(runs) if runs else areas.new_zeros(0),
        torch.cat([areas.new_zeros(1), lengths.cumsum(0)]),
    )
