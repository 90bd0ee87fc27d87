"""Which score is the lowest to show: precision, recall and F1 over scores, and what is confused.

A detection is right when it has an object of its own, as in COCO's AP50: the detections of an image
choose by falling score, each the object of its class that is still free and has the largest IoU, if
that is at least 0.5; of masks, or of boxes where there are no masks. Detections inside a crowd of
their class do not count (:func:`rdsnet.evaluation.errors.match`). A threshold takes away
detections, and none of those above it loses its object; so one matching serves all thresholds.

Kept in ``thresholds.json`` beside the detections of an evaluation. K classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rdsnet.evaluation.errors import ImageObjects, match

FILE_NAME = "thresholds.json"
# What is shown from when nothing is known about a model.
DEFAULT_SCORE = 0.5
_IOU = 0.5
_STEPS = 1000  # thresholds are multiples of 0.001


@dataclass(frozen=True)
class ScoreCurve:
    """How many detections there are from every score on, and how many of them are right.

    Attributes:
        objects: that are to be found.
        scores: (P,) thresholds, falling: every multiple of 0.001 that makes a difference.
        detected: (P,) detections of at least this score.
        found: (P,) those of them that have an object.
    """

    objects: int
    scores: np.ndarray
    detected: np.ndarray
    found: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, hits: np.ndarray, objects: int) -> ScoreCurve:
        """Of N detections: their scores and whether each has an object, (N,) in any order."""
        steps = np.floor(np.asarray(scores, float) * _STEPS + 1e-9)
        order = np.argsort(-steps, kind="stable")
        last = np.flatnonzero(np.diff(steps[order], append=-1))  # of those with the same step
        found = np.asarray(hits, int)[order].cumsum()[last]
        return cls(objects, steps[order][last] / _STEPS, last + 1, found)

    @property
    def precision(self) -> np.ndarray:
        return self.found / self.detected

    @property
    def recall(self) -> np.ndarray:
        return self.found / max(self.objects, 1)

    @property
    def f1(self) -> np.ndarray:
        return 2 * self.found / (self.detected + self.objects)

    def at(self, scores: np.ndarray) -> dict[str, np.ndarray]:
        """{"precision", "recall", "F1": (T,)} of T thresholds; NaN: nothing is shown."""
        place = np.searchsorted(-self.scores, -np.asarray(scores, float), side="right") - 1
        values = {"precision": self.precision, "recall": self.recall, "F1": self.f1}
        return {
            name: np.append(of_curve, np.nan)[place]  # place -1: above all scores
            for name, of_curve in values.items()
        }

    @property
    def best(self) -> int | None:
        """Where F1 is best, of equal ones the highest score; None: nothing is ever found."""
        return int(self.f1.argmax()) if self.found.any() else None

    @property
    def best_score(self) -> float | None:
        return None if self.best is None else float(self.scores[self.best])


@dataclass(frozen=True)
class Thresholds:
    """Curves of a data set, and its confusion matrix at the best scores.

    Attributes:
        task: "segm" or "bbox": whose IoU counts.
        class_names: K names.
        together: of all classes with one threshold.
        classes: of each.
        confusion: (K + 1, K + 1) objects by their class (rows) and by what they were found as
            (columns). In the last column are objects that nothing has found, in the last row
            detections that have no object. A detection without an object of its own class takes the
            free one of another class with the largest IoU of at least 0.5, by falling score.
    """

    task: str
    class_names: list[str]
    together: ScoreCurve
    classes: list[ScoreCurve]
    confusion: np.ndarray

    @property
    def best_scores(self) -> list[float] | None:
        """The score of the best F1 of every class.

        A class of which nothing is found has that of all classes together; None: none is found.
        """
        return _best_scores(self.together, self.classes)

    def text(self) -> str:
        """One sentence on the best score; "" where there is none."""
        best, curve = self.together.best, self.together
        if best is None:
            return ""
        what = "masks" if self.task == "segm" else "boxes"
        text = (
            f"Best F1 {curve.f1[best]:.3f} from score {curve.scores[best]:g} on ({what}, IoU 0.5): "
            f"{curve.precision[best]:.0%} of what is shown is right, {curve.recall[best]:.0%} of "
            "the objects are found"
        )
        return text + (f"; every class: {FILE_NAME}" if len(self.classes) > 1 else "")


class _Matched(NamedTuple):
    """Detections and objects of an image: what of :class:`ImageObjects` is needed further on."""

    scores: np.ndarray
    classes: np.ndarray
    found: np.ndarray
    iou: np.ndarray
    gt_classes: np.ndarray
    asked: np.ndarray  # objects that are no crowds


def measure_thresholds(
    images: Iterable[ImageObjects], class_names: Sequence[str], task: str
) -> Thresholds:
    """Curves and confusions of a data set.

    Args:
        images: its detections of all scores, beside its objects.
        class_names: of the K classes.
        task: what the regions of the images are: "segm" or "bbox".
    """
    matched = []
    for image in images:
        found, iou = match(image, _IOU)
        iou = iou.astype(np.float32)
        asked = ~image.gt_ignore
        matched.append(_Matched(image.scores, image.classes, found, iou, image.gt_classes, asked))
    none = np.zeros(0, int)
    found = np.concatenate([none, *(m.found for m in matched)])
    counts = found > -2
    hits = found[counts] >= 0
    scores = np.concatenate([none, *(m.scores for m in matched)])[counts]
    classes = np.concatenate([none, *(m.classes for m in matched)])[counts]
    gt_classes = np.concatenate([none, *(m.gt_classes[m.asked] for m in matched)])
    together = ScoreCurve.of(scores, hits, len(gt_classes))
    curves = []
    for k in range(len(class_names)):
        mine = classes == k
        curves.append(ScoreCurve.of(scores[mine], hits[mine], int((gt_classes == k).sum())))
    lowest = _best_scores(together, curves) or [DEFAULT_SCORE] * len(curves)
    confusion = _confusion(matched, np.array(lowest))
    return Thresholds(task, list(class_names), together, curves, confusion)


def _best_scores(together: ScoreCurve, classes: Sequence[ScoreCurve]) -> list[float] | None:
    if together.best_score is None:
        return None
    best = [curve.best_score for curve in classes]
    return [together.best_score if score is None else score for score in best]


def _confusion(matched: Sequence[_Matched], lowest: np.ndarray) -> np.ndarray:
    """See :class:`Thresholds`; ``lowest`` (K,) is the score that detections of a class need."""
    nothing = len(lowest)
    table = np.zeros((nothing + 1, nothing + 1), int)
    for image in matched:
        shown = (image.found > -2) & (image.scores >= lowest[image.classes])
        hit = image.found[shown & (image.found >= 0)]
        np.add.at(table, (image.gt_classes[hit], image.gt_classes[hit]), 1)
        free = image.asked.copy()
        free[hit] = False
        wrong = np.flatnonzero(shown & (image.found == -1))
        for n in wrong[np.argsort(-image.scores[wrong], kind="stable")]:
            overlap = np.where(free, image.iou[n], 0)
            row = nothing
            if free.any() and overlap.max() >= _IOU:
                best = overlap.argmax()
                row, free[best] = image.gt_classes[best], False
            table[row, image.classes[n]] += 1
        np.add.at(table, (image.gt_classes[free], nothing), 1)
    return table


def write_thresholds(folder: str | Path, thresholds: Thresholds) -> None:
    """Keep them for the report, and for whoever wants to draw the curves in another way."""
    content = {
        "task": thresholds.task,
        "together": _plain(thresholds.together),
        "classes": [
            {"name": name, **_plain(curve)}
            for name, curve in zip(thresholds.class_names, thresholds.classes, strict=True)
        ],
        "confusion": thresholds.confusion.tolist(),
    }
    (Path(folder) / FILE_NAME).write_text(json.dumps(content) + "\n", encoding="utf-8")


def read_thresholds(folder: str | Path) -> Thresholds | None:
    """What :func:`write_thresholds` has written; None: it has not."""
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return Thresholds(
        content["task"],
        [entry["name"] for entry in content["classes"]],
        _curve(content["together"]),
        [_curve(entry) for entry in content["classes"]],
        np.array(content["confusion"], int),
    )


def _plain(curve: ScoreCurve) -> dict[str, object]:
    return {
        "objects": curve.objects,
        "best_score": curve.best_score,
        "scores": curve.scores.tolist(),
        "detected": curve.detected.tolist(),
        "found": curve.found.tolist(),
    }


def _curve(entry: dict) -> ScoreCurve:
    scores, *counts = (np.array(entry[name]) for name in ("scores", "detected", "found"))
    detected, found = (count.astype(int) for count in counts)
    return ScoreCurve(entry["objects"], scores.astype(float), detected, found)
