"""CVAT's xml for images, version 1.1: polygons, masks, boxes, ellipses.

A mask is a run-length code of its own box, row by row, which begins with background. Shapes of one
class and one ``group_id`` in an image are parts of one object, as in CVAT's own export to COCO.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element

import numpy as np

from rdsnet.data.findings import printable, shortened
from rdsnet.data.formats.collecting import Collector, Photo, named_part, part_of
from rdsnet.data.formats.outlines import ellipse, flat, mask_rle, rectangle, united
from rdsnet.data.formats.source import Source
from rdsnet.data.formats.values import numbers, size_in

NAME = "CVAT xml"
WHAT = "CVAT: the xml of 'CVAT for images 1.1'"
_WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton")


def is_mine(source: Source) -> bool:
    root = source.xml
    return root is not None and root.tag == "annotations"


def read(sources: list[Source], given: Source, export: Collector) -> None:
    """
    Raises:
        ValueError: it is the xml of a video, whose frames have no files.
    """
    for source in sources:
        root = source.xml
        if root.find("track") is not None and root.find("image") is None:
            raise ValueError(
                f"{printable(source.path)} is CVAT's xml of a video: its frames have no files. "
                "Export the task as 'CVAT for images 1.1' or COCO, with images."
            )
        export.declare(name.text for name in root.iterfind("meta//labels/label/name") if name.text)
        for image in root.iterfind("image"):
            part = named_part(image.get("subset") or "") or part_of(source, given, with_name=True)
            photo = _photo(image, source, part, export)
            _read_shapes(image, photo, export)


def _photo(image: Element, source: Source, part: str, export: Collector) -> Photo:
    name = image.get("name") or ""
    subset = image.get("subset")
    folder = source.folder
    if subset and (folder / "images" / subset / name).is_file():
        name = f"images/{subset}/{name}"
    size = size_in(image.get("height"), image.get("width"))
    return export.photo(name, folder, size, part)


def _read_shapes(image: Element, photo: Photo, export: Collector) -> None:
    groups: dict[tuple, list[list[float] | dict]] = {}
    for number, shape in enumerate(image):
        if shape.tag in _WITHOUT_AREA:
            what = f"{shape.tag} without area"
            export.leave_out(f"shapes ({what})", photo.name)
        elif shape.tag in ("polygon", "mask", "box", "ellipse"):
            found = _outline(shape, photo.size)
            if found is None:
                text = shortened(shape.get("points") or shape.get("rle") or shape.attrib)
                what = f"broken shapes ({shape.tag})"
                export.leave_out(what, f"{photo.name}: {text}")
                continue
            group = shape.get("group_id") or "0"
            key = (number,) if group == "0" else (group, shape.get("label"))
            groups.setdefault((shape.get("label"), *key), []).append(found)
    for (label, *_), parts in groups.items():
        photo.add(label, united(parts, photo.size))


def _outline(shape: Element, size: tuple[int, int] | None) -> list[float] | dict | None:
    """A polygon, or RLE of a mask; None: it is broken."""

    def values(*keys: str) -> list[float] | None:
        return numbers(*map(shape.get, keys))

    if shape.tag == "polygon":
        pairs = [numbers(*pair.split(",")) for pair in (shape.get("points") or "").split(";")]
        return flat(pairs) if all(pair and len(pair) == 2 for pair in pairs) else None
    degrees = (numbers(shape.get("rotation") or "0") or [0.0])[0]
    if shape.tag == "box" and (box := values("xtl", "ytl", "xbr", "ybr")):
        x1, y1, x2, y2 = box
        return rectangle(x1, y1, x2 - x1, y2 - y1, degrees)
    if shape.tag == "ellipse" and (given := values("cx", "cy", "rx", "ry")):
        return ellipse(*given, degrees)
    if shape.tag == "mask" and (box := values("left", "top", "width", "height")) and size:
        return _mask(shape.get("rle") or "", [round(value) for value in box], size)
    return None


def _mask(rle: str, box: list[int], size: tuple[int, int]) -> dict | None:
    left, top, width, height = box
    runs = numbers(*rle.split(","))
    if runs is None or not 0 < width <= size[1] or not 0 < height <= size[0]:
        return None
    if min(runs) < 0 or sum(runs) > width * height:
        return None
    values = np.repeat((np.arange(len(runs)) % 2).astype(bool), np.array(runs, dtype=np.int64))
    # What is missing at the end is background.
    mask = np.pad(values, (0, width * height - len(values))).reshape(height, width)
    return mask_rle(mask, size, left, top) if mask.any() else None
