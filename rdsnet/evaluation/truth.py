"""The annotations of a data set as pycocotools evaluates them: with numbers in place of ids.

pycocotools keeps ids in arrays of numbers, where text and integers above 2^63 have no place, those
above 2^53 lose digits, and an annotation with id 0 counts as one that nobody has found. So images,
categories and annotations are numbered from 1 for it, and here alone: results come with the ids of
the data set, and are written with them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterable, Sequence

from detectron2.data import DatasetCatalog
from pycocotools.coco import COCO

from rdsnet.data.ids import id_order


class CocoTruth(COCO):
    """COCO annotations that pycocotools' COCOeval can evaluate, whatever their ids are.

    Args:
        content: of a COCO file. Annotations of images or categories that it does not declare are
            left out, as COCOeval leaves them out.

    Attributes:
        image_numbers: {image id: number}, in the order of the ids.
        category_numbers: {category id: number}, in the order of the ids, as the classes are.
    """

    def __init__(self, content: dict) -> None:
        super().__init__()
        images, categories = content["images"], content.get("categories", [])
        self.image_numbers = _numbers(image["id"] for image in images)
        self.category_numbers = _numbers(category["id"] for category in categories)
        self.dataset = {
            **content,
            "images": [{**image, "id": self.image_numbers[image["id"]]} for image in images],
            "categories": [{**c, "id": self.category_numbers[c["id"]]} for c in categories],
        }
        if "annotations" in content:  # COCO's test sets have none
            numbered = map(self._numbered, filter(self._is_known, content["annotations"]))
            self.dataset["annotations"] = [{**a, "id": n} for n, a in enumerate(numbered, start=1)]
        with contextlib.redirect_stdout(io.StringIO()):
            self.createIndex()

    @classmethod
    def read(cls, json_file: str | os.PathLike) -> CocoTruth:
        """From a COCO file without problems."""
        with open(json_file, encoding="utf-8") as stream:
            return cls(json.load(stream))

    @property
    def num_objects(self) -> int:
        """How many annotations there are to be found: crowds are not."""
        annotations = self.dataset.get("annotations", ())
        return sum(1 for annotation in annotations if not annotation.get("iscrowd", 0))

    def loadRes(self, results: list[dict]) -> COCO:  # noqa: N802 (pycocotools' name)
        """COCO results, with the ids of the data set, for COCOeval.

        Raises:
            ValueError: a result is of an image or a category that the data set does not have.
        """
        for result in results:
            if not self._is_known(result):
                raise ValueError(
                    f"there is a result of image {result['image_id']!r} and category "
                    f"{result['category_id']!r}, but the data set does not have both"
                )
        with contextlib.redirect_stdout(io.StringIO()):
            return super().loadRes([self._numbered(result) for result in results])

    def _is_known(self, entry: dict) -> bool:
        is_of_image = entry.get("image_id") in self.image_numbers
        return is_of_image and entry.get("category_id") in self.category_numbers

    def _numbered(self, entry: dict) -> dict:
        image, category = entry["image_id"], entry["category_id"]
        numbers = {"image_id": self.image_numbers[image]}
        return {**entry, **numbers, "category_id": self.category_numbers[category]}


def without_objects(dataset_names: Sequence[str]) -> list[str]:
    """Those of some registered data sets in which there is nothing to find: no AP exists for them.

    Data sets without annotations at all, and those that are not registered, are not among them.
    """
    empty = []
    for name in dataset_names:
        records = DatasetCatalog.get(name) if name in DatasetCatalog else []
        lists = [record["annotations"] for record in records if "annotations" in record]
        if lists and not any(not a.get("iscrowd", 0) for of_image in lists for a in of_image):
            empty.append(name)
    return empty


def _numbers(ids: Iterable[int | str]) -> dict[int | str, int]:
    return {id_: number for number, id_ in enumerate(sorted(ids, key=id_order), start=1)}
