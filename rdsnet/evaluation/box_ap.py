"""Box AP of many variants of the same detections, without running the network again."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from rdsnet.evaluation.truth import CocoTruth


class ImageBoxes(NamedTuple):
    """Detections of one image."""

    image_id: int | str
    boxes: Tensor  # (N, 4) XYXY, output pixels
    scores: Tensor  # (N,)
    classes: Tensor  # (N,) int64, 0 .. K-1


class BoxAP:
    """COCO's box AP on a registered data set.

    Args:
        dataset_name: a data set in COCO format, known to Detectron2's catalogs.
        max_detections: detections that count per image.

    Raises:
        ValueError: if the data set is not in COCO format.
    """

    def __init__(self, dataset_name: str, max_detections: int = 100) -> None:
        DatasetCatalog.get(dataset_name)  # checks the annotations, and may replace json_file
        metadata = MetadataCatalog.get(dataset_name)
        json_file = metadata.get("json_file")
        if json_file is None:
            raise ValueError(
                f"data set '{dataset_name}' has no COCO annotation file. Give it in "
                "DATASETS.COCO_FILES as ['name', 'annotations.json', 'image folder']."
            )
        self.truth = CocoTruth.read(json_file)
        self.max_detections = max_detections
        ids = metadata.thing_dataset_id_to_contiguous_id
        self.category_ids = {number: category for category, number in ids.items()}

    def __call__(self, images: Iterable[ImageBoxes], sizes: bool = True) -> dict[str, float]:
        """Metrics in 0..100, NaN where there are no objects: AP, AP50, AP75, AP90 and, with
        ``sizes``, APs, APm, APl (objects below 32^2, below 96^2, and from there on, pixels).
        """
        evaluation = COCOeval(self.truth, self._results(images), "bbox")
        evaluation.params.maxDets = [self.max_detections]
        areas = 4 if sizes else 1
        evaluation.params.areaRng = evaluation.params.areaRng[:areas]
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:areas]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
            evaluation.accumulate()
        # (IoU threshold, recall, class, area range, maximum); -1: no objects
        precision = evaluation.eval["precision"][..., 0]
        thresholds = evaluation.params.iouThrs
        metrics = {"AP": _mean(precision[..., 0])}
        for iou in (50, 75, 90):
            metrics[f"AP{iou}"] = _mean(precision[np.isclose(thresholds, iou / 100), ..., 0])
        for area, name in enumerate(("APs", "APm", "APl")[: areas - 1], start=1):
            metrics[name] = _mean(precision[..., area])
        return metrics

    def _results(self, images: Iterable[ImageBoxes]) -> COCO:
        annotations = []
        for image_id, boxes, scores, classes in images:
            image_number = self.truth.image_numbers[image_id]
            for box, score, class_ in zip(boxes.tolist(), scores.tolist(), classes.tolist()):
                x1, y1, x2, y2 = box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_number,
                        "category_id": self.truth.category_numbers[self.category_ids[class_]],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "score": score,
                        "iscrowd": 0,
                    }
                )
        results = COCO()
        results.dataset = {
            "images": self.truth.dataset["images"],
            "categories": self.truth.dataset["categories"],
            "annotations": annotations,
        }
        with contextlib.redirect_stdout(io.StringIO()):
            results.createIndex()
        return results


def _mean(precision: np.ndarray) -> float:
    precision = precision[precision > -1]
    return float(precision.mean() * 100) if precision.size else float("nan")
