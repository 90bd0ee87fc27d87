"""COCO results, and the images that they belong to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from detectron2.structures import Instances

from rdsnet.engine.prediction_frames import Frame
from rdsnet.engine.writers.writer import Writer
from rdsnet.evaluation import instances_to_coco_json
from rdsnet.visualization.objects import class_name


class CocoWriter(Writer):
    """``coco_instances_results.json``, COCO results, and ``images.json``, what their ids mean.

    ``image_id`` counts the predicted images from 0; an image of a video has its number as
    ``frame``, and so has a page of a file. pycocotools loads both:
    ``COCO("images.json").loadRes("coco_instances_results.json")``.
    """

    files = ("coco_instances_results.json", "images.json")

    def __enter__(self) -> CocoWriter:
        self._lists: tuple[JsonList, JsonList] | None = None
        return self

    def __exit__(self, *error: object) -> None:
        for entries in self._lists or ():
            entries.close()

    def write(self, frame: Frame, instances: Instances) -> None:
        if self._lists is None:
            self._lists = self._open()
        images, results = self._lists
        height, width = frame.image.shape[:2]
        image_id = len(images)
        entry = {"id": image_id, "file_name": str(frame.path), "height": height, "width": width}
        if frame.index is not None:
            entry["frame"] = frame.index
        images.extend([entry])  # first, so that no result is ever without its image
        of_image = instances_to_coco_json(instances, image_id)
        for result in of_image:
            result["category_id"] = self.category_ids[result["category_id"]]
        results.extend(of_image)

    def _open(self) -> tuple[JsonList, JsonList]:
        categories = [
            {"id": id_, "name": class_name(self.names, k)}
            for k, id_ in enumerate(self.category_ids)
        ]
        head = f'{{"categories": {json.dumps(categories)},\n"images": '
        folder = self.folder()
        images = JsonList(folder / "images.json", head, "}")
        return images, JsonList(folder / "coco_instances_results.json")


class JsonList:
    """A JSON list in a file, which is complete whenever entries have been added."""

    def __init__(self, path: Path, head: str = "", tail: str = "") -> None:
        self._file = open(path, "w", encoding="ascii")
        self._tail = f"\n]{tail}\n"
        self._length = 0
        self._file.write(head + "[")
        self._end = self._file.tell()  # of the entries
        self.extend([])

    def __len__(self) -> int:
        return self._length

    def extend(self, entries: Iterable[dict]) -> None:
        self._file.seek(self._end)
        for entry in entries:
            self._file.write((",\n" if self._length else "\n") + json.dumps(entry))
            self._length += 1
        self._end = self._file.tell()
        self._file.write(self._tail)  # the next entries will replace it
        self._file.flush()

    def close(self) -> None:
        self._file.close()
