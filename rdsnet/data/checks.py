"""Checks of annotations in COCO format, before they become an obscure error or silent nonsense.

A check returns :class:`Finding` objects; only :func:`check_coco` and :func:`clean_coco` turn them
into an error or a warning. Problems with the structure (an image without a file, an id that occurs
twice) are always errors. Problems of single annotations (a box without area, a broken mask) are
errors too, unless they are to be skipped.

Boxes are COCO's [x, y, width, height] in continuous pixels, polygons [x1, y1, x2, y2, ...], RLE is
column by column.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter

import pycocotools.mask as mask_util
from detectron2.utils.logger import log_first_n

from rdsnet.data.coco_json import read_categories, read_coco_json
from rdsnet.data.crowds import crowds_as_objects
from rdsnet.data.findings import Finding, counted, given_value, listed, report, shortened
from rdsnet.data.ids import id_order, is_count, is_id, shown_id
from rdsnet.data.image_paths import missing_image_findings
from rdsnet.data.normal_form import normal_categories, normal_form, read_as_lines
from rdsnet.data.rle import RunSums, run_sums, segmentation_rle

logger = logging.getLogger(__name__)

ON_INVALID = ("error", "skip")
# Pixels. Drawing a polygon takes memory in proportion to its length, so no coordinate may be huge.
_MAX_SIDE = 1_000_000


def check_coco(
    json_path: str | os.PathLike,
    image_root: str | os.PathLike,
    on_invalid: str = "error",
    crowds_are_objects: bool = False,
) -> dict:
    """Read a COCO file and check it.

    Args:
        json_path: annotations in COCO's instances format.
        image_root: the folder that ``file_name`` is relative to.
        on_invalid: what to do with annotations that cannot be used: "error" or "skip".
        crowds_are_objects: make all annotations with ``iscrowd`` 1 objects.

    Returns:
        The content, without unusable annotations ("skip"), and with what evaluation needs (see
        :func:`clean_coco`).

    Raises:
        FileNotFoundError: the json, the image folder or images are missing.
        ValueError: anything else; the message names file, entries, values and the remedy.
    """
    content = read_coco_json(json_path)
    return clean_coco(content, json_path, image_root, on_invalid, crowds_are_objects)


def clean_coco(
    content: dict,
    json_path: str | os.PathLike,
    image_root: str | os.PathLike,
    on_invalid: str = "error",
    crowds_are_objects: bool = False,
) -> dict:
    """As :func:`check_coco`, for what :func:`read_coco_json` has returned; leaves it unchanged.

    What is written in another way than COCO's, but means one thing only, is brought into its form
    (:mod:`rdsnet.data.normal_form`), which is said once per file. Beside dropping unusable
    annotations ("skip"), it completes those that lack ``iscrowd`` (0) or ``area`` (of the mask),
    without which COCO's evaluation fails, and renumbers an annotation with id 0, which it silently
    counts as never detected. Entries that need no change are shared with ``content``, not copied.
    """
    if on_invalid not in ON_INVALID:
        raise ValueError(f"on_invalid must be one of {ON_INVALID}, got {on_invalid!r}")
    content, read_as = normal_form(content)
    if crowds_are_objects:
        content, _ = crowds_as_objects(content)
    findings = structure_findings(content)
    if findings:
        raise ValueError(report(findings, json_path))
    findings = missing_image_findings(content, image_root)
    if findings:
        raise FileNotFoundError(report(findings, json_path))
    annotations, findings = usable_annotations(content)
    if findings and on_invalid == "error":
        raise ValueError(
            f"{report(findings, json_path)}\nRepair the file, or leave these annotations out with "
            "DATASETS.INVALID_ANNOTATIONS skip."
        )
    if findings:
        dropped = len(content["annotations"]) - len(annotations)
        logger.warning(
            f"{dropped} of {len(content['annotations'])} annotations are left out because "
            f"DATASETS.INVALID_ANNOTATIONS is 'skip'. {report(findings, json_path)}"
        )
    if read_as:
        _say_once(
            f"{os.fspath(json_path)}: {counted(len(read_as), 'value')} in another form than "
            "COCO's, read as what they can only mean ('rdsnet check-data --fix' writes them so):\n"
            + "\n".join(read_as_lines(read_as))
        )
    return {**content, "annotations": complete_annotations(annotations, content["images"])}


def coco_categories(json_path: str | os.PathLike) -> dict[int | str, str]:
    """{id: name} of a COCO file's categories, sorted by id, without reading the rest of it.

    Raises:
        FileNotFoundError, ValueError: as :func:`check_coco`, for what concerns the categories.
    """
    return categories_by_id(read_categories(json_path), json_path)


def categories_by_id(categories: list, json_path: str | os.PathLike) -> dict[int | str, str]:
    """As :func:`coco_categories`, of the list as it stands in the json."""
    categories, _ = normal_categories(categories)
    findings = _category_findings(categories)
    if findings:
        raise ValueError(report(findings, json_path))
    categories = sorted(categories, key=lambda category: id_order(category["id"]))
    return {category["id"]: category["name"] for category in categories}


def _say_once(message: str) -> None:
    # A data set is loaded for training, for every evaluation and for the report.
    log_first_n(logging.WARNING, message, key="message", name=__name__)


# --------------------------------------------------------------------------------------------------
# Structure


def structure_findings(content: dict) -> list[Finding]:
    """Categories, images and annotations without what every use of them needs."""
    findings = _category_findings(content["categories"])
    findings += _id_findings(content["images"], "image")
    for image in content["images"]:
        if not isinstance(image, dict):
            continue
        where = f"image {shown_id(image.get('id'))}"
        if not isinstance(image.get("file_name"), str) or not image["file_name"]:
            findings.append(Finding("image", where, given_value(image, "file_name")))
        for key in ("height", "width"):
            if not is_count(image.get(key)):
                message = f"{given_value(image, key)}, expected a whole number of pixels"
                findings.append(Finding("image", where, message))
            elif image[key] > _MAX_SIDE:
                message = f"'{key}' is {shortened(image[key])}, more than {_MAX_SIDE} pixels"
                findings.append(Finding("image", where, message))
    image_ids = {image["id"] for image in content["images"] if _has_id(image)}
    findings += _id_findings(content["annotations"], "annotation")
    unknown = [
        annotation
        for annotation in content["annotations"]
        if isinstance(annotation, dict) and not _is_in(annotation.get("image_id"), image_ids)
    ]
    known = listed(image_ids) if unknown else ""
    for annotation in unknown:
        message = f"{given_value(annotation, 'image_id')}, images of this file: {known}"
        where = f"annotation {shown_id(annotation.get('id'))}"
        findings.append(Finding("annotation", where, message))
    return findings


def _category_findings(categories: list) -> list[Finding]:
    if not categories:
        return [Finding("category", "categories", "the list is empty")]
    findings = _id_findings(categories, "category")
    for category in categories:
        if isinstance(category, dict) and not isinstance(category.get("name"), str):
            where = f"category {shown_id(category.get('id'))}"
            findings.append(Finding("category", where, given_value(category, "name")))
    return findings


def _id_findings(entries: list, kind: str) -> list[Finding]:
    """Entries that are no objects, or whose id is missing, no id, or not unique."""
    findings = []
    for index, entry in enumerate(entries):
        where = f"{kind} number {index} in the list"
        if not isinstance(entry, dict):
            findings.append(Finding(kind, where, f"is not an object: {shortened(entry)}"))
        elif not _has_id(entry):
            findings.append(Finding(kind, where, given_value(entry, "id")))
    counts = Counter(entry["id"] for entry in entries if _has_id(entry))
    for id_, count in counts.items():
        if count > 1:
            where = f"{kind} {shown_id(id_)}"
            findings.append(Finding(kind, where, f"this id occurs {count} times"))
    return findings


# --------------------------------------------------------------------------------------------------
# Single annotations


def usable_annotations(content: dict) -> tuple[list[dict], list[Finding]]:
    """Sort out annotations that cannot be used.

    Args:
        content: without structural problems.

    Returns:
        The annotations that can be used, and the findings. An annotation that has good polygons
        beside broken ones is returned as a copy with the good ones.
    """
    categories = {category["id"] for category in content["categories"]}
    images = {image["id"]: image for image in content["images"]}
    sums = run_sums([_rle_counts(annotation) for annotation in content["annotations"]])
    usable, findings = [], []
    for annotation, runs in zip(content["annotations"], sums, strict=True):
        image = images[annotation["image_id"]]
        problems = _box_problems(annotation.get("bbox"), image)
        if not _is_in(annotation.get("category_id"), categories):
            message = f"{given_value(annotation, 'category_id')}, declared are {listed(categories)}"
            problems.append(("unknown category", message))
        if not is_crowd_flag(annotation.get("iscrowd", 0)):
            problems.append(("iscrowd", given_value(annotation, "iscrowd")))
        segmentation, mask_problems = _usable_segmentation(annotation, image, runs)
        if not problems and segmentation is not None:
            if mask_problems:
                annotation = {**annotation, "segmentation": segmentation}
            usable.append(annotation)
        for kind, message in problems + mask_problems:
            where = f"annotation {shown_id(annotation['id'])} of image {shown_id(image['id'])}"
            where += f" ('{image['file_name']}')"
            findings.append(Finding(kind, where, message))
    return usable, findings


def _box_problems(box: object, image: dict) -> list[tuple[str, str]]:
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return [("box", f"'bbox' is not four finite numbers: {shortened(box)}")]
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return [("box", f"'bbox' {box} has no area")]
    if x + width <= 0 or y + height <= 0 or x >= image["width"] or y >= image["height"]:
        size = f"{image['width']} x {image['height']}"
        return [("box", f"'bbox' {box} lies outside the image of {size} pixels")]
    return []


def _usable_segmentation(
    annotation: dict, image: dict, runs: RunSums | None
) -> tuple[list | dict | None, list[tuple[str, str]]]:
    """The usable part of a segmentation (None: nothing) and the problems of the rest."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return None, [("no segmentation", f"'segmentation' is {shortened(segmentation)}")]
    if isinstance(segmentation, dict):
        problems = _rle_problems(segmentation, runs, image, bool(annotation.get("iscrowd", 0)))
        return (None if problems else segmentation), problems
    if not isinstance(segmentation, list):
        return None, [("polygon", f"'segmentation' is {shortened(segmentation)}")]
    if all(map(_is_number, segmentation)):
        message = f"'segmentation' is a list of numbers, and no polygon: {shortened(segmentation)}"
        return None, [("polygon", message)]
    problems = {i: message for i, p in enumerate(segmentation) if (message := polygon_problem(p))}
    good = [polygon for i, polygon in enumerate(segmentation) if i not in problems]
    return good or None, [("polygon", message) for message in problems.values()]


def polygon_problem(polygon: object) -> str | None:
    """Why a list of coordinates is no polygon; None: it is one."""
    if not isinstance(polygon, list):
        return f"polygon is {shortened(polygon)}"
    if any(isinstance(entry, (list, dict)) for entry in polygon):
        return f"polygon has entries that are neither numbers nor points: {shortened(polygon)}"
    if not all(map(_is_number, polygon)):
        return f"polygon has entries that are not finite numbers: {shortened(polygon)}"
    if len(polygon) % 2:
        return f"polygon has an odd count of numbers, {len(polygon)}: {shortened(polygon)}"
    if len(polygon) < 6:
        return f"polygon has fewer than three points: {shortened(polygon)}"
    if max(map(abs, polygon)) > _MAX_SIDE:
        return f"polygon has a point more than {_MAX_SIDE} pixels away: {shortened(polygon)}"
    return None


def _rle_problems(
    rle: dict, runs: RunSums | None, image: dict, is_crowd: bool
) -> list[tuple[str, str]]:
    size, pixels = [image["height"], image["width"]], image["height"] * image["width"]
    if rle.get("size") != size:
        given = shortened(rle.get("size"))
        return [("RLE", f"'size' is {given}, the image's [height, width] is {size}")]
    if runs is None:
        return [("RLE", f"'counts' is not a run-length code: {shortened(rle.get('counts'))}")]
    if runs.shortest < 0:
        return [("RLE", f"'counts' has a run of {runs.shortest} pixels")]
    if runs.total != pixels:
        return [("RLE", f"'counts' covers {runs.total} pixels, the image has {pixels}")]
    if not is_crowd and runs.foreground == 0:
        return [("RLE", "the mask is empty")]
    return []


def _rle_counts(annotation: dict) -> object:
    segmentation = annotation.get("segmentation")
    return segmentation.get("counts") if isinstance(segmentation, dict) else None


# --------------------------------------------------------------------------------------------------
# What evaluation needs


def complete_annotations(annotations: list[dict], images: list[dict]) -> list[dict]:
    """Usable annotations with ``area``, ``iscrowd`` and id above 0; unchanged ones are shared."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    completed = []
    for annotation in annotations:
        missing = {}
        if annotation["id"] == 0:
            missing["id"] = free_id(annotations)
        if "iscrowd" not in annotation:
            missing["iscrowd"] = 0
        if not _is_number(annotation.get("area")):
            size = sizes[annotation["image_id"]]
            rle = segmentation_rle(annotation["segmentation"], size)
            missing["area"] = int(mask_util.area(rle))
        completed.append({**annotation, **missing} if missing else annotation)
    return completed


def free_id(annotations: list[dict]) -> int:
    """An integer that is no annotation's id, nor any above it."""
    return max((a["id"] for a in annotations if type(a.get("id")) is int), default=0) + 1


# --------------------------------------------------------------------------------------------------
# Small helpers


def is_crowd_flag(value: object) -> bool:
    """Whether a value is one that ``iscrowd`` may have."""
    return type(value) is int and value in (0, 1)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _has_id(entry: object) -> bool:
    return isinstance(entry, dict) and is_id(entry.get("id"))


def _is_in(value: object, ids: set[int | str]) -> bool:
    return is_id(value) and value in ids
