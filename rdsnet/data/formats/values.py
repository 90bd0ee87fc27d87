"""Values of foreign files, of which nothing is taken for granted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rdsnet.data.ids import is_count, plain_number, whole_number

_LARGEST = 1e300
# What an image may have, so that its masks fit into memory whatever a file declares.
_MOST_PIXELS, _LONGEST_SIDE = 1 << 30, 1_000_000


def objects_in(value: Any) -> list[dict]:
    """The json objects in a list, or among the values of an object."""
    values = value.values() if isinstance(value, dict) else value
    return [v for v in values if isinstance(v, dict)] if isinstance(values, Iterable) else []


def object_at(value: Any, *keys: str) -> dict:
    """The json object under these keys, one inside the other; {} where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def numbers(*values: Any) -> list[float] | None:
    """All of them as finite numbers; None where one is none."""
    found = [plain_number(value) for value in values]
    if any(value is None or not abs(value) < _LARGEST for value in found):
        return None
    return [float(value) for value in found]


def label_in(value: Any) -> str | None:
    """The name of a class: text, or a number as text; None where it is empty or something else."""
    text = str(value).strip() if type(value) in (str, int, float) else ""
    return text or None


def points_in(value: Any) -> list[list[float]] | None:
    """A list of points [x, y] or [x, y, z] as [x, y] each; None where it is something else."""
    if not isinstance(value, list):
        return None
    points = [numbers(*v[:2]) if isinstance(v, list) and len(v) >= 2 else None for v in value]
    return None if None in points else points


def size_in(height: Any, width: Any) -> tuple[int, int] | None:
    """Height and width of an image as whole numbers; None where they can be none."""
    size = whole_number(height), whole_number(width)
    if not all(is_count(side) and side <= _LONGEST_SIDE for side in size):
        return None
    return size if size[0] * size[1] <= _MOST_PIXELS else None
