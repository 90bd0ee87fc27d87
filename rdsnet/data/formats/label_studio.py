"""Label Studio's json and "json min": polygons, brushes, rectangles, ellipses.

Coordinates are percents of the image; a brush is a packed run-length code of four channels, whose
last one is the mask. Of several people's annotations of an image the first is taken, or the one
that is marked as ground truth. Label Studio knows no objects of several regions; those of one class
whose ids are ``ID-part1``, ``ID-part2`` ..., as ``rdsnet predict`` writes them, are one object.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np

from rdsnet.data.findings import shortened
from rdsnet.data.formats.collecting import Collector, part_of
from rdsnet.data.formats.outlines import ellipse, flat, mask_rle, rectangle, united
from rdsnet.data.formats.source import Source
from rdsnet.data.formats.values import numbers, object_at, objects_in, points_in, size_in

NAME = "Label Studio json"
WHAT = "Label Studio: its json, or json-min"
_LABELS = ("polygonlabels", "brushlabels", "rectanglelabels", "ellipselabels", "labels")
_MOST_PIXELS = 1 << 28
_PART = re.compile(r"(.+)-part\d+")
_SERVED = re.compile(r"/data/local-files/\?d=([^&#]+)$")


def is_mine(source: Source) -> bool:
    tasks = source.json
    if not isinstance(tasks, list) or not tasks or not isinstance(tasks[0], dict):
        return False
    first = tasks[0]
    is_task = isinstance(first.get("data"), dict) and {"annotations", "predictions"} & first.keys()
    return bool(is_task) or _is_min(first)


def read(sources: list[Source], given: Source, export: Collector) -> None:
    for source in sources:
        part = part_of(source, given, with_name=True)
        for task in objects_in(source.json):
            name, regions = _image_and_regions(task, export)
            if name is None:
                export.leave_out("tasks without image", f"task {task.get('id')}")
                continue
            sizes = [size_in(r.get("original_height"), r.get("original_width")) for r in regions]
            photo = export.photo(
                name, source.folder, next((size for size in sizes if size), None), part
            )
            labels = _labels_by_id(regions)
            objects: dict[tuple, list] = {}
            for number, (region, size) in enumerate(zip(regions, sizes)):
                value = region.get("value") if isinstance(region.get("value"), dict) else region
                kind = _kind(region, value)
                if kind is None:
                    continue
                label = _label(value) or labels.get(region.get("id"))
                shape = size and _shape(kind, value, size)
                if shape:
                    part_of_object = _PART.fullmatch(str(region.get("id")))
                    key = part_of_object[1] if part_of_object else number
                    found = shape if isinstance(shape, list) else [shape]
                    objects.setdefault((label, key), []).extend(found)
                else:
                    text = shortened({key: value[key] for key in value if key != "rle"})
                    what = f"broken shapes ({kind})"
                    export.leave_out(what, f"{name}: {text}")
            for (label, _), found in objects.items():
                photo.add(label, united(found, photo.size))


def _is_min(task: dict) -> bool:
    regions = [region for value in task.values() for region in _min_regions(value)]
    return bool(regions) and isinstance(_image_name(task), str)


def _image_and_regions(task: dict, export: Collector) -> tuple[str | None, list[dict]]:
    if not isinstance(task.get("data"), dict):
        return _image_name(task), [r for value in task.values() for r in _min_regions(value)]
    done = [a for a in objects_in(task.get("annotations")) if not a.get("was_cancelled")]
    name = _image_name(task["data"])
    chosen = next((a for a in done if a.get("ground_truth")), done[0] if done else {})
    if not done:
        export.leave_out("tasks that nobody has annotated", str(name))
    for _ in done[1:]:
        export.leave_out("annotations of images that somebody else has annotated", str(name))
    return name if done else None, objects_in(chosen.get("result"))


def _image_name(data: dict) -> str | None:
    """The image among what a task shows: under a key that is called so, or the only text."""
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    for key in ("image", "img", "photo", "picture", "ocr"):
        if key in texts:
            return _local(texts[key])
    paths = [value for value in texts.values() if "/" in value or "." in value]
    return _local(paths[0]) if len(paths) == 1 else None


def _local(name: str) -> str:
    """The path of a file that Label Studio serves from this machine's root; else the name."""
    served = _SERVED.search(name)
    path = os.fsdecode(b"/" + unquote_to_bytes(served[1]).lstrip(b"/")) if served else name
    return path if os.path.isfile(path) else name


def _min_regions(value: Any) -> list[dict]:
    entries = objects_in(value) if isinstance(value, list) else []
    return [entry for entry in entries if "original_width" in entry]


def _labels_by_id(regions: list[dict]) -> dict[Any, str]:
    """Classes that were chosen apart from the shapes, which have the same id."""
    found = {}
    for region in regions:
        label = _label(object_at(region, "value"))
        if label and isinstance(region.get("id"), str):
            found[region["id"]] = label
    return found


def _label(value: dict) -> str | None:
    for key in _LABELS:
        names = value.get(key)
        if isinstance(names, list) and names:
            return str(names[0])
    return None


def _kind(region: dict, value: dict) -> str | None:
    """What a region is, by what it has; None: no shape."""
    if "rle" in value:
        return "brush"
    if "points" in value:
        return "polygon"
    if "radiusX" in value:
        return "ellipse"
    if {"x", "y", "width", "height"} <= value.keys() and "text" not in value:
        is_point = str(region.get("type", "")).startswith("keypoint")
        return None if is_point else "rectangle"
    return None


def _shape(kind: str, value: dict, size: tuple[int, int]) -> list | dict | None:
    """Polygons or RLE; None: it is broken."""
    y, x = size[0] / 100, size[1] / 100
    degrees = (numbers(value.get("rotation", 0)) or [0.0])[0]
    if kind == "brush":
        return _brush(value["rle"], size)
    if kind == "polygon":
        points = points_in(value["points"])
        return points and [flat((a * x, b * y) for a, b in points)]
    if kind == "ellipse":
        given = numbers(*map(value.get, ("x", "y", "radiusX", "radiusY")))
        return given and [ellipse(*_scaled(given, x, y), degrees)]
    given = numbers(*map(value.get, ("x", "y", "width", "height")))
    return given and [rectangle(*_scaled(given, x, y), degrees, around_corner=True)]


def _scaled(values: list[float], x: float, y: float) -> list[float]:
    return [value * (y if n % 2 else x) for n, value in enumerate(values)]


def _brush(code: Any, size: tuple[int, int]) -> dict | None:
    """RLE of a brush; None: it is broken."""
    pixels = size[0] * size[1]
    if not isinstance(code, list) or pixels > _MOST_PIXELS:
        return None
    try:
        values = unpacked(bytes(code), most=4 * pixels)
    except (ValueError, TypeError):
        return None
    if len(values) != 4 * pixels:
        return None
    mask = values.reshape(*size, 4)[..., 3] > 0
    return mask_rle(mask, size) if mask.any() else None


def unpacked(code: bytes, most: int) -> np.ndarray:
    """The numbers of a run-length code as Label Studio packs it.

    It begins with their count (32 bits), the bits of a number less one (5) and of four kinds of
    lengths less one (4 each). Then come blocks: one bit for "all numbers are the same", two for the
    kind of the length, the length less one, and the number or numbers.

    Args:
        most: how many numbers are expected at most.

    Returns:
        (count,) uint8.

    Raises:
        ValueError: it is cut off, or has too many numbers.
    """
    bits = bin(int.from_bytes(b"\1" + code, "big"))[3:]
    place = 0

    def take(number: int) -> int:
        nonlocal place
        place += number
        return int(bits[place - number : place], 2)  # ValueError behind the end

    count, width = take(32), take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    if count > most:
        raise ValueError(f"{count} numbers, expected at most {most}")
    values = np.zeros(count, dtype=np.uint8)
    done = 0
    while done < count:
        is_run = take(1)
        end = done + take(lengths[take(2)]) + 1
        if is_run:
            values[done:end] = min(take(width), 255)
        else:
            values[done : min(end, count)] = [take(width) for _ in range(end - done)][
                : count - done
            ]
        done = end
    return values
