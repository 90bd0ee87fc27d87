"""Correlation (Eq. 1) inside the windows, and its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rdsnet.ops.reference.windows import clamped, window_areas

_TILE = 96
"""Cells along either side of a tile of the grid: logits are computed tile by tile."""


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
    """All tiles of ``_TILE`` x ``_TILE`` cells (fewer at the border) that a window reaches into."""
    objects: dict[tuple[int, int, int], list[int]] = {}
    for n, (b, (x1, y1, x2, y2)) in enumerate(zip(images, windows)):
        if x2 > x1 and y2 > y1:
            for top in range(y1 // _TILE * _TILE, y2, _TILE):
                for left in range(x1 // _TILE * _TILE, x2, _TILE):
                    objects.setdefault((b, top, left), []).append(n)
    for (b, top, left), own in objects.items():
        yield _Tile(b, left, top, min(left + _TILE, width), min(top + _TILE, height), own)


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
    windows = clamped(windows, psi.shape[-2:])
    areas = window_areas(windows)
    offsets = torch.cat([areas.new_zeros(1), areas.cumsum(0)])
    delta = phi[:, 1].to(dtype) - phi[:, 0].to(dtype)
    # Autocast would do the products in half precision, and mix both in the backward pass.
    with torch.autocast(psi.device.type, enabled=False):
        logits = _WindowedProducts.apply(
            psi.to(dtype), delta, image_index.tolist(), windows.tolist()
        )
    return logits, offsets
