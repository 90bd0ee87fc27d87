"""VGG Image Annotator (VIA 1 and 2): a project, or its regions as json.

Every region has a shape and any attributes; the class is the one that most regions have.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from rdsnet.data.findings import printable, shortened
from rdsnet.data.formats.collecting import Collector, part_of
from rdsnet.data.formats.outlines import ellipse, flat, rectangle
from rdsnet.data.formats.source import Source
from rdsnet.data.formats.values import numbers, object_at, objects_in

NAME = "VIA json"
WHAT = "VIA (VGG Image Annotator): a project, or its annotations as json"
# Among attributes that equally many regions have, these are classes.
_CLASS_NAMES = ("class", "label", "category", "type", "name", "object")


def is_mine(source: Source) -> bool:
    content = source.json
    if not isinstance(content, dict):
        return False
    if "_via_img_metadata" in content or _is_version_3(content):
        return True
    entries = objects_in(content)
    return bool(entries) and all("regions" in e and "filename" in e for e in entries[:20])


def read(sources: list[Source], given: Source, export: Collector) -> None:
    """
    Raises:
        ValueError: it is a project of VIA 3, which is built in another way.
    """
    contents = []
    for source in sources:
        if _is_version_3(source.json):
            raise ValueError(
                f"{printable(source.path)} is a project of VIA 3, which is not read. Export it "
                "from VIA as COCO json, or annotate in VIA 2."
            )
        contents.append((source, objects_in(source.json.get("_via_img_metadata", source.json))))
    regions = [region for _, images in contents for image in images for region in _regions(image)]
    attribute = _class_attribute(regions, export)
    for source, images in contents:
        options = object_at(source.json, "_via_attributes", "region", attribute or "", "options")
        export.declare(options)
        part = part_of(source, given, with_name=True)
        for image in images:
            photo = export.photo(str(image.get("filename")), source.folder, part=part)
            for region in _regions(image):
                shape = object_at(region, "shape_attributes")
                kind = shape.get("name")
                if kind in ("polyline", "point"):
                    what = f"shapes ({kind}) without area"
                    export.leave_out(what, photo.name)
                elif outline := _outline(shape):
                    label = object_at(region, "region_attributes").get(attribute)
                    photo.add(_chosen(label), [outline])
                else:
                    what = f"broken shapes ({kind})"
                    export.leave_out(what, f"{photo.name}: {shortened(shape)}")


def _is_version_3(content: dict) -> bool:
    return {"project", "metadata", "view"} <= content.keys()


def _regions(image: dict) -> list[dict]:
    return objects_in(image.get("regions"))


def _class_attribute(regions: list[dict], export: Collector) -> str | None:
    """The attribute that is filled in most often; in doubt the one that is called like a class."""
    filled: Counter[str] = Counter()
    for region in regions:
        attributes = object_at(region, "region_attributes")
        filled.update(name for name, value in attributes.items() if _chosen(value))
    if not filled:
        return None
    most = max(filled.values())
    candidates = [name for name, number in filled.items() if number == most]
    named = [name for name in candidates if name.lower() in _CLASS_NAMES]
    chosen = (named or candidates)[0]
    if others := [name for name in filled if name != chosen]:
        export.remark(
            f"The class is the attribute '{printable(chosen)}' of the regions; others are not "
            f"looked at ({printable(', '.join(others))})."
        )
    return chosen


def _chosen(value: Any) -> str | None:
    """The value of an attribute; of check boxes the only one that is ticked."""
    if isinstance(value, dict):
        ticked = [name for name, is_ticked in value.items() if is_ticked]
        return ticked[0] if len(ticked) == 1 else None
    return None if value is None or not str(value).strip() else str(value)


def _outline(shape: dict) -> list[float] | None:
    """A polygon; None: it is broken."""

    def values(*keys: str) -> list[float] | None:
        found = numbers(*map(shape.get, keys))
        return found if found and all(map(math.isfinite, found)) else None

    kind = shape.get("name")
    xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
    if kind == "polygon" and isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys):
        found = numbers(*xs, *ys)
        return found and flat(zip(found[: len(xs)], found[len(xs) :]))
    if kind == "rect" and (box := values("x", "y", "width", "height")):
        return rectangle(*box)
    if kind == "circle" and (given := values("cx", "cy", "r")):
        return ellipse(*given, given[2])
    if kind == "ellipse" and (given := values("cx", "cy", "rx", "ry")):
        theta = (numbers(shape.get("theta")) or [0.0])[0]
        return ellipse(*given, math.degrees(theta))
    return None
