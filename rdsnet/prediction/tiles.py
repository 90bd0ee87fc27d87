"""Tiles of a large image, and which of them an object belongs to.

The image is cut into *cores*, which do not overlap and leave nothing out. The model sees a core
with a margin around it, the *window*. An object belongs to the tile whose core holds the centre of
its box. What lies near the border of two cores is seen by both tiles, and not to the last bit
alike: both keep it, and of two with the same pixels one is dropped (:class:`Seams`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Instances
from torch import Tensor

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels, end exclusive."""

# How far the centres of an object may be apart in two tiles: pixels, and a share of its longer
# side.
_LEAST_BAND, _BAND = 4.0, 0.1
# Detections of two tiles are one object when their masks share more than this of their union.
SAME = 0.5


@dataclass(frozen=True)
class Tile:
    """A tile of an image, in its pixels.

    Attributes:
        core: what belongs to this tile alone.
        window: what the model sees.
        size: (H, W) of the image.
    """

    core: Box
    window: Box
    size: tuple[int, int]

    @property
    def is_last_of_row(self) -> bool:
        return self.core[2] == self.size[1]


def tile_grid(size: tuple[int, int], side: int, overlap: int, unit: int) -> list[Tile]:
    """The tiles of an image, row by row.

    Args:
        size: (H, W) of the image.
        side: of the windows at most, pixels; at least ``overlap + unit`` all the same.
        overlap: of neighbouring windows, pixels, a multiple of ``unit``. Their cores meet in its
            middle.
        unit: pixels. All windows begin at multiples of it, so that the cells of a tile lie where
            those of the whole image would.
    """
    return [
        Tile((left, top, right, bottom), (x1, y1, x2, y2), size)
        for (top, bottom), (y1, y2) in _cuts(size[0], side, overlap, unit)
        for (left, right), (x1, x2) in _cuts(size[1], side, overlap, unit)
    ]


def _cuts(
    length: int, side: int, overlap: int, unit: int
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Beginnings and ends of cores and of windows along an axis, of about equal length."""
    if length <= max(side, overlap + unit):
        return [((0, length), (0, length))]
    longest = max((side - overlap) // unit, 1) * unit
    count = -(-(length - overlap) // longest)
    step = -(-(length - overlap) // (count * unit)) * unit
    starts = range(0, length - overlap, step)
    borders = [0, *(start + overlap // 2 for start in starts[1:]), length]
    windows = [(start, min(start + step + overlap, length)) for start in starts]
    return list(zip(zip(borders, borders[1:]), windows))


def spread_windows(size: tuple[int, int], side: int, count: int, unit: int) -> list[Box]:
    """About ``count`` windows of one size all over an image, each at random in a field of its own.

    They are the same for every image of a size.

    Args:
        size: (H, W) of the image.
        side: of the windows, pixels; less where the image has less.
        count: at least so many, and less than a row or column of them more.
        unit: pixels. Windows begin at multiples of it.
    """
    height, width = size
    rows = max(round((count * height / width) ** 0.5), 1)
    columns = -(-count // rows)
    chance = np.random.default_rng(0)
    windows = []
    for field in range(rows * columns):
        row, column = divmod(field, columns)
        places = (row + chance.random()) / rows, (column + chance.random()) / columns
        y, x = (
            int(place * (max(length - side, 0) // unit + 1)) * unit
            for place, length in zip(places, size)
        )
        windows.append((x, y, min(x + side, width), min(y + side, height)))
    return windows


class Seams:
    """Takes the objects of one tile after the other, and gives every object once.

    Objects away from the borders of the cores are given at once; those on a border wait until no
    later tile can hold them too. So no more waits than what lies on the borders of one row of
    tiles.
    """

    def __init__(self) -> None:
        self._waiting: list[_OnBorder] = []

    def add(self, tile: Tile, found: Instances) -> Iterator[Instances]:
        """The objects of a tile, in pixels of the image; gives those that are decided.

        Tiles come in the order of :func:`tile_grid`.
        """
        boxes = found.pred_boxes.tensor
        sides = (boxes[:, 2:] - boxes[:, :2]).amax(1)
        outside = _outside(found.pred_boxes.get_centers(), tile)
        near = outside <= (sides * _BAND).clamp(min=_LEAST_BAND)
        found, sides, outside = found[near], sides[near], outside[near]
        on_border = _on_border(found.pred_boxes.tensor, sides / 2 + _LEAST_BAND, tile)
        if not on_border.all():
            yield found[~on_border]
        for n in on_border.nonzero()[:, 0].tolist():
            self._waiting.append(_OnBorder(tile, found[n], float(outside[n]) > 0))
        yield from self.skip(tile)

    def skip(self, tile: Tile) -> Iterator[Instances]:
        """A tile without anything, in its place in the order; gives what is decided by then."""
        if tile.is_last_of_row:
            yield from self._decide(tile)

    def _decide(self, tile: Tile) -> Iterator[Instances]:
        """What no row of tiles below that of ``tile`` can see."""
        below = tile.core[3]
        ready, self._waiting = self._waiting, []
        if below < tile.size[0]:
            self._waiting = [one for one in ready if one.reaches(below)]
            ready = [one for one in ready if not one.reaches(below)]
        kept = _without_doubles(ready)
        if kept:
            yield Instances.cat([one.found for one in kept])


class _OnBorder:
    """An object on the border of its tile's core."""

    def __init__(self, tile: Tile, found: Instances, is_outside: bool) -> None:
        self.tile, self.found, self.is_outside = tile, found, is_outside
        self.box = found.pred_boxes.tensor[0].tolist()
        self.score, self.category = float(found.scores), int(found.pred_classes)
        self.rle = found.pred_masks.rle()[0]

    def order(self) -> tuple:
        """Which of two is kept: the one whose centre is in its own core, then the surer one."""
        return self.is_outside, -self.score, self.box

    def reaches(self, y: float) -> bool:
        x1, y1, x2, y2 = self.box
        return y2 + max(x2 - x1, y2 - y1) / 2 + _LEAST_BAND >= y

    def is_same(self, other: _OnBorder) -> bool:
        """Whether another tile has seen this object."""
        return (
            self.tile is not other.tile
            and self.category == other.category
            and mask_util.iou([self.rle], [other.rle], [0])[0, 0] > SAME
        )


def _without_doubles(objects: list[_OnBorder]) -> list[_OnBorder]:
    """Those that no better one is the same as; whatever order they come in."""
    objects = sorted(objects, key=_OnBorder.order)
    if not objects:
        return []
    boxes = torch.tensor([one.box for one in objects])
    dropped: set[int] = set()
    for better, worse in overlapping(boxes):
        if better not in dropped and worse not in dropped:
            if objects[better].is_same(objects[worse]):
                dropped.add(worse)
    return [one for n, one in enumerate(objects) if n not in dropped]


def overlapping(boxes: Tensor) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of boxes that overlap, ordered.

    Boxes are swept from left to right, so that far ones are never compared.
    """
    order = boxes[:, 0].argsort(stable=True)
    x1, y1, x2, y2 = boxes[order].unbind(1)
    last = torch.searchsorted(x1.contiguous(), x2.contiguous())
    count = (last - torch.arange(len(boxes)) - 1).clamp(min=0)
    i = torch.repeat_interleave(torch.arange(len(boxes)), count)
    j = i + 1 + torch.arange(len(i)) - (count.cumsum(0) - count)[i]
    meets = (y1[i] < y2[j]) & (y1[j] < y2[i])
    pairs = torch.stack([order[i[meets]], order[j[meets]]], dim=1).sort(dim=1).values
    return sorted(map(tuple, pairs.tolist()))


def _outside(centers: Tensor, tile: Tile) -> Tensor:
    """How far centres (N, 2) are outside of the core; the image's own borders do not count."""
    x, y = centers.unbind(1)
    x1, y1, x2, y2 = _inner_borders(tile)
    return torch.stack([x1 - x, x - x2, y1 - y, y - y2]).amax(0)


def _on_border(boxes: Tensor, reach: Tensor, tile: Tile) -> Tensor:
    """Whether boxes (N, 4), grown by ``reach`` (N,), touch the border of the core."""
    x1, y1, x2, y2 = _inner_borders(tile)
    left, top, right, bottom = boxes.unbind(1)
    return (
        (left - reach <= x1) | (top - reach <= y1) | (right + reach >= x2) | (bottom + reach >= y2)
    )


def _inner_borders(tile: Tile) -> tuple[float, float, float, float]:
    """The core's borders, infinitely far where the image ends."""
    x1, y1, x2, y2 = tile.core
    height, width = tile.size
    far = float("inf")
    return x1 or -far, y1 or -far, x2 if x2 < width else far, y2 if y2 < height else far
