"""Detections of an evaluation that is over, beside the objects that were annotated.

Read from the files that the evaluation has left, so that they can be looked at without the model.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools.coco import COCO

from rdsnet.data.class_names import metadata_names
from rdsnet.evaluation.errors import ImageObjects, match
from rdsnet.evaluation.thresholds import DEFAULT_SCORE, ScoreCurve

_RESULTS_FILE = "coco_instances_results.json"
# The field of a result or an annotation that holds its region in each task.
_REGIONS = {"bbox": "bbox", "bbox_regressed": "bbox_regressed", "segm": "segmentation"}


class Detections:
    """All detections on a registered data set, with its annotations.

    Args:
        dataset_name: in COCO format, known to Detectron2's catalogs.
        folder: where the evaluation has written ``coco_instances_results.json``.

    Attributes:
        class_names: K distinct names.
        records: {image id: Detectron2's dataset dict}.
        results: {image id: COCO results, by falling score, with contiguous ``category_id``}.

    Raises:
        FileNotFoundError: if the results are missing.
        ValueError: if the data set has no annotations.
    """

    def __init__(self, dataset_name: str, folder: str | Path) -> None:
        path = Path(folder) / _RESULTS_FILE
        if not path.is_file():
            raise FileNotFoundError(f"'{path}' does not exist: no evaluation has written it")
        records = DatasetCatalog.get(dataset_name)
        metadata = MetadataCatalog.get(dataset_name)
        if any("annotations" not in record for record in records):
            raise ValueError(f"data set '{dataset_name}' has no annotations")
        self.records = {record["image_id"]: record for record in records}
        self.class_names = metadata_names(metadata)
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco = COCO(metadata.json_file)
        self._class = metadata.get("thing_dataset_id_to_contiguous_id")
        if self._class is None:
            self._class = {k: k for k in range(len(self.class_names))}
        results = defaultdict(list)
        for result in json.loads(path.read_text()):
            result["category_id"] = self._class[result["category_id"]]
            results[result["image_id"]].append(result)
        for of_image in results.values():
            of_image.sort(key=lambda result: -result["score"])
        self.results: dict[int | str, list[dict]] = dict(results)

    def __len__(self) -> int:
        return sum(map(len, self.results.values()))

    @property
    def main_task(self) -> str:
        """What detections are judged by: "segm" where there are masks, else "bbox"."""
        return "segm" if "segm" in self.tasks() else "bbox"

    def tasks(self) -> list[str]:
        """Those of "bbox", "bbox_regressed" and "segm" that the results have."""
        first = next((of_image[0] for of_image in self.results.values()), {})
        return [task for task, field in _REGIONS.items() if field in first]

    def image(self, image_id: int | str, task: str) -> ImageObjects:
        """Detections, by falling score, and objects of one image."""
        results = self.results.get(image_id, [])
        annotations = self._coco.imgToAnns.get(image_id, [])
        return image_objects(results, annotations, task, self._coco, self._class)

    def images(self, task: str) -> Iterator[ImageObjects]:
        return (self.image(image_id, task) for image_id in self.records)


def image_objects(
    results: Sequence[dict],
    annotations: Sequence[dict],
    task: str,
    coco: COCO,
    classes: Mapping[int | str, int],
) -> ImageObjects:
    """Detections and objects of one image, to be compared.

    Args:
        results: COCO results with contiguous ``category_id``.
        annotations: of ``coco``.
        task: "bbox", "bbox_regressed" or "segm".
        classes: {category id of ``coco``: class, 0 .. K-1}.
    """
    annotations = [a for a in annotations if not a.get("ignore", 0) or a.get("iscrowd", 0)]
    if task == "segm":
        gt_regions = [coco.annToRLE(a) for a in annotations]
    else:
        gt_regions = [a["bbox"] for a in annotations]
    return ImageObjects(
        regions=[result[_REGIONS[task]] for result in results],
        scores=np.array([result["score"] for result in results], float),
        classes=np.array([result["category_id"] for result in results], int),
        gt_regions=gt_regions,
        gt_classes=np.array([classes[a["category_id"]] for a in annotations], int),
        gt_ignore=np.array([a.get("iscrowd", 0) for a in annotations], bool),
    )


@dataclass
class Quality:
    """How well each image came out.

    Attributes:
        score_threshold: at which the detections of the whole set have the best F1 (IoU 0.5).
        f1: there, 0..1.
        images: {image id: quality, 0..1} of the images that have objects: the sum of the IoUs of
            detections with objects, divided by hits + (false detections + missed objects) / 2
            (the panoptic quality of Kirillov et al. 2019, over all classes), for detections of
            at least this score.
    """

    score_threshold: float
    f1: float
    images: dict[int | str, float]


def image_quality(detections: Detections, task: str) -> Quality:
    """See :class:`Quality`; ``task`` is "segm" or "bbox"."""
    scores, ious, owners, asked = [], [], [], {}
    for number, image_id in enumerate(detections.records):
        image = detections.image(image_id, task)
        found, iou = match(image)
        counts = np.flatnonzero(found > -2)
        scores.append(image.scores[counts])
        hit = found[counts]
        ious.append(np.where(hit >= 0, iou[counts, hit] if iou.size else 0.0, 0.0))
        owners += [number] * len(counts)
        asked[image_id] = int((~image.gt_ignore).sum())
    score, iou, owner = np.concatenate(scores), np.concatenate(ious), np.array(owners, int)
    curve = ScoreCurve.of(score, iou > 0, sum(asked.values()))
    threshold, f1 = DEFAULT_SCORE, 0.0
    if curve.best is not None:
        threshold, f1 = curve.best_score, float(curve.f1[curve.best])
    quality = {}
    for number, (image_id, objects) in enumerate(asked.items()):
        if objects:
            mine = iou[(owner == number) & (score >= threshold)]
            hits = int((mine > 0).sum())
            quality[image_id] = float(mine.sum() / (hits + (len(mine) + objects - 2 * hits) / 2))
    return Quality(threshold, f1, quality)


@dataclass
class EdgeShifts:
    """What MBRM has done to E edges.

    Attributes:
        shifts: (E,) pixels, positive outwards, of all detections at or above a score.
        before, after: (F,) distance from the true edge, pixels, positive outwards, of those
            detections that have found an object (same class, IoU of the final box at least 0.5).
    """

    shifts: np.ndarray
    before: np.ndarray
    after: np.ndarray


def edge_shifts(detections: Detections, score_threshold: float) -> EdgeShifts:
    """Moves of the edges from ``bbox_regressed`` to ``bbox``."""
    shifts, before, after = [np.zeros(0)], [np.zeros(0)], [np.zeros(0)]
    for image_id in detections.results:
        image = detections.image(image_id, "bbox")
        kept = image.scores >= score_threshold
        found, _ = match(image)
        final = _edges(image.regions)
        regressed = _edges([r["bbox_regressed"] for r in detections.results[image_id]])
        shifts.append((final - regressed)[kept].ravel())
        hit = kept & (found >= 0)
        truth = _edges(image.gt_regions)[found[hit]] if hit.any() else np.zeros((0, 4))
        before.append((regressed[hit] - truth).ravel())
        after.append((final[hit] - truth).ravel())
    return EdgeShifts(*(np.concatenate(parts) for parts in (shifts, before, after)))


def _edges(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """(N, 4) -x1, -y1, x2, y2 of XYWH boxes: larger is further out."""
    x, y, width, height = np.asarray(boxes, float).reshape(-1, 4).T
    return np.stack([-x, -y, x + width, y + height], axis=1)
