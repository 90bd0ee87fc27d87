"""labelme's json, one per image: polygons, rectangles, circles and masks.

Shapes of one class with the same ``group_id`` are parts of one object. A mask is a PNG in base 64
that begins at the first of its two points. (Other programs write the same, such as AnyLabeling.)
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from typing import Any

import numpy as np
from PIL import Image

from rdsnet.data.findings import shortened
from rdsnet.data.formats.collecting import Collector, Photo, part_of
from rdsnet.data.formats.outlines import ellipse, flat, mask_rle, rectangle, united
from rdsnet.data.formats.source import Source
from rdsnet.data.formats.values import label_in, objects_in, points_in, size_in

NAME = "labelme json"
WHAT = "labelme: its json files, one per image, or a folder of them"
# What labelme's own tools take for no object.
_NO_CLASSES = ("__ignore__", "_background_")


def is_mine(source: Source) -> bool:
    return _is_labelme(source.json)


def read(sources: list[Source], given: Source, export: Collector) -> None:
    for source in sources:
        content = source.json
        source.release()
        if not _is_labelme(content):
            export.leave_out("json files of another format", source.path)
            continue
        size = size_in(content.get("imageHeight"), content.get("imageWidth"))
        part = part_of(source, given, with_name=False)
        name = str(content["imagePath"]).replace("\\", "/")
        photo = export.photo(name, source.folder, size, part)
        _read_shapes(content, photo, source, export)


def _is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and {"shapes", "imagePath"} <= content.keys()


def _read_shapes(content: dict, photo: Photo, source: Source, export: Collector) -> None:
    groups: dict[Any, list[list | dict]] = {}
    for number, shape in enumerate(objects_in(content["shapes"])):
        label = label_in(shape.get("label"))
        kind = label_in(shape.get("shape_type")) or "polygon"
        if label in _NO_CLASSES:
            export.leave_out(f"shapes called {label}", source.path)
            continue
        if kind in ("point", "points", "line", "linestrip"):
            export.leave_out(f"shapes ({kind}) without area", source.path)
            continue
        found = _outline(shape, kind, photo.size)
        if found is None:
            export.leave_out(
                f"broken shapes ({kind})",
                f"{source.path}: {shortened(shape.get('points'))}",
            )
            continue
        group = shape.get("group_id")
        key = (label, "alone", number) if group is None else (label, "group", str(group))
        groups.setdefault(key, []).append(found)
    for (label, *_), parts in groups.items():
        photo.add(label, united(parts, photo.size))


def _outline(shape: dict, kind: str, size: tuple[int, int] | None) -> list[float] | dict | None:
    """A polygon, or RLE of a mask; None: it is broken."""
    points = points_in(shape.get("points"))
    if points is None:
        return None
    if kind == "mask":
        return _mask(shape, points, size)
    if kind == "rectangle" and len(points) == 2:
        (x1, y1), (x2, y2) = points
        return rectangle(min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1))
    if kind == "circle":
        if len(points) != 2:
            return None
        radius = math.dist(*points)
        return ellipse(*points[0], radius, radius) if math.isfinite(radius) else None
    return flat(points)


def _mask(shape: dict, points: list[list[float]], size: tuple[int, int] | None) -> dict | None:
    try:
        data = base64.b64decode(shape.get("mask"), validate=True)
        mask = np.asarray(Image.open(io.BytesIO(data), formats=("PNG",)).convert("L"))
        x, y = (round(value) for value in points[0])
    except (binascii.Error, TypeError, OSError, ValueError, IndexError, SyntaxError, OverflowError):
        return None
    except Image.DecompressionBombError:
        return None
    return mask_rle(mask, size, x, y) if size and mask.any() else None
