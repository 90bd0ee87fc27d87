"""The forms in which exporters write a segmentation, and what each can only mean.

COCO's own are a list of polygons [[x1, y1, x2, y2, ...], ...] and RLE. Others write one polygon
without the list around it, points [x, y] or {"x": x, "y": y} in place of running numbers (as
GeoJSON does), lists around lists, and numbers as text. As long as every innermost list is either a
point or a polygon, there is one way to read them: every ring is a polygon of the object.
(What looks like two flat polygons of one point each is a list of points.)
"""

from __future__ import annotations

from itertools import chain

from rdsnet.data.ids import plain_number, whole_number

# Lists inside of each other: GeoJSON's MultiPolygon has four.
_MOST_NESTED = 6


def normal_segmentation(value: object) -> tuple[list | dict, str] | None:
    """COCO's own form of a segmentation in another form, and what that was.

    Args:
        value: what an annotation has as ``segmentation``.

    Returns:
        Polygons or RLE, and the form that was given as a person would write it. None where the form
        is COCO's own already, or has no meaning beyond doubt. Whether RLE fits its image, and
        coordinates are finite, is not looked at.
    """
    if isinstance(value, list):
        if not value or all(map(_is_plain_polygon, value)) and not _are_pairs(value):
            return None
        if len(value) == 1 and _is_rle(value[0]):
            return _normal_rle(value[0]) or value[0], "[RLE]"
        rings = _rings(value)
        if rings is None or rings == value:
            return None
        are_whole = all(len(ring) % 2 == 0 for ring in rings)
        has_polygon = any(len(ring) >= 6 for ring in rings)
        return (rings, _form(value)) if are_whole and has_polygon else None
    if isinstance(value, dict) and (rle := _normal_rle(value)):
        return rle, "RLE with floats or text as numbers"
    return None


def _normal_rle(rle: dict) -> dict | None:
    """RLE with integers in place of floats and text that say one; None where nothing changes."""
    changed = {}
    for key in ("size", "counts"):
        given = rle.get(key)
        if isinstance(given, list) and not all(type(number) is int for number in given):
            whole = [whole_number(number) for number in given]
            if None not in whole:
                changed[key] = whole
    return {**rle, **changed} if changed else None


def _is_plain_polygon(value: object) -> bool:
    """Whether a value is a list of nothing but numbers."""
    return type(value) is list and set(map(type, value)) <= {int, float}


def _is_rle(value: object) -> bool:
    return isinstance(value, dict) and {"size", "counts"} <= value.keys()


def _rings(value: object, depth: int = 0) -> list[list[float]] | None:
    """Every polygon in lists inside of each other; None where an innermost list may be anything."""
    if not isinstance(value, list) or depth > _MOST_NESTED:
        return None
    if not value or plain_number(value[0]) is not None:
        numbers = [plain_number(v) for v in value]
        return None if None in numbers else [numbers]
    if _are_pairs(value):
        points = [_point(v) for v in value]
        if None not in points:
            return [list(chain.from_iterable(points))]
    rings = [_rings(v, depth + 1) for v in value]
    return None if None in rings else list(chain.from_iterable(rings))


def _are_pairs(values: list) -> bool:
    return all(isinstance(value, (list, dict)) and len(value) == 2 for value in values)


def _point(value: object) -> tuple[float, float] | None:
    if isinstance(value, dict) and value.keys() == {"x", "y"}:
        value = [value["x"], value["y"]]
    if not isinstance(value, list) or len(value) != 2:
        return None
    x, y = map(plain_number, value)
    return None if x is None or y is None else (x, y)


def _form(value: list) -> str:
    """[[[x, y], ...]] for a polygon of points in a list, and so on: after the first of everything.

    A list of points or numbers ends in dots; so does a list of several lists.
    """
    if not value or plain_number(value[0]) is not None:
        return '["x1", "y1", ...]' if str in map(type, value) else "[x1, y1, ...]"
    if _are_pairs(value) and _point(value[0]) is not None:
        return '[{"x": x, "y": y}, ...]' if isinstance(value[0], dict) else "[[x, y], ...]"
    return f"[{_form(value[0])}{', ...' if len(value) > 1 else ''}]"
