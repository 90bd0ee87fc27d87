"""COCO files with values that are written in another way than COCO's, but mean one thing only.

Exporters write sizes as floats or text, ids of images as text in one place and as numbers in
another, polygons as lists of points. What is beyond doubt is brought into COCO's own form, and
said: for training, for ``rdsnet check-data`` and for its ``--fix`` alike, so that a file that
passes the check is one that training reads, and reads in the same way. What could mean two things
stays as it is, and the checks refuse it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rdsnet.data.findings import Finding, finding_lines, shortened
from rdsnet.data.ids import (
    References,
    is_count,
    is_id,
    plain_number,
    shown_id,
    whole_number,
)
from rdsnet.data.segmentation import normal_segmentation

# What is done about each kind of value.
READ_AS = {
    "id as float": "Read as the whole number that it is.",
    "name as number": "Read as text.",
    "size": "Floats and text that say a whole number are read as that number.",
    "image_id": "Read as the id that it means.",
    "category_id": "Read as the id that it means.",
    "iscrowd": "Read as 0 or 1; null as 0.",
    "box": "Text that says a number is read as that number.",
    "segmentation": "Every ring is read as a polygon [x1, y1, x2, y2, ...] of the object.",
    "RLE": "Read as the RLE that it means, {'size': [height, width], 'counts': ...}.",
}


def normal_form(content: dict) -> tuple[dict, list[Finding]]:
    """A COCO file's content with every value that is beyond doubt in COCO's own form.

    Args:
        content: as :func:`rdsnet.data.coco_json.read_coco_json` returns it; not changed.

    Returns:
        The content, and a :class:`Finding` for each value that is written in another way (kinds of
        ``READ_AS``). Entries that need no change are shared with ``content``, not copied.
    """
    categories, findings = normal_categories(content["categories"])
    images, of_images = _normal_entries(content["images"], "image", _image_changes)
    image_ids = References(_ids(images))
    category_ids = References(_ids(categories))
    annotations, of_annotations = _normal_entries(
        content["annotations"],
        "annotation",
        lambda annotation: _annotation_changes(annotation, image_ids, category_ids),
    )
    findings += of_images + of_annotations
    if not findings:
        return content, []
    normal = {"categories": categories, "images": images, "annotations": annotations}
    return {**content, **normal}, findings


def normal_categories(categories: list) -> tuple[list, list[Finding]]:
    """As :func:`normal_form`, for the list of categories alone."""
    return _normal_entries(categories, "category", _category_changes)


def read_as_lines(findings: Iterable[Finding]) -> list[str]:
    """What :func:`normal_form` has found, for people."""
    return finding_lines(findings, READ_AS)


# A change: kind of finding, key, new value, message.
_Change = tuple[str, str, object, str]


def _normal_entries(
    entries: list, name: str, changes_of: Callable[[dict], list[_Change]]
) -> tuple[list, list[Finding]]:
    normal, findings = [], []
    for entry in entries:
        changes = changes_of(entry) if isinstance(entry, dict) else []
        if changes:
            where = f"{name} {shown_id(entry.get('id'))}"
            findings += [Finding(kind, where, message) for kind, _, _, message in changes]
            entry = {**entry, **{key: value for _, key, value, _ in changes}}
        normal.append(entry)
    return normal, findings


def _category_changes(category: dict) -> list[_Change]:
    changes = _id_changes(category)
    if type(category.get("name")) in (int, float):
        changes.append(_change("name as number", category, "name", str(category["name"])))
    return changes


def _image_changes(image: dict) -> list[_Change]:
    changes = _id_changes(image)
    for key in ("width", "height"):
        whole = whole_number(image.get(key))
        if type(image.get(key)) is not int and is_count(whole):
            changes.append(_change("size", image, key, whole))
    return changes


def _annotation_changes(
    annotation: dict, image_ids: References, category_ids: References
) -> list[_Change]:
    changes = _id_changes(annotation)
    for key, ids in (("image_id", image_ids), ("category_id", category_ids)):
        given = annotation.get(key)
        meant = ids.find(given)
        if meant is not None and (type(meant) is not type(given) or meant != given):
            changes.append(_change(key, annotation, key, meant))
    if type(annotation.get("iscrowd", 0)) is not int:
        given = annotation["iscrowd"]
        crowd = int(given or 0) if given is None or type(given) is bool else whole_number(given)
        if crowd in (0, 1):
            changes.append(_change("iscrowd", annotation, "iscrowd", crowd))
    box = annotation.get("bbox")
    if isinstance(box, list) and str in map(type, box):
        numbers = [plain_number(number) for number in box]
        if None not in numbers:
            changes.append(_change("box", annotation, "bbox", numbers))
    if normal := normal_segmentation(annotation.get("segmentation")):
        segmentation, form = normal
        kind = "RLE" if isinstance(segmentation, dict) else "segmentation"
        message = f"{form}: {shortened(annotation['segmentation'])}"
        changes.append((kind, "segmentation", segmentation, message))
    return changes


def _id_changes(entry: dict) -> list[_Change]:
    if type(entry.get("id")) is not float or (whole := whole_number(entry["id"])) is None:
        return []
    return [_change("id as float", entry, "id", whole)]


def _change(kind: str, entry: dict, key: str, value: object) -> _Change:
    return kind, key, value, f"'{key}' {shortened(entry[key])} is read as {shortened(value)}"


def _ids(entries: list) -> Iterable[int | str]:
    return [e["id"] for e in entries if isinstance(e, dict) and is_id(e.get("id"))]
