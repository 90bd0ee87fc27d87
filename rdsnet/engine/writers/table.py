"""CSV: a table of all objects."""

from __future__ import annotations

import csv

import pycocotools.mask as coco_mask
from detectron2.structures import Instances

from rdsnet.engine.prediction_frames import Frame
from rdsnet.engine.writers.writer import Writer
from rdsnet.visualization import objects_from_instances
from rdsnet.visualization.objects import class_name


class CsvWriter(Writer):
    """``objects.csv``: one row per object.

    Boxes in pixels of the image, from its left or upper border; ``area`` is the number of pixels of
    the mask. ``frame`` is the number of the frame in its video or of the page in its file, from 0,
    and empty for files of one image.
    """

    files = ("objects.csv",)
    columns = "file frame object class score x1 y1 x2 y2 width height area".split()

    def __enter__(self) -> CsvWriter:
        self._file = None
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, frame: Frame, instances: Instances) -> None:
        if self._file is None:
            path = self.folder() / "objects.csv"
            self._file = open(path, "w", newline="", encoding="utf-8", errors="backslashreplace")
            csv.writer(self._file).writerow(self.columns)
        rows = csv.writer(self._file)
        objects = objects_from_instances(instances, self.names)
        for n, (x1, y1, x2, y2) in enumerate(objects.boxes.tolist()):
            label = class_name(self.names, int(instances.pred_classes[n]))
            score = f"{float(instances.scores[n]):.4f}"
            box = [f"{value:.2f}" for value in (x1, y1, x2, y2, x2 - x1, y2 - y1)]
            area = int(coco_mask.area(objects.rles[n])) if objects.rles is not None else ""
            number = "" if frame.index is None else frame.index
            rows.writerow([frame.path, number, n, label, score, *box, area])
        self._file.flush()
