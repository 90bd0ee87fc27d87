"""The format "coco": COCO's results, and what their ids mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pycocotools.mask as coco_mask
from detectron2.structures import Instances

from rdsnet.evaluation import instances_to_coco_json
from rdsnet.prediction.sources import Frame
from rdsnet.prediction.writers.writer import Writer
from rdsnet.visualization.objects import class_name


class CocoWriter(Writer):
    """``coco_instances_results.json``, COCO results, and ``images.json``, what their ids mean.

    ``image_id`` counts the images from 0; one of a video, or a page of a file with several, has its
    number there, from 0, as ``frame``. pycocotools loads both:
    ``COCO("images.json").loadRes("coco_instances_results.json")``.
    """

    files = ("coco_instances_results.json", "images.json")
    takes_parts = True

    def begin(self) -> None:
        categories = _categories(self.names, self.category_ids)
        head = f'{{"categories": {json.dumps(categories)},\n"images": '
        self.results = JsonList(self.output / "coco_instances_results.json")
        self.images = JsonList(self.output / "images.json", head, "}")

    def end(self) -> None:
        self.results.close()
        self.images.close()

    def add(self, frame: Frame, instances: Instances) -> None:
        height, width = frame.image.shape[:2]
        image_id = len(self.images) - bool(frame.part)
        entry = {"id": image_id, "file_name": str(frame.path), "height": height, "width": width}
        if frame.is_one_of_many:
            entry["frame"] = frame.index
        results = instances_to_coco_json(instances, image_id)
        for result in results:
            result["category_id"] = self.category_ids[result["category_id"]]
        self.results.extend(results)
        self.images.extend([] if frame.part else [entry])


class JsonList:
    """A JSON list in a file that grows by some entries at a time, and is whole after each time."""

    def __init__(self, path: Path, head: str = "", tail: str = "") -> None:
        self._file = open(path, "w", encoding="utf-8")
        self._file.write(head + "[")
        self._tail = f"\n]{tail}\n"
        self._length = 0
        self._write("")

    def __len__(self) -> int:
        return self._length

    def extend(self, entries: list) -> None:
        """Add entries at the end of the list."""
        lines = []
        for entry in entries:
            lines.append((",\n" if self._length else "\n") + json.dumps(entry))
            self._length += 1
        self._file.seek(self._end)
        self._write("".join(lines))

    def close(self) -> None:
        self._file.close()

    def _write(self, text: str) -> None:
        """Text and behind it the end of the file, which the next text replaces."""
        self._file.write(text)
        self._end = self._file.tell()
        self._file.write(self._tail)
        self._file.flush()


def coco_document(
    file_name: str,
    size: tuple[int, int],
    results: Sequence[dict],
    names: Sequence[str] | None,
    category_ids: Sequence[int],
) -> dict:
    """A COCO data set of one image; annotations also have ``score`` and ``bbox_regressed``.

    Args:
        size: (H, W) of the image.
        results: COCO results with contiguous ``category_id``.
        names: of the classes; None: unknown.
        category_ids: of the classes.
    """
    height, width = size
    annotations = []
    for result in results:
        annotation = {"id": len(annotations) + 1, **result, "iscrowd": 0}
        annotation["category_id"] = category_ids[result["category_id"]]
        annotation["area"] = int(coco_mask.area(result["segmentation"]))
        annotations.append(annotation)
    return {
        "images": [{"id": 1, "file_name": file_name, "height": height, "width": width}],
        "categories": _categories(names, category_ids),
        "annotations": annotations,
    }


def _categories(names: Sequence[str] | None, category_ids: Sequence[int]) -> list[dict]:
    return [{"id": id_, "name": class_name(names, k)} for k, id_ in enumerate(category_ids)]
