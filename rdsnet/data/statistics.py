"""Sizes and counts of a data set, as arrays: what checks and settings are derived from.

I images, N objects (crowds are not objects), K classes. Boxes are XYXY in continuous pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_util

from rdsnet.data.rle import compressed_rle


@dataclass(frozen=True)
class DataStatistics:
    """A checked COCO file in numbers.

    Attributes:
        class_names: K names, in the order of the category ids.
        image_sizes: (I, 2) height and width of every image, in the order of the file.
        image_index: (N,) which image an object is in, 0 .. I - 1.
        classes: (N,) which class it has, 0 .. K - 1.
        boxes: (N, 4) as annotated.
        annotation_ids: (N,) the ids of the annotations.
        crowds: number of crowd regions.
    """

    class_names: list[str]
    image_sizes: np.ndarray
    image_index: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    annotation_ids: np.ndarray
    crowds: int

    @property
    def object_sizes(self) -> np.ndarray:
        """(N,) square root of the area of every box, pixels."""
        return np.sqrt((self.boxes[:, 2:] - self.boxes[:, :2]).prod(1))

    @property
    def objects_per_image(self) -> np.ndarray:
        """(I,) number of objects."""
        return np.bincount(self.image_index, minlength=len(self.image_sizes))

    @property
    def objects_per_class(self) -> np.ndarray:
        """(K,) number of objects."""
        return np.bincount(self.classes, minlength=len(self.class_names))


def data_statistics(content: dict) -> DataStatistics:
    """The numbers of a COCO file without problems (see :func:`rdsnet.data.checks.clean_coco`)."""
    categories = sorted(content["categories"], key=lambda category: category["id"])
    class_of = {category["id"]: k for k, category in enumerate(categories)}
    index_of = {image["id"]: i for i, image in enumerate(content["images"])}
    objects = [a for a in content["annotations"] if not a.get("iscrowd", 0)]
    sizes = [(image["height"], image["width"]) for image in content["images"]]
    boxes = np.array([a["bbox"] for a in objects], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return DataStatistics(
        class_names=[category["name"] for category in categories],
        image_sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        image_index=np.array([index_of[a["image_id"]] for a in objects], dtype=np.int64),
        classes=np.array([class_of[a["category_id"]] for a in objects], dtype=np.int64),
        boxes=boxes,
        annotation_ids=np.array([a["id"] for a in objects], dtype=np.int64),
        crowds=len(content["annotations"]) - len(objects),
    )


def mask_boxes(annotations: Sequence[dict], sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Enclosing boxes of masks.

    Args:
        annotations: with a usable ``segmentation``.
        sizes: height and width of the image of each.

    Returns:
        (N, 4) float64 XYXY. Of RLE, the borders of the outermost pixels; of polygons, the extent of
        their points, cut off at the border of the image. NaN for a mask without pixels.
    """
    boxes = np.full((len(annotations), 4), np.nan)
    coded = []
    for n, (annotation, (height, width)) in enumerate(zip(annotations, sizes, strict=True)):
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, dict):
            coded.append(n)
            continue
        points = np.concatenate([np.asarray(p, dtype=np.float64) for p in segmentation])
        x, y = points[0::2].clip(0, width), points[1::2].clip(0, height)
        boxes[n] = x.min(), y.min(), x.max(), y.max()
    if coded:
        rles = [compressed_rle(annotations[n]["segmentation"]) for n in coded]
        found = np.asarray(mask_util.toBbox(rles), dtype=np.float64).reshape(-1, 4)
        found[:, 2:] += found[:, :2]
        boxes[coded] = found
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(1)
    boxes[empty] = np.nan
    return boxes
