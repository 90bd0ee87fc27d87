"""What the errors of a detector are, and what each kind costs: TIDE (Bolya et al., ECCV 2020).

Detections of an image are matched to its objects at IoU 0.5 as in COCO: by falling score, each to
the unmatched object of its class with the largest IoU. A detection without an object is of the
first kind that fits, with the largest IoU over all objects of a kind:

    location        same class, 0.1 <= IoU <= 0.5
    classification  another class, IoU >= 0.5
    duplicate       same class, IoU >= 0.5, but a better-scored detection has the object
    background      IoU <= 0.1 with everything
    both            what is left: another class, IoU between 0.1 and 0.5

and an object that no detection has is "missed", unless repairing a location or classification
error gives it one. The cost of a kind is how much AP50 would rise if all errors of that kind alone
were repaired (*oracles*, Sec. 2.3 of the paper): a wrong class or place is put right, or the
detection removed where the object has a better one already; duplicates, detections on background
and those wrong in both ways are removed; missed objects are no longer asked for. Costs do not add
up to 100 - AP50.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pycocotools.mask as coco_mask

_FOREGROUND_IOU, _BACKGROUND_IOU = 0.5, 0.1
KINDS = ("classification", "location", "both", "duplicate", "background", "missed")
_RECALLS = np.linspace(0, 1, 101)  # where COCO reads precision


@dataclass
class ImageObjects:
    """Detections (N, any order) and annotated objects (M) of one image.

    Attributes:
        regions: N boxes (x, y, width, height) or N compressed RLEs.
        scores, classes: (N,).
        gt_regions, gt_classes: of the M objects, in the same form.
        gt_ignore: (M,) bool, crowds: detections inside do not count.
    """

    regions: Sequence
    scores: np.ndarray
    classes: np.ndarray
    gt_regions: Sequence
    gt_classes: np.ndarray
    gt_ignore: np.ndarray


@dataclass
class Errors:
    """How often each kind of error occurs, and what it costs.

    Attributes:
        ap50: AP at IoU 0.5, 0..100; NaN: no objects.
        counts: {kind: number of detections, or objects if missed}.
        costs: {kind: points of AP50 gained by repairing all of it}.
    """

    ap50: float
    counts: dict[str, int]
    costs: dict[str, float]


@dataclass
class _Points:
    """Detections of the data set that count: class, score, and whether they have an object."""

    classes: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    hits: list[bool] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)  # "" for a hit
    # What repairing makes of the detection: the class in which it is a hit, or -1: removed.
    repaired: list[int] = field(default_factory=list)


def error_breakdown(images: Iterable[ImageObjects]) -> Errors:
    """Kinds of errors over a data set."""
    points = _Points()
    objects: dict[int, int] = {}  # class -> number of objects
    missed: dict[int, int] = {}
    for image in images:
        _classify_image(image, points, objects, missed)
    classes, scores = np.array(points.classes, int), np.array(points.scores, float)
    hits, kinds = np.array(points.hits, bool), np.array(points.kinds, str)
    repaired = np.array(points.repaired, int)
    ap50 = _mean_ap(classes, scores, hits, objects)
    counts = {kind: int((kinds == kind).sum()) for kind in KINDS[:-1]}
    costs = {}
    for kind in KINDS[:-1]:
        wrong = kinds == kind
        keep = ~wrong | (repaired >= 0)
        fixed_classes = np.where(wrong & (repaired >= 0), repaired, classes)[keep]
        fixed = _mean_ap(fixed_classes, scores[keep], (hits | wrong)[keep], objects)
        costs[kind] = max(fixed - ap50, 0.0)
    counts["missed"] = sum(missed.values())
    left = {k: count - missed.get(k, 0) for k, count in objects.items()}
    costs["missed"] = max(_mean_ap(classes, scores, hits, left) - ap50, 0.0)
    return Errors(ap50, counts, costs)


def match(image: ImageObjects, threshold: float = _FOREGROUND_IOU) -> tuple[np.ndarray, np.ndarray]:
    """COCO's matching.

    Returns:
        found (N,): index of the object that each detection has, -1 for none, -2 where it does not
        count, since it lies in a crowd of its class; iou (N, M) with what is not to be ignored
        (0 elsewhere).
    """
    iou = _overlap(image)
    candidates = iou * (image.classes[:, None] == image.gt_classes[None])
    found = np.full(len(image.scores), -1)
    if iou.size == 0:
        return found, iou
    crowds = np.flatnonzero(image.gt_ignore)
    candidates[:, crowds] = 0
    for n in np.argsort(-image.scores, kind="stable"):
        best = candidates[n].argmax()
        if candidates[n, best] >= threshold:
            found[n] = best
            candidates[:, best] = 0
    if len(crowds):
        regions = [image.gt_regions[m] for m in crowds]
        inside = coco_mask.iou(list(image.regions), regions, [1] * len(crowds)) >= threshold
        inside &= image.classes[:, None] == image.gt_classes[crowds][None]
        found[inside.any(1) & (found == -1)] = -2
        iou[:, crowds] = 0
    return found, iou


def _overlap(image: ImageObjects) -> np.ndarray:
    """(N, M) IoU of all detections with all objects."""
    if not len(image.regions) or not len(image.gt_regions):
        return np.zeros((len(image.regions), len(image.gt_regions)))
    gt_regions = list(image.gt_regions)
    return np.asarray(coco_mask.iou(list(image.regions), gt_regions, [0] * len(gt_regions)))


def _classify_image(
    image: ImageObjects, points: _Points, objects: dict[int, int], missed: dict[int, int]
) -> None:
    found, iou = match(image)
    same = image.classes[:, None] == image.gt_classes[None]
    asked = ~image.gt_ignore
    taken = np.zeros(len(asked), bool)
    taken[found[found >= 0]] = True
    repairable = np.zeros(len(asked), bool)
    for n in np.argsort(-image.scores, kind="stable"):
        if found[n] == -2:
            continue
        kind, repaired = "", -1
        if found[n] == -1:
            kind, target = _kind(iou[n], same[n], taken)
            if target >= 0 and not taken[target] and not repairable[target]:
                repairable[target] = True
                repaired = int(image.gt_classes[target])
        points.classes.append(int(image.classes[n]))
        points.scores.append(float(image.scores[n]))
        points.hits.append(bool(found[n] >= 0))
        points.kinds.append(kind)
        points.repaired.append(repaired)
    for m in np.flatnonzero(asked):
        number = int(image.gt_classes[m])
        objects[number] = objects.get(number, 0) + 1
        if not taken[m] and not repairable[m]:
            missed[number] = missed.get(number, 0) + 1


def _kind(iou: np.ndarray, same: np.ndarray, taken: np.ndarray) -> tuple[str, int]:
    """The kind of one false positive, and the object that repairing would give it (-1: none)."""
    if not iou.size:
        return "background", -1
    own, other = iou * same, iou * ~same
    best = int(own.argmax())
    if _BACKGROUND_IOU <= own[best] <= _FOREGROUND_IOU:
        return "location", best
    best = int(other.argmax())
    if other[best] >= _FOREGROUND_IOU:
        return "classification", best
    if (own * taken).max() >= _FOREGROUND_IOU:
        return "duplicate", -1
    return ("background" if iou.max() <= _BACKGROUND_IOU else "both"), -1


def _mean_ap(
    classes: np.ndarray, scores: np.ndarray, hits: np.ndarray, objects: dict[int, int]
) -> float:
    """Mean over the classes that have objects, 0..100."""
    aps = [
        average_precision(scores[classes == k], hits[classes == k], count)
        for k, count in objects.items()
    ]
    return 100 * float(np.mean(aps)) if aps else float("nan")


def average_precision(scores: np.ndarray, hits: np.ndarray, num_objects: int) -> float:
    """COCO's AP of one class, 0..1: precision at 101 recalls, made monotonous, averaged.

    With no object left to find it is 1 where nothing is detected, else 0.
    """
    if num_objects == 0:
        return float(len(hits) == 0)
    hits = hits[np.argsort(-scores, kind="mergesort")]
    true = hits.cumsum()
    precision = np.maximum.accumulate((true / np.arange(1, len(hits) + 1))[::-1])[::-1]
    place = np.searchsorted(true / num_objects, _RECALLS, side="left")
    return float(np.append(precision, 0.0)[place].mean())
