"""The sections of a report that tell about an evaluation, from the files that it has left."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rdsnet.data.channels import read_picture
from rdsnet.evaluation.breakdown import read_breakdown
from rdsnet.evaluation.detections import Detections, Quality, edge_shifts, image_quality
from rdsnet.evaluation.errors import Errors, error_breakdown, match
from rdsnet.evaluation.table import METRICS, ROWS
from rdsnet.formatting import decimal
from rdsnet.visualization import (
    draw_objects,
    figures,
    match_colors,
    objects_from_annotations,
    objects_from_results,
)
from rdsnet.visualization.page import Figure, Picture, Section, Table, picture_uri

logger = logging.getLogger(__name__)

_IMAGES_SHOWN = 4  # the best, and as many of the worst
_MANY_CLASSES = 20


class Evaluation:
    """What is known about one evaluated data set.

    Attributes:
        name: of the data set.
        folder: where its evaluation has written its files.
        results: {task: {metric: value or None}}; empty if there was nothing to evaluate with.
        breakdown: {task: its APs in parts}, see :func:`rdsnet.evaluation.breakdown.ap_breakdown`.
        detections: None if there are none.
        quality: of every image; None without detections.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        content = read_breakdown(folder)
        self.results: dict[str, dict] = content["results"]
        self.breakdown: dict[str, dict] = content["breakdown"]
        self.detections: Detections | None = None
        self.quality: Quality | None = None
        if self.results:
            self.detections = Detections(name, folder)
            self.quality = image_quality(self.detections, self.main_task)

    @property
    def main_task(self) -> str:
        return self.detections.main_task if self.detections else "bbox"

    def ap(self, task: str, metric: str = "AP") -> float:
        """0..100, or NaN."""
        value = self.results.get(task, {}).get(metric)
        return math.nan if value is None else value


def results_section(evaluation: Evaluation) -> Section:
    """The table of APs."""
    records = {} if evaluation.detections is None else evaluation.detections.records
    if not evaluation.results:
        text = "The data set has no annotations to evaluate with, or has given no predictions."
        return Section("Average precision", text)
    annotations = [a for record in records.values() for a in record["annotations"]]
    crowds = sum(1 for a in annotations if a.get("iscrowd", 0))
    text = (
        f"COCO's AP, 0 to 100, on {len(records):,} images with {len(annotations) - crowds:,} "
        f"objects and {len(evaluation.detections):,} detections; AP50 asks for an IoU of 0.5, "
        "APs, APm and APl are of small, medium and large objects."
    )
    if len(annotations) == crowds:
        text += " Without objects there is no AP."
    elif not len(evaluation.detections):
        text += " Nothing was detected, so there is no AP."
    rows = [
        (title, *(decimal(evaluation.ap(task, metric)) for metric in METRICS))
        for task, title in ROWS
        if task in evaluation.results
    ]
    return Section("Average precision", text, tables=[Table(("", *METRICS), rows)])


def parts_section(evaluation: Evaluation) -> Section | None:
    """AP over IoU thresholds and by size."""
    if not evaluation.breakdown:
        return None
    return Section(
        "By overlap and size",
        figures=[
            Figure(
                figures.iou_and_size_figure(evaluation.breakdown),
                "Left: AP when a detection must overlap its object by more and more. Right: AP of "
                "objects smaller than 32 x 32 pixels, smaller than 96 x 96, and larger; – where "
                "there are none.",
            )
        ],
    )


def classes_section(evaluation: Evaluation) -> Section | None:
    """AP of every class, with its number of objects; left out when there is only one."""
    parts = evaluation.breakdown
    if not parts or len(evaluation.detections.class_names) < 2:
        return None
    tasks = [(task, title) for task, title in (("bbox", "box"), ("segm", "mask")) if task in parts]
    counts = [0] * len(evaluation.detections.class_names)
    for record in evaluation.detections.records.values():
        for annotation in record["annotations"]:
            counts[annotation["category_id"]] += not annotation.get("iscrowd", 0)
    by_class = []
    for k, name in enumerate(evaluation.detections.class_names):
        aps = [parts[task]["classes"][k]["AP"] for task, _ in tasks]
        by_class.append((name, counts[k], [math.nan if ap is None else ap for ap in aps]))
    by_class.sort(key=lambda row: -math.inf if math.isnan(row[2][-1]) else row[2][-1], reverse=True)
    rows = [(name, f"{count:,}", *map(decimal, aps)) for name, count, aps in by_class]
    many = len(rows) > _MANY_CLASSES
    bars = {} if many else {2 + k: 100.0 for k in range(len(tasks))}
    headers = ("class", "objects", *(f"{title} AP" for _, title in tasks))
    caption = "Best first; – where the data set has no object of the class."
    return Section("By class", tables=[Table(headers, rows, caption, bars, dense=many)])


def errors_section(evaluation: Evaluation) -> Section | None:
    """Kinds of errors and their costs."""
    if evaluation.detections is None:
        return None
    errors: dict[str, Errors] = {
        task: error_breakdown(
            tqdm(
                evaluation.detections.images(task),
                f"Errors ({task})",
                total=len(evaluation.detections.records),
                unit="image",
                disable=None,
            )
        )
        for task in evaluation.detections.tasks()
        if task != "bbox_regressed"
    }
    if all(math.isnan(e.ap50) for e in errors.values()):  # also when there are none
        return None
    kinds = list(next(iter(errors.values())).counts)
    rows = [
        (f"{kind}: {_EXPLANATIONS[kind]}", *(f"{e.counts[kind]:,}" for e in errors.values()))
        for kind in kinds
    ]
    titles = {"bbox": "boxes", "segm": "masks"}
    return Section(
        "Errors",
        "What kinds of errors there are, after TIDE (Bolya et al. 2020): every detection without "
        "an object, and every object without a detection, at IoU 0.5.",
        figures=[
            Figure(
                figures.error_figure({task: e.costs for task, e in errors.items()}),
                "How much AP50 would rise if all errors of one kind, and no others, were put "
                "right; the figures do not add up.",
            )
        ],
        tables=[
            Table(
                ("kind", *(titles[task] for task in errors)),
                rows,
                "How often each kind occurs, among detections of every score.",
            )
        ],
    )


_EXPLANATIONS = {
    "classification": "in the right place, of the wrong class",
    "location": "of the right class, IoU between 0.1 and 0.5",
    "both": "of the wrong class, IoU between 0.1 and 0.5",
    "duplicate": "of an object that has a better detection",
    "background": "where there is nothing",
    "missed": "objects that nothing comes near",
}


def mbrm_section(evaluation: Evaluation) -> Section | None:
    """What boundary refinement did to the boxes."""
    detections = evaluation.detections
    if detections is None or "bbox_regressed" not in detections.tasks():
        return None
    moves = edge_shifts(detections, evaluation.quality.score_threshold)
    if not len(moves.shifts):
        return None
    if not np.any(moves.shifts):
        return Section("Boundary refinement", "It is off: boxes are as they were regressed.")
    before, after = evaluation.ap("bbox_regressed"), evaluation.ap("bbox")
    text = (
        f"MBRM moves the edges of boxes to where the masks end: box AP {decimal(before)} before, "
        f"{decimal(after)} after; AP90 {decimal(evaluation.ap('bbox_regressed', 'AP90'))} before, "
        f"{decimal(evaluation.ap('bbox', 'AP90'))} after. It moved "
        f"{np.mean(np.abs(moves.shifts) > 1e-3):.0%} of the edges."
    )
    if len(moves.before):
        text += (
            f" Of those that have found an object, the median distance from the true edge was "
            f"{np.median(np.abs(moves.before)):.2f} pixels before and "
            f"{np.median(np.abs(moves.after)):.2f} after."
        )
    caption = (
        "Left: how far edges were moved. Right: how far they lay from the true edge before and "
        "after. Detections with a score of at least "
        f"{evaluation.quality.score_threshold:.2f}; the outermost bars hold everything beyond."
    )
    svg = figures.edge_figure(moves.shifts, moves.before, moves.after)
    return Section("Boundary refinement", text, figures=[Figure(svg, caption)])


def examples_sections(evaluation: Evaluation) -> Iterator[Section]:
    """The images that came out best and worst."""
    if evaluation.quality is None or not evaluation.quality.images:
        return
    quality = evaluation.quality
    order = sorted(quality.images, key=quality.images.get, reverse=True)
    shown = min(_IMAGES_SHOWN, max(1, len(order) // 2))
    text = (
        "Annotated objects on the left, predictions on the right (dashed: boxes before MBRM), with "
        f"a score of at least {quality.score_threshold:.2f}, where F1 is best on this data set "
        f"({quality.f1:.2f}). The quality of an image is its panoptic quality: the mean IoU of the "
        "objects found, lowered by what was missed and what is not there."
    )
    yield Section("Best images", text, pictures=_examples(evaluation, order[:shown]))
    if len(order) > shown:
        worst = order[: -shown - 1 : -1]
        yield Section("Worst images", pictures=_examples(evaluation, worst))


def _examples(evaluation: Evaluation, image_ids: list[int | str]) -> list[list[Picture]]:
    detections, quality = evaluation.detections, evaluation.quality
    rows = []
    for image_id in image_ids:
        record = detections.records[image_id]
        try:
            image = read_picture(record["file_name"])
        except (OSError, ValueError) as error:
            logger.warning(f"The report shows no picture of {record['file_name']}: {error}")
            continue
        results = [
            result
            for result in detections.results.get(image_id, [])
            if result["score"] >= quality.score_threshold
        ]
        truth = objects_from_annotations(record, detections.class_names)
        found = objects_from_results(results, detections.class_names)
        found = match_colors(found, truth)
        captions = (
            f"{Path(record['file_name']).name}: {len(truth)} objects",
            f"quality {quality.images[image_id]:.2f}: {_found(evaluation, image_id)}",
        )
        rows.append(
            [
                Picture(picture_uri(draw_objects(image, objects)), caption)
                for objects, caption in zip((truth, found), captions, strict=True)
            ]
        )
    return rows


def _found(evaluation: Evaluation, image_id: int | str) -> str:
    image = evaluation.detections.image(image_id, evaluation.main_task)
    found, _ = match(image)
    found = found[image.scores >= evaluation.quality.score_threshold]
    objects = int((~image.gt_ignore).sum())
    return f"{(found >= 0).sum()} of {objects} objects found, {(found == -1).sum()} false"
