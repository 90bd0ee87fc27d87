"""The format "csv": a row per object."""

from __future__ import annotations

import csv

import pycocotools.mask as coco_mask
from detectron2.structures import Instances

from rdsnet.data.findings import printable
from rdsnet.prediction.sources import Frame
from rdsnet.prediction.writers.writer import Writer
from rdsnet.visualization import objects_from_instances
from rdsnet.visualization.objects import class_name


class CsvWriter(Writer):
    """``objects.csv``: one row per object.

    Boxes in pixels of the image, from its left or upper border; ``area`` is the number of pixels of
    the mask. ``frame`` is the number of a video's frame or of a page, from 0; empty for files with
    one image. Bytes of a file name that are no text stand as ``\\xe9``, line breaks as ``\\n``.
    """

    files = ("objects.csv",)
    takes_parts = True
    columns = "file frame object class score x1 y1 x2 y2 width height area".split()

    def begin(self) -> None:
        self._file = open(self.output / "objects.csv", "w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file)
        self._rows.writerow(self.columns)

    def end(self) -> None:
        self._file.close()

    def add(self, frame: Frame, instances: Instances) -> None:
        objects = objects_from_instances(instances, self.names)
        first = self._count if frame.part else 0
        self._count = first + len(objects)
        for n, (x1, y1, x2, y2) in enumerate(objects.boxes.tolist()):
            label = class_name(self.names, int(instances.pred_classes[n]))
            score = f"{float(instances.scores[n]):.4f}"
            box = [f"{value:.2f}" for value in (x1, y1, x2, y2, x2 - x1, y2 - y1)]
            area = int(coco_mask.area(objects.rles[n])) if objects.rles is not None else ""
            number = frame.index if frame.is_one_of_many else ""
            row = [printable(frame.path), number, first + n, label, score, *box, area]
            self._rows.writerow(row)
        self._file.flush()
