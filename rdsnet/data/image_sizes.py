"""Sizes in the json that are not those of the pixels: which of the two were the masks drawn for?

Photographs are made smaller after annotation, turned by their EXIF orientation in one program and
not in another, or exchanged for others. Only the coordinates can tell: they were drawn for the
pixels when all of them lie inside those and some reach beyond the size that is declared. Any other
change of a size would move the masks away from their objects. Sizes are (height, width).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pycocotools.mask as mask_util

from rdsnet.data.checks import polygon_problem
from rdsnet.data.findings import Finding
from rdsnet.data.ids import is_count, is_id, plain_number, shown_id
from rdsnet.data.rle import compressed_rle, run_sums

# Annotation tools let coordinates end so many pixels outside of the image.
_TOLERANCE = 1.0

# Kinds of disagreement, as of REMEDIES in rdsnet.data.findings.
DECLARED_WRONG = "image size"
RESIZED = "resized image"
TURNED = "turned image"
UNCLEAR = "other image"


@dataclass(frozen=True)
class Disagreement:
    """An image whose file has another size than the json says.

    Attributes:
        kind: what follows from the coordinates.
        finding: for people.
        declared: (height, width) as declared; None where they are no numbers.
        actual: of the file.
    """

    kind: str
    finding: Finding
    declared: tuple[float, float] | None
    actual: tuple[int, int]


def disagreements(
    content: dict, sizes: dict[int | str, tuple[int, int] | ValueError]
) -> dict[int | str, Disagreement]:
    """{image id: what is known} of the images whose size is not that of their file.

    Args:
        content: in normal form (:func:`rdsnet.data.normal_form.normal_form`); images and
            annotations that are no objects or have no id are passed over.
        sizes: what :func:`rdsnet.data.image_files.read_sizes` has found.
    """
    images: dict[int | str, dict] = {}
    for image in content["images"]:
        if isinstance(image, dict) and is_id(image.get("id")):
            images.setdefault(image["id"], image)
    differing = {
        id_: image
        for id_, image in images.items()
        if isinstance(size := sizes.get(id_), tuple)
        and size != (image.get("height"), image.get("width"))
    }
    masks = _segmentations(content["annotations"], differing)
    judged = {id_: _judge(image, sizes[id_], masks[id_]) for id_, image in differing.items()}
    # Where some photographs were annotated in the pixels of their files, others that are declared
    # alike were not resized, even if their few objects lie where both sizes would have them.
    annotated = [judged[id_] for id_ in differing if masks[id_]]
    refuted = {(d.declared, d.actual) for d in annotated if d.kind == DECLARED_WRONG}
    for id_, d in judged.items():
        if d.kind == RESIZED and (d.declared, d.actual) in refuted:
            message = f"{d.finding.message}, but others of these sizes were not resized"
            finding = replace(d.finding, kind=UNCLEAR, message=message)
            judged[id_] = replace(d, kind=UNCLEAR, finding=finding)
    return judged


def with_proven_sizes(content: dict, found: dict[int | str, Disagreement]) -> dict:
    """The content with the sizes of the files, where the coordinates prove that these are right."""
    proven = {id_: d.actual for id_, d in found.items() if d.kind == DECLARED_WRONG}
    images = [
        {**image, "height": proven[image["id"]][0], "width": proven[image["id"]][1]}
        if image["id"] in proven
        else image
        for image in content["images"]
    ]
    return {**content, "images": images}


def scaled(annotation: dict, declared: tuple[float, float], actual: tuple[int, int]) -> dict:
    """A copy of an annotation with its coordinates scaled from one size of its image to another.

    Polygons, box, area and keypoints are scaled; RLE is drawn, resized and cut at one half.
    """
    factors = np.array([actual[1] / declared[1], actual[0] / declared[0]])  # x, y
    changed = {}
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        changed["segmentation"] = [
            _scaled_pairs(polygon, factors) if polygon_problem(polygon) is None else polygon
            for polygon in segmentation
        ]
    elif isinstance(segmentation, dict) and segmentation.get("size") == list(declared):
        changed["segmentation"] = _resized_rle(segmentation, actual)
    box, keypoints = annotation.get("bbox"), annotation.get("keypoints")
    if isinstance(box, list) and len(box) == 4 and _are_numbers(box):
        changed["bbox"] = _scaled_pairs(box, factors)
    if isinstance(keypoints, list) and len(keypoints) % 3 == 0 and _are_numbers(keypoints):
        points = np.array(keypoints, dtype=np.float64).reshape(-1, 3)
        points[:, :2] *= factors
        changed["keypoints"] = points.ravel().tolist()
    if _are_numbers([annotation.get("area")]):
        changed["area"] = float(annotation["area"] * factors.prod())
    return {**annotation, **changed}


def _judge(image: dict, actual: tuple[int, int], masks: list[list | dict]) -> Disagreement:
    declared = _declared_size(image)
    fits = declared is not None and _all_fit(masks, declared), _all_fit(masks, actual)
    kind = _kind(image, declared, actual, fits) if masks else DECLARED_WRONG
    fitting = {
        (True, True): "the coordinates fit both",
        (True, False): "the coordinates fit the declared size alone",
        (False, True): "the coordinates fit the file alone",
        (False, False): "the coordinates fit neither",
    }
    why = fitting[fits] if masks else "it has no masks"
    if kind == RESIZED:
        why = f"{max(actual) / max(declared):.4g} times as much on both sides, and {why}"
    elif kind == TURNED:
        why = f"height and width are exchanged, and {why}"
        why += ": the pixels as stored, before EXIF rotation" if fits == (True, False) else ""
    message = (
        f"the json says {image.get('width', '?')} x {image.get('height', '?')} pixels, "
        f"'{image.get('file_name')}' has {actual[1]} x {actual[0]}: {why}"
    )
    finding = Finding(kind, f"image {shown_id(image['id'])}", message)
    return Disagreement(kind, finding, declared, actual)


def _kind(
    image: dict,
    declared: tuple[float, float] | None,
    actual: tuple[int, int],
    fits: tuple[bool, bool],
) -> str:
    """What follows from whether all masks fit the declared size, and whether all fit the file."""
    if fits == (False, True):
        return DECLARED_WRONG
    if declared == actual[::-1]:
        return TURNED
    is_whole = is_count(image.get("height")) and is_count(image.get("width"))
    if fits[0] and is_whole and _have_common_factor(declared, actual):
        return RESIZED
    return UNCLEAR


def _segmentations(
    annotations: Iterable[object], images: dict[int | str, dict]
) -> dict[int | str, list[list | dict]]:
    """Per image id the masks that can be judged: polygons without broken ones, or RLE."""
    masks = defaultdict(list)
    for annotation in annotations:
        if not isinstance(annotation, dict) or not is_id(annotation.get("image_id")):
            continue
        if annotation["image_id"] not in images:
            continue
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, list):
            polygons = [p for p in segmentation if polygon_problem(p) is None]
            if polygons:
                masks[annotation["image_id"]].append(polygons)
        elif isinstance(segmentation, dict) and _covers_its_size(segmentation):
            masks[annotation["image_id"]].append(segmentation)
    return masks


def _covers_its_size(rle: dict) -> bool:
    size, (sums,) = rle.get("size"), run_sums([rle.get("counts")])
    if sums is None or not isinstance(size, list) or [type(side) for side in size] != [int, int]:
        return False
    return sums.shortest >= 0 and sums.total == size[0] * size[1]


def _all_fit(masks: list[list | dict], size: tuple[float, float]) -> bool:
    return all(_fits(mask, size) for mask in masks)


def _fits(mask: list | dict, size: tuple[float, float]) -> bool:
    """Whether a mask may have been drawn for an image of this size."""
    if isinstance(mask, dict):
        return mask["size"] == list(size)
    height, width = size
    xs = [x for polygon in mask for x in polygon[0::2]]
    ys = [y for polygon in mask for y in polygon[1::2]]
    overhang = max(-min(xs), -min(ys), max(xs) - width, max(ys) - height)
    return overhang <= _TOLERANCE


def _declared_size(image: dict) -> tuple[float, float] | None:
    height, width = (plain_number(image.get(key)) for key in ("height", "width"))
    if height is None or width is None or not (0 < height < np.inf and 0 < width < np.inf):
        return None
    return height, width


def _have_common_factor(declared: tuple[float, float], actual: tuple[int, int]) -> bool:
    """Whether both sides were multiplied by the same factor, and then rounded up or down."""
    low = max((new - 1) / old for old, new in zip(declared, actual, strict=True))
    high = min((new + 1) / old for old, new in zip(declared, actual, strict=True))
    return low <= high


def _are_numbers(values: list) -> bool:
    return all(type(value) in (int, float) for value in values)


def _scaled_pairs(numbers: list[float], factors: np.ndarray) -> list[float]:
    return (np.array(numbers, dtype=np.float64).reshape(-1, 2) * factors).ravel().tolist()


def _resized_rle(rle: dict, size: tuple[int, int]) -> dict:
    mask = mask_util.decode(compressed_rle(rle)) * np.uint8(255)
    shrinks = size[0] * size[1] < mask.size
    way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(mask, size[::-1], interpolation=way) > 127
    coded = mask_util.encode(np.asfortranarray(resized, dtype=np.uint8))
    return {"size": list(size), "counts": coded["counts"].decode("ascii")}
