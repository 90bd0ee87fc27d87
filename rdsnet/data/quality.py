"""What would not stop training, but spoil what is learnt: looked for by ``rdsnet check-data``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rdsnet.data.class_names import class_name_findings
from rdsnet.data.crowds import REMEDY as CROWD_REMEDY
from rdsnet.data.crowds import crowd_findings
from rdsnet.data.findings import Finding
from rdsnet.data.holes import hole_findings
from rdsnet.data.ids import shown_id
from rdsnet.data.statistics import DataStatistics, data_statistics, mask_boxes

# A box and the extent of its mask may differ by so many pixels, or by this share of the box.
_BOX_TOLERANCE, _BOX_TOLERANCE_SHARE = 2.0, 0.1
# Masks are learnt on a grid of 4 px: of an object with a shorter side than this, little is seen.
_TINY_SIDE = 4
# Fewer objects of a class than this are hardly enough to learn it.
_FEW_OBJECTS = 20
# A class with this many times fewer objects than the most frequent one is rarely found.
_IMBALANCE = 100

REMEDIES = {
    "mask and box differ": "Both should enclose the same object: COCO's 'bbox' is the smallest box "
    "around the mask.",
    "box beyond the image": "The part outside is cut off in training.",
    "annotated twice": "Same image, class and box: keep one of them.",
    "tiny object": f"A side shorter than {_TINY_SIDE} px: enlarge the images, or leave these out.",
    "image without objects": "Training leaves these images out (DATALOADER."
    "FILTER_EMPTY_ANNOTATIONS); evaluation counts what is found in them as wrong.",
    "same class name": "They are learnt as different classes and told apart by their ids; if they "
    "are one class, give their annotations one 'category_id' and remove the other category.",
    "similar class names": "They are learnt as different classes; if they are one class, give "
    "their annotations one 'category_id' and remove the other category.",
    "crowd": f"Crowds are regions of many things, and left out in training. {CROWD_REMEDY}",
    "polygon inside another": "It changes nothing: a mask is all that its polygons cover. If these "
    "are holes, 'rdsnet check-data --fix OUT.json --inner-polygons-are-holes' cuts them out.",
    "same photograph": "Keep it once, with all its objects; it must not be both trained on and "
    "evaluated on (the hold-out of 'rdsnet train' keeps equal images together).",
    "several pages": "Training sees the first one alone: write every page to a file of its own.",
    "rare class": "Add images with these classes, or merge or remove the class.",
}


def quality_findings(content: dict) -> list[Finding]:
    """Everything in ``REMEDIES``, for a COCO file whose annotations are all usable."""
    return [
        *_mask_findings(content),
        *_box_findings(content),
        *_empty_image_findings(content),
        *_class_findings(data_statistics(content)),
        *crowd_findings(content),
        *hole_findings(content),
        *class_name_findings(content["categories"]),
    ]


def box_differs_from_mask(boxes: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Which boxes don't enclose their masks, or enclose much more.

    Args:
        boxes, masks: (N, 4) XYXY, as annotated and as of :func:`mask_boxes` (NaN: differs).

    Returns:
        (N,) bool.
    """
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    tolerance = np.maximum(_BOX_TOLERANCE, _BOX_TOLERANCE_SHARE * sides)
    return ~(np.abs(boxes - masks) <= tolerance).all(1)


def xyxy_boxes(annotations: list[dict]) -> np.ndarray:
    """(N, 4) XYXY from COCO's [x, y, width, height]."""
    boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def repeats(annotations: list[dict]) -> list[dict]:
    """Annotations whose image, class and box an earlier one has."""
    seen, repeated = set(), []
    for annotation in annotations:
        key = (annotation["image_id"], annotation["category_id"], *annotation["bbox"])
        if not annotation.get("iscrowd", 0):
            if key in seen:
                repeated.append(annotation)
            seen.add(key)
    return repeated


def _mask_findings(content: dict) -> Iterator[Finding]:
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    objects = [a for a in content["annotations"] if not a.get("iscrowd", 0)]
    boxes = xyxy_boxes(objects)
    masks = mask_boxes(objects, [sizes[a["image_id"]] for a in objects])
    for n in np.flatnonzero(box_differs_from_mask(boxes, masks)):
        extent = [round(float(v), 1) for v in masks[n]]
        extent = [*extent[:2], round(extent[2] - extent[0], 1), round(extent[3] - extent[1], 1)]
        shown = "the mask is empty" if np.isnan(masks[n]).any() else f"of the mask: {extent}"
        message = f"'bbox' {objects[n]['bbox']}, {shown}"
        yield Finding("mask and box differ", _where(objects[n]), message)


def _box_findings(content: dict) -> Iterator[Finding]:
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        columns, rows = sizes[annotation["image_id"]]
        if min(x, y, columns - x - width, rows - y - height) < -1:
            message = f"'bbox' {annotation['bbox']}, the image has {columns} x {rows} pixels"
            yield Finding("box beyond the image", _where(annotation), message)
        if min(width, height) < _TINY_SIDE and not annotation.get("iscrowd", 0):
            yield Finding("tiny object", _where(annotation), f"{width:g} x {height:g} px")
    for annotation in repeats(content["annotations"]):
        yield Finding("annotated twice", _where(annotation), f"'bbox' {annotation['bbox']}")


def _empty_image_findings(content: dict) -> Iterator[Finding]:
    used = {a["image_id"] for a in content["annotations"] if not a.get("iscrowd", 0)}
    for image in content["images"]:
        if image["id"] not in used:
            message = f"'{image['file_name']}'"
            yield Finding("image without objects", f"image {shown_id(image['id'])}", message)


def _class_findings(statistics: DataStatistics) -> Iterator[Finding]:
    counts = statistics.objects_per_class
    most = int(counts.max(initial=0))
    for name, count in zip(statistics.class_names, counts.tolist(), strict=True):
        if count < _FEW_OBJECTS:
            yield Finding("rare class", f"'{name}'", f"{count} objects")
        elif count * _IMBALANCE < most:
            yield Finding("rare class", f"'{name}'", f"{count} objects; most have {most}")


def _where(annotation: dict) -> str:
    return f"annotation {shown_id(annotation['id'])} of image {shown_id(annotation['image_id'])}"
