"""Box AP before and after MBRM and mask AP from one evaluation run.

Detectron2's COCOEvaluator does the work; it runs a second time, on boxes alone, with the boxes as
they were regressed. So the gain of MBRM can be read from every evaluation (paper, Tab. 4).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from pycocotools.cocoeval import COCOeval

from rdsnet.data.class_names import metadata_names
from rdsnet.evaluation.breakdown import ap_breakdown, results_folder, write_breakdown
from rdsnet.evaluation.coco_results import instances_to_coco_json
from rdsnet.evaluation.detections import image_objects
from rdsnet.evaluation.table import results_table, what_is_missing
from rdsnet.evaluation.thresholds import Thresholds, measure_thresholds, write_thresholds
from rdsnet.evaluation.truth import CocoTruth


class RDSNetEvaluator(COCOEvaluator):
    """COCO metrics of ``bbox``, ``bbox_regressed`` (before MBRM) and ``segm``.

    All arguments are those of Detectron2's COCOEvaluator. Ids of images, categories and annotations
    are any integers and text (:class:`~rdsnet.evaluation.truth.CocoTruth`).

    A model without MBRM has the same figures for ``bbox`` and ``bbox_regressed``; one without masks
    has no ``segm``. Where nothing at all was detected, all three are there and NaN. Why a figure is
    missing is said in the log.

    Besides Detectron2's metrics (0..100: AP, AP50, AP75, APs, APm, APl, AP-<class>) there is AP90,
    the AP at IoU 0.9, where sharper boxes show most.

    With ``output_dir``, ``coco_instances_results.json`` holds all detections, with
    ``bbox_regressed`` beside ``bbox``, ``breakdown.json`` the results and their parts
    (:mod:`rdsnet.evaluation.breakdown`), and ``thresholds.json`` precision, recall and F1 over
    scores (:mod:`rdsnet.evaluation.thresholds`; not for a part of the images).
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._coco_api = CocoTruth(self._coco_api.dataset)

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset_name: str) -> RDSNetEvaluator:
        """For a registered data set, with at most ``TEST.DETECTIONS_PER_IMAGE`` objects per image.

        Writes into its :func:`~rdsnet.evaluation.breakdown.results_folder`.
        """
        return cls(
            dataset_name,
            output_dir=str(results_folder(cfg, dataset_name)),
            max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        )

    def limit_note(self, predictions: list[dict]) -> str:
        """How many images have as many detections as there may be; "" where none has."""
        limit = self._max_dets_per_image[-1]
        full = [image for image in predictions if len(image["instances"]) >= limit]
        if not full:
            return ""
        annotations = self._coco_api.imgToAnns
        crowded = sum(
            sum(not a.get("iscrowd", 0) for a in annotations[image["image_id"]]) > limit
            for image in full
        )
        more = f" {crowded} of them have more annotated objects than that." if crowded else ""
        return (
            f"{len(full)} of {len(predictions)} images reached TEST.DETECTIONS_PER_IMAGE, {limit} "
            f"detections; what was less certain does not count.{more} rdsnet eval "
            "--max-detections N allows more."
        )

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Keep the detections of a batch as COCO results; no dense mask is kept."""
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to(self._cpu_device)
            results = instances_to_coco_json(instances, image["image_id"])
            self._predictions.append({"image_id": image["image_id"], "instances": results})

    def evaluate(self, img_ids: Iterable[int | str] | None = None) -> OrderedDict:
        """{task: {metric: value}}; in distributed runs in the main process, elsewhere empty.

        Args:
            img_ids: of the images that count; None: all.
        """
        self._breakdown: dict[str, dict] = {}
        self._limit_note = ""
        self._thresholds: Thresholds | None = None
        self._num_detections = 0
        if img_ids is not None:
            img_ids = [self._coco_api.image_numbers[id_] for id_ in img_ids]
        results = super().evaluate(img_ids)
        if self._output_dir and comm.is_main_process() and os.path.isdir(self._output_dir):
            write_breakdown(self._output_dir, results, self._breakdown)
        if results:
            name, objects = self._metadata.name, self._coco_api.num_objects
            missing = what_is_missing(results, name, objects, self._num_detections)
            self._logger.info(f"COCO evaluation:\n{results_table(results)}\n{missing}".rstrip())
        if self._limit_note:
            self._logger.info(self._limit_note)
        if self._thresholds is not None:
            if text := self._thresholds.text():
                self._logger.info(text)
            if self._output_dir:
                write_thresholds(self._output_dir, self._thresholds)
        return results

    def _tasks_from_predictions(self, predictions: list[dict]) -> list[str]:
        if not predictions:
            return ["bbox", "segm"]
        return super()._tasks_from_predictions(predictions)

    def _eval_predictions(self, predictions: list[dict], img_ids: list[int] | None = None) -> None:
        self._limit_note = self.limit_note(predictions)
        self._num_detections = sum(len(image["instances"]) for image in predictions)
        if self._do_evaluation and img_ids is None:
            self._thresholds = self._measure_thresholds(predictions)
        # The parent changes the results in place: the second run needs its own beforehand.
        regressed = [
            {"instances": [_with_regressed_box(result) for result in image["instances"]]}
            for image in predictions
        ]
        super()._eval_predictions(predictions, img_ids=img_ids)
        if not self._do_evaluation:
            return
        results = self._results
        kept = self._results, self._output_dir, self._tasks, self._breakdown
        self._results, self._output_dir, self._tasks, self._breakdown = {}, None, ["bbox"], {}
        try:
            self._logger.info("Boxes as regressed, before MBRM:")
            super()._eval_predictions(regressed, img_ids=img_ids)
            results["bbox_regressed"] = self._results["bbox"]
            regressed_parts = {f"{task}_regressed": x for task, x in self._breakdown.items()}
        finally:
            self._results, self._output_dir, self._tasks, self._breakdown = kept
        self._breakdown.update(regressed_parts)
        results.move_to_end("bbox_regressed", last=False)
        results.move_to_end("bbox", last=False)

    def _measure_thresholds(self, predictions: list[dict]) -> Thresholds:
        """By masks where there are any. Before the parent changes the results in place."""
        truth = self._coco_api
        results = {truth.image_numbers[p["image_id"]]: p["instances"] for p in predictions}
        task = "segm" if any("segmentation" in r for of in results.values() for r in of) else "bbox"
        classes = {number: number - 1 for number in truth.cats}
        images = (
            image_objects(results.get(n, []), truth.imgToAnns.get(n, []), task, truth, classes)
            for n in truth.imgs
        )
        return measure_thresholds(images, metadata_names(self._metadata), task)

    def _derive_coco_results(
        self,
        coco_eval: COCOeval | None,
        iou_type: str,
        class_names: Sequence[str] | None = None,
    ) -> dict[str, float]:
        if class_names is not None:
            class_names = metadata_names(self._metadata)  # each is to have its own AP
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        ap90 = float("nan")
        if coco_eval is not None:
            # precision: (IoU threshold, recall, class, area range, max. detections); -1: no objects
            iou_90 = np.isclose(coco_eval.params.iouThrs, 0.9)
            precision = coco_eval.eval["precision"][iou_90, :, :, 0, -1]
            precision = precision[precision > -1]
            ap90 = float(precision.mean() * 100) if precision.size else ap90
            self._breakdown[iou_type] = ap_breakdown(coco_eval, class_names or [])
        results["AP90"] = ap90
        # Behind the other summary figures, before those of the classes.
        return dict(sorted(results.items(), key=lambda item: item[0].startswith("AP-")))


def _with_regressed_box(result: dict) -> dict:
    kept = {name: result[name] for name in ("image_id", "category_id", "score")}
    return {**kept, "bbox": result.get("bbox_regressed", result["bbox"])}
