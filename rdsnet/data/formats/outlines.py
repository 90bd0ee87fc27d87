"""Shapes that tools draw, as COCO's polygons and RLE.

Coordinates are continuous pixels: column i reaches from x = i to i + 1. Polygons are [x1, y1, x2,
y2, ...]; RLE is compressed, of the whole image. Nothing is as large as the image here but what the
user's masks take themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pycocotools.mask as mask_util

from rdsnet.data.checks import polygon_problem

# A circle gets a point per pixel of its outline, within these limits.
_FEWEST_POINTS, _MOST_POINTS = 24, 360

Ring = list[float]


def flat(points: Iterable[Sequence[float]]) -> Ring:
    """[x1, y1, x2, y2, ...] of points [x, y]."""
    return [float(value) for x, y in points for value in (x, y)]


def rectangle(
    x: float, y: float, width: float, height: float, degrees: float = 0.0, *, around_corner=False
) -> Ring:
    """A rectangle, turned clockwise around its centre or its first corner."""
    corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    pivot = (x, y) if around_corner else (x + width / 2, y + height / 2)
    return _turned(corners, pivot, degrees) if degrees else flat(corners)


def ellipse(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0.0) -> Ring:
    """An ellipse around (x, y), turned clockwise."""
    length = 2 * math.pi * max(abs(radius_x), abs(radius_y))
    count = int(min(max(length, _FEWEST_POINTS), _MOST_POINTS))
    angles = np.linspace(0, 2 * math.pi, count, endpoint=False)
    points = np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1)
    return _turned(points.tolist(), (x, y), degrees) if degrees else flat(points.tolist())


def mask_rle(mask: np.ndarray, size: tuple[int, int], x: int = 0, y: int = 0) -> dict:
    """RLE of a mask that covers a part of the image.

    Args:
        mask: (h, w), nonzero = object.
        size: height and width of the image; what lies outside of it is cut off.
        x, y: the image's pixel that the mask begins at.
    """
    rows, columns = np.nonzero(mask)
    y, x = (min(max(v, -n), m) for v, n, m in zip((y, x), mask.shape, size))  # or far outside
    rows, columns = rows + y, columns + x
    inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
    return positions_rle(np.sort(columns[inside] * size[0] + rows[inside]), size)


def positions_rle(positions: np.ndarray, size: tuple[int, int]) -> dict:
    """RLE of pixels.

    Args:
        positions: (P,) their numbers in ascending order, counted column by column.
        size: height and width of the image.
    """
    first = np.flatnonzero(np.diff(positions, prepend=-2) > 1)
    last = np.append(first[1:], len(positions)) - 1
    begins, ends = positions[first], positions[last[: len(first)]] + 1
    borders = np.stack([begins, ends], axis=1).ravel()
    counts = np.diff(borders, prepend=0, append=size[0] * size[1]).tolist()
    return _compressed(mask_util.frPyObjects({"size": list(size), "counts": counts}, *size))


def rings_rle(parts: Sequence[Sequence[Ring]], size: tuple[int, int]) -> dict:
    """RLE of polygons with holes.

    Args:
        parts: per polygon its outline and its holes, each a usable polygon. A hole is cut out of
            its own polygon alone.
        size: height and width of the image.
    """
    points = np.concatenate([np.reshape(rings[0], (-1, 2)) for rings in parts])
    limit = np.array([size[1], size[0]])
    low = np.clip(np.floor(points.min(axis=0)).astype(int), 0, limit)
    high = np.clip(np.ceil(points.max(axis=0)).astype(int) + 1, low, limit)
    width, height = (high - low).tolist()
    if not width or not height:
        return positions_rle(np.zeros(0, dtype=int), size)
    mask = np.zeros((height, width), dtype=bool)
    for outline, *holes in parts:
        part = _drawn(outline, low, (height, width))
        for hole in holes:
            part &= ~_drawn(hole, low, (height, width))
        mask |= part
    return mask_rle(mask, size, *low.tolist())


def united(parts: Sequence[Ring | dict], size: tuple[int, int] | None) -> list[Ring] | dict:
    """One segmentation of the parts of an object: polygons, or RLE where one of them is RLE."""
    masks = [part for part in parts if isinstance(part, dict)]
    if not masks or size is None:
        return [part for part in parts if isinstance(part, list)]
    if len(parts) == 1:
        return masks[0]
    masks += [
        rings_rle([[part]], size)
        for part in parts
        if isinstance(part, list) and polygon_problem(part) is None
    ]
    return _compressed(mask_util.merge(masks))


def _drawn(ring: Ring, origin: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    moved = (np.reshape(ring, (-1, 2)) - origin).ravel().tolist()
    return mask_util.decode(mask_util.frPyObjects([moved], *size))[..., 0].astype(bool)


def _turned(points: Iterable[Sequence[float]], pivot: tuple[float, float], degrees: float) -> Ring:
    """Points turned clockwise, as it looks in an image, whose y axis points down."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    (a, b), moved = pivot, []
    for x, y in points:
        moved.append((a + (x - a) * cos - (y - b) * sin, b + (x - a) * sin + (y - b) * cos))
    return flat(moved)


def _compressed(rle: dict) -> dict:
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}  # as json has it
