"""Everything about a data set before training on it: problems, warnings, numbers, a picture."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from rdsnet.data.channels import read_picture
from rdsnet.data.checks import (
    complete_annotations,
    structure_findings,
    usable_annotations,
)
from rdsnet.data.coco_json import read_coco_json
from rdsnet.data.crowds import crowd_summary, crowds_as_objects
from rdsnet.data.datasets import coco_records
from rdsnet.data.equal_images import equal_image_findings
from rdsnet.data.findings import REMEDIES, Finding, counted, finding_lines
from rdsnet.data.image_files import channel_findings, image_findings, page_findings, read_sizes
from rdsnet.data.image_paths import missing_image_findings, with_fitting_names
from rdsnet.data.image_sizes import (
    RESIZED,
    TURNED,
    UNCLEAR,
    disagreements,
    with_proven_sizes,
)
from rdsnet.data.normal_form import normal_form, read_as_lines
from rdsnet.data.quality import REMEDIES as QUALITY_REMEDIES
from rdsnet.data.quality import quality_findings
from rdsnet.data.repair import Done, repair_coco, write_repaired
from rdsnet.data.statistics import DataStatistics, data_statistics
from rdsnet.visualization import (
    captioned,
    contact_sheet,
    draw_objects,
    objects_from_annotations,
    write_sheet,
)

_SHEET_IMAGES, _SHEET_COLUMNS, _CELL_WIDTH = 12, 4, 480
# From so many annotations on, people are told that the check is at work.
_MANY = 20_000
# Kinds of problems whose images --fix leaves out.
_LEFT_OUT_BY_FIX = {"image file", "unreadable image", RESIZED, TURNED, UNCLEAR}
# Classes that a report lists.
_CLASSES_SHOWN = 10


@dataclass
class DataCheck:
    """What :func:`check_data` has found.

    Attributes:
        json_file: what was checked.
        problems: training would fail.
        read_as: values in another form than COCO's, which mean one thing only.
        warnings: it would not, but learn less than it could.
        statistics: of the usable part; None where nothing is.
        content: the usable part.
        sizes: what was found when reading the images (empty: they were not read).
        images_read: whether images were read at all.
        counts: numbers of images, annotations and categories as given.
    """

    json_file: str
    problems: list[Finding]
    read_as: list[Finding]
    warnings: list[Finding]
    statistics: DataStatistics | None
    content: dict | None
    sizes: dict[int | str, tuple[int, int] | ValueError]
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
    sizes: dict[int | str, tuple[int, int] | ValueError] | None = None,
    crowds_are_objects: bool = False,
) -> DataCheck:
    """Check a COCO file and its images.

    Args:
        json_file: annotations in COCO's instances format.
        image_root: the folder that ``file_name`` is relative to.
        read_images: decode every image; otherwise they must only exist.
        sizes: what reading these images has given before, so as not to read them again.
        crowds_are_objects: as ``DATASETS.CROWDS_ARE_OBJECTS``.

    Raises:
        FileNotFoundError, ValueError: if the json does not exist or is no COCO file at all.
    """
    content, read_as = normal_form(read_coco_json(json_file))
    if crowds_are_objects:
        content, _ = crowds_as_objects(content)
    if len(content["annotations"]) > _MANY:  # takes some seconds
        print(f"Checking {len(content['annotations'])} annotations ...", file=sys.stderr)
    if sizes is None:
        sizes = read_sizes(content, image_root) if read_images else {}
    problems = structure_findings(content)
    usable = None
    if not problems:
        differing = disagreements(content, sizes)
        problems += missing_image_findings(content, image_root)
        problems += image_findings(content, sizes, differing)
        problems += channel_findings(content, image_root) if read_images else []
        content = with_proven_sizes(content, differing)
        annotations, invalid = usable_annotations(content)
        problems += invalid
        annotations = complete_annotations(annotations, content["images"])
        usable = {**content, "annotations": annotations}
    warnings = quality_findings(usable) if usable else []
    if usable and read_images:
        warnings += equal_image_findings(usable, image_root)
        warnings += page_findings(usable, image_root)
    if usable and not any(not a["iscrowd"] for a in usable["annotations"]):
        count = len(usable["annotations"])
        message = crowd_summary(count, count) or "none can be learnt from"
        problems.append(Finding("no object", "annotations", message))
    statistics = data_statistics(usable) if usable else None
    counts = tuple(len(content[key]) for key in ("images", "annotations", "categories"))
    return DataCheck(
        os.fspath(json_file),
        problems,
        read_as,
        warnings,
        statistics,
        usable,
        sizes,
        read_images,
        counts,
    )


def report_text(
    check: DataCheck, config_name: str, fitting: Callable[[DataStatistics], list[tuple[str, str]]]
) -> str:
    """The report for people.

    Args:
        check: what was found.
        config_name: of the base config that is tried on the data.
        fitting: what its settings make of the data, as topics and sentences.
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
    if check.read_as:
        values = counted(len(check.read_as), "value")
        lines += ["", f"{values} in another form than COCO's, read as what they can only mean"]
        lines += read_as_lines(check.read_as)
    if check.warnings:
        lines += [
            "",
            f"{counted(len(check.warnings), 'warning')}: no reason not to train, but look at them",
        ]
        lines += finding_lines(check.warnings, QUALITY_REMEDIES)
    if check.statistics is not None and len(check.statistics.boxes):
        lines += ["", *_numbers(check.statistics)]
        lines += ["", f"For training with --config {config_name}:"]
        lines += [f"  {topic:<12}{text}" for topic, text in fitting(check.statistics)]
    lines += ["", _verdict(check)]
    return "\n".join(lines)


def repair(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    target: str | os.PathLike,
    sizes: dict[int | str, tuple[int, int] | ValueError],
    *,
    read_images: bool = True,
    **wanted: bool,
) -> Done:
    """Write a repaired copy; returns what was done.

    Args:
        json_file, image_root: as of :func:`check_data`.
        target: the copy.
        sizes: what was found when reading the images, of those that were read; gets that of images
            that are found by another name.
        read_images: read these; otherwise they must only exist.
        wanted: what :func:`rdsnet.data.repair.repair_coco` is to do beside what is beyond doubt.

    Raises:
        ValueError, FileExistsError: see :func:`rdsnet.data.repair.repair_coco` and
            :func:`~rdsnet.data.repair.write_repaired`.
    """
    content, renamed = with_fitting_names(read_coco_json(json_file), image_root)
    if read_images:
        found, _ = normal_form({**content, "images": renamed, "annotations": []})
        sizes |= read_sizes(found, image_root)
    repaired, done = repair_coco(content, image_root, sizes, **wanted)
    done["file names corrected"] += len(renamed)
    write_repaired(repaired, json_file, target)
    return done


def draw_sheet(check: DataCheck, image_root: str | os.PathLike, path: str | os.PathLike) -> int:
    """Draw images with their objects, from few objects to many; returns how many are shown.

    Writes no picture when no image can be shown.
    """
    if check.content is None:
        return 0
    names = check.statistics.class_names
    pictures = []
    records = [
        record
        for record in coco_records(check.content, os.fspath(image_root))
        if check.sizes.get(record["image_id"]) == (record["height"], record["width"])
    ]  # the others are among the problems
    for record in _chosen(records):
        image = read_picture(record["file_name"])
        objects = objects_from_annotations(record, names)
        picture = draw_objects(image, objects, min_side=_CELL_WIDTH)
        name = os.path.basename(record["file_name"])
        text = f"{name}: {counted(len(record['annotations']), 'annotation')}"
        pictures.append(captioned(picture, text, _CELL_WIDTH))
    if not pictures:
        return 0
    rows = [pictures[k : k + _SHEET_COLUMNS] for k in range(0, len(pictures), _SHEET_COLUMNS)]
    footer = f"{check.json_file}: {counted(len(pictures), 'image')}, from few objects to many"
    sheet = contact_sheet(rows, footer=footer, cell_width=_CELL_WIDTH)
    write_sheet(sheet, path)
    return len(pictures)


def _chosen(records: list[dict]) -> Iterable[dict]:
    """At most ``_SHEET_IMAGES`` of those with objects, evenly from the emptiest to the fullest."""
    records = [r for r in records if any(not a["iscrowd"] for a in r["annotations"])]
    records.sort(key=lambda record: len(record["annotations"]))
    places = np.linspace(0, len(records) - 1, min(_SHEET_IMAGES, len(records))).round().astype(int)
    return [records[k] for k in places]


def _numbers(statistics: DataStatistics) -> list[str]:
    sizes, per_image = statistics.object_sizes, statistics.objects_per_image
    heights, widths = statistics.image_sizes.T
    counts = statistics.objects_per_class
    order = np.argsort(-counts, kind="stable")
    classes = [f"{statistics.class_names[k]} {counts[k]}" for k in order[:_CLASSES_SHOWN]]
    more = f", ... ({len(counts)} classes)" if len(counts) > _CLASSES_SHOWN else ""
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
        left_out = {finding.where for finding in check.problems if finding.kind in _LEFT_OUT_BY_FIX}
        if len(left_out) >= check.counts[0] > 0:
            return "Training would fail, and --fix would leave every image out: do as said above."
        fix = "--fix OUT.json"
        if check.statistics and check.statistics.crowds and not len(check.statistics.boxes):
            fix += " --crowds-are-objects"
        elif {finding.kind for finding in check.problems} == {"no object"}:
            return "Training would fail: there is nothing to learn from."
        return f"Training would fail. 'rdsnet check-data {fix}' writes a repaired copy."
    if not check.images_read:
        return "Training would work, as far as can be seen without reading the images."
    return "Training would work."
