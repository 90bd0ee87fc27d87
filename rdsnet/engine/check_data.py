"""Everything about a data set before training on it: problems, warnings, numbers, a picture."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from detectron2.config import CfgNode

from rdsnet.data.checks import (
    complete_annotations,
    missing_image_findings,
    structure_findings,
    usable_annotations,
)
from rdsnet.data.coco_json import read_coco_json
from rdsnet.data.datasets import coco_records
from rdsnet.data.findings import REMEDIES, Finding, counted, finding_lines
from rdsnet.data.image_files import image_findings, page_findings, read_sizes
from rdsnet.data.images import read_image
from rdsnet.data.quality import REMEDIES as QUALITY_REMEDIES
from rdsnet.data.quality import quality_findings
from rdsnet.data.repair import repair_coco, write_repaired
from rdsnet.data.statistics import DataStatistics, data_statistics
from rdsnet.engine.settings import Wishes, derive_settings
from rdsnet.visualization import captioned, contact_sheet, draw_objects, objects_from_annotations

SHEET_IMAGES, SHEET_COLUMNS, CELL_WIDTH = 12, 4, 480
# Annotations from which on one may wonder whether something is going on.
MANY = 20_000
# Classes that a report lists.
CLASSES_SHOWN = 10


@dataclass
class DataCheck:
    """What :func:`check_data` has found.

    Attributes:
        json_file: what was checked.
        problems: training would fail.
        warnings: it would not, but learn less than it could.
        statistics: of the usable part; None where nothing is.
        content: the usable part.
        sizes: what was found when reading the images (empty: they were not read).
        images_read: whether images were read at all.
        counts: numbers of images, annotations and categories as given.
    """

    json_file: str
    problems: list[Finding]
    warnings: list[Finding]
    statistics: DataStatistics | None
    content: dict | None
    sizes: dict[int, tuple[int, int] | ValueError]
    images_read: bool
    counts: tuple[int, int, int]

    @property
    def trainable(self) -> bool:
        return not self.problems


def check_data(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    read_images: bool = True,
    sizes: dict[int, tuple[int, int] | ValueError] | None = None,
) -> DataCheck:
    """Check a COCO file and its images.

    Args:
        json_file: annotations in COCO's instances format.
        image_root: the folder that ``file_name`` is relative to.
        read_images: decode every image; otherwise they must only exist.
        sizes: what reading these images has given before, so as not to read them again.

    Raises:
        FileNotFoundError, ValueError: if the json does not exist or is no COCO file at all.
    """
    content = read_coco_json(json_file)
    if len(content["annotations"]) > MANY:  # takes some seconds
        print(f"Checking {len(content['annotations'])} annotations ...", file=sys.stderr)
    if sizes is None:
        sizes = read_sizes(content, image_root) if read_images else {}
    problems = structure_findings(content)
    usable = None
    if not problems:
        annotations, invalid = usable_annotations(content)
        problems += missing_image_findings(content, image_root)
        problems += image_findings(content, sizes) + invalid
        annotations = complete_annotations(annotations, content["images"])
        usable = {**content, "annotations": annotations}
    warnings = quality_findings(usable) if usable else []
    if usable:
        warnings += page_findings(usable, image_root, sizes)
    if usable and not any(not a["iscrowd"] for a in usable["annotations"]):
        problems.append(Finding("no object", "annotations", "none can be learnt from"))
    statistics = data_statistics(usable) if usable else None
    counts = tuple(len(content[key]) for key in ("images", "annotations", "categories"))
    return DataCheck(
        os.fspath(json_file), problems, warnings, statistics, usable, sizes, read_images, counts
    )


def report_text(check: DataCheck, cfg: CfgNode, config_name: str) -> str:
    """The report for people.

    Args:
        check: what was found.
        cfg, config_name: the base config whose settings are tried on the data.
    """
    images, annotations, categories = check.counts
    lines = [
        f"{check.json_file}: {counted(images, 'image')}, {counted(annotations, 'annotation')}, "
        f"{counted(categories, 'category', 'categories')}"
    ]
    if check.problems:
        lines += ["", f"{counted(len(check.problems), 'problem')}: training would fail"]
        lines += finding_lines(check.problems, REMEDIES)
        if check.content is None:
            lines += ["", "The annotations themselves can be checked when these are mended."]
    if check.warnings:
        lines += [
            "",
            f"{counted(len(check.warnings), 'warning')}: training works, but look at them",
        ]
        lines += finding_lines(check.warnings, QUALITY_REMEDIES)
    if check.statistics is not None and len(check.statistics.boxes):
        lines += ["", *_numbers(check.statistics)]
        settings = derive_settings(cfg, check.statistics, None, Wishes())
        fitting = [note for note in settings.notes if note[0] in ("Input", "Anchors", "Detections")]
        lines += ["", f"For training with --config {config_name}:"]
        lines += [f"  {topic:<12}{text}" for topic, text in fitting]
    lines += ["", _verdict(check)]
    return "\n".join(lines)


def repair(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    target: str | os.PathLike,
    sizes: dict[int, tuple[int, int] | ValueError],
) -> Counter:
    """Write a repaired copy; returns what was done, {description: how often}.

    Raises:
        ValueError, FileExistsError: see :func:`rdsnet.data.repair.repair_coco` and
            :func:`~rdsnet.data.repair.write_repaired`.
    """
    repaired, done = repair_coco(read_coco_json(json_file), image_root, sizes)
    write_repaired(repaired, json_file, target)
    return +done  # without what was not needed


def draw_sheet(check: DataCheck, image_root: str | os.PathLike, path: str | os.PathLike) -> int:
    """Draw images with their objects, from few objects to many; returns how many are shown.

    Writes no picture when no image can be shown.
    """
    if check.content is None:
        return 0
    names = check.statistics.class_names
    pictures = []
    for record in _chosen(coco_records(check.content, os.fspath(image_root))):
        try:
            image = read_image(record["file_name"], "RGB")
        except (OSError, ValueError):
            continue  # is among the problems
        if image.shape[:2] != (record["height"], record["width"]):
            continue
        objects = objects_from_annotations(record, names)
        picture = draw_objects(image, objects, min_side=CELL_WIDTH)
        name = os.path.basename(record["file_name"])
        text = f"{name}: {counted(len(record['annotations']), 'annotation')}"
        pictures.append(captioned(picture, text, CELL_WIDTH))
    if not pictures:
        return 0
    rows = [pictures[k : k + SHEET_COLUMNS] for k in range(0, len(pictures), SHEET_COLUMNS)]
    footer = f"{check.json_file}: {counted(len(pictures), 'image')}, from few objects to many"
    sheet = contact_sheet(rows, footer=footer, cell_width=CELL_WIDTH)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", sheet[:, :, ::-1])[1].tobytes())
    return len(pictures)


def _chosen(records: list[dict]) -> Iterable[dict]:
    """At most SHEET_IMAGES of those with objects, evenly from the emptiest to the fullest."""
    records = [r for r in records if any(not a["iscrowd"] for a in r["annotations"])]
    records.sort(key=lambda record: len(record["annotations"]))
    places = np.linspace(0, len(records) - 1, min(SHEET_IMAGES, len(records))).round().astype(int)
    return [records[k] for k in places]


def _numbers(statistics: DataStatistics) -> list[str]:
    sizes, per_image = statistics.object_sizes, statistics.objects_per_image
    heights, widths = statistics.image_sizes.T
    counts = statistics.objects_per_class
    order = np.argsort(-counts, kind="stable")
    classes = [f"{statistics.class_names[k]} {counts[k]}" for k in order[:CLASSES_SHOWN]]
    more = f", ... ({len(counts)} classes)" if len(counts) > CLASSES_SHOWN else ""
    low, middle, high = np.quantile(sizes, [0.05, 0.5, 0.95])
    return [
        f"  {'Classes':<12}{', '.join(classes)}{more}",
        f"  {'Images':<12}{widths.min()} to {widths.max()} px wide, {heights.min()} to "
        f"{heights.max()} px high",
        f"  {'Per image':<12}{per_image.min()} to {per_image.max()} objects, median "
        f"{np.median(per_image):g}; {counted(int((per_image == 0).sum()), 'image')} without",
        f"  {'Sizes':<12}median {middle:.3g} px, 90 % of the objects have {low:.3g} to {high:.3g} "
        "px (square root of the box's area)",
        f"  {'Crowds':<12}{counted(statistics.crowds, 'region')}, left out in training",
    ]


def _verdict(check: DataCheck) -> str:
    if check.problems:
        return "Training would fail. 'rdsnet check-data --fix OUT.json' writes a repaired copy."
    if not check.images_read:
        return "Training would work, as far as can be seen without reading the images."
    return "Training would work."
