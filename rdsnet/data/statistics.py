"""Sizes and counts of a data set, as arrays: what checks and settings are derived from.

I images, N objects (crowds are not objects), K classes. Boxes are XYXY in continuous pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pycocotools.mask as mask_util

from rdsnet.data.class_names import distinct_names
from rdsnet.data.ids import id_order
from rdsnet.data.rle import compressed_rle

# Annotations whose polygons are looked at together, to bound memory.
_BATCH = 10_000
# Objects of a class from which its mean elongation means something, and the least of classes that
# stand or lie: the mean logarithm of width / height (10 %; people have -0.6, bottles -1.1).
_ENOUGH, _UPRIGHT = 20, 0.1


@dataclass(frozen=True)
class DataStatistics:
    """A checked COCO file in numbers.

    Attributes:
        class_names: K distinct names, in the order of the category ids.
        image_sizes: (I, 2) height and width of every image, in the order of the file.
        image_index: (N,) which image an object is in, 0 .. I - 1.
        classes: (N,) which class it has, 0 .. K - 1.
        boxes: (N, 4) as annotated.
        crowds: number of crowd regions.
    """

    class_names: list[str]
    image_sizes: np.ndarray
    image_index: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
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

    @property
    def images_per_class(self) -> np.ndarray:
        """(K,) number of images that have an object of the class."""
        pairs = np.unique(np.stack((self.image_index, self.classes)), axis=1)
        return np.bincount(pairs[1], minlength=len(self.class_names))

    @property
    def lies_any_way(self) -> bool:
        """Whether the images seem to have no upper side: no class is wider than high, or higher
        than wide, in the mean, as people, bottles and cars are.

        Classes of fewer than ``_ENOUGH`` objects say nothing; without any other this is False.
        """
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        known = (sides > 0).all(1)
        elongation = np.log(sides[known, 0] / sides[known, 1])
        of_classes = [elongation[self.classes[known] == k] for k in range(len(self.class_names))]
        of_classes = [values for values in of_classes if len(values) >= _ENOUGH]
        return bool(of_classes) and all(
            abs(values.mean()) < _UPRIGHT + 2 * values.std() / len(values) ** 0.5
            for values in of_classes
        )


def data_statistics(content: dict) -> DataStatistics:
    """The numbers of a COCO file without problems (see :func:`rdsnet.data.checks.clean_coco`)."""
    categories = sorted(content["categories"], key=lambda category: id_order(category["id"]))
    class_of = {category["id"]: k for k, category in enumerate(categories)}
    index_of = {image["id"]: i for i, image in enumerate(content["images"])}
    objects = [a for a in content["annotations"] if not a.get("iscrowd", 0)]
    sizes = [(image["height"], image["width"]) for image in content["images"]]
    boxes = np.array([a["bbox"] for a in objects], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return DataStatistics(
        class_names=distinct_names({c["id"]: c["name"] for c in categories}),
        image_sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        image_index=np.array([index_of[a["image_id"]] for a in objects], dtype=np.int64),
        classes=np.array([class_of[a["category_id"]] for a in objects], dtype=np.int64),
        boxes=boxes,
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
    is_coded = [isinstance(annotation["segmentation"], dict) for annotation in annotations]
    coded = np.flatnonzero(is_coded)
    if len(coded):
        rles = [compressed_rle(annotations[n]["segmentation"]) for n in coded]
        found = np.asarray(mask_util.toBbox(rles), dtype=np.float64).reshape(-1, 4)
        found[:, 2:] += found[:, :2]
        boxes[coded] = found
    polygons = np.flatnonzero(~np.array(is_coded, dtype=bool))
    for part in np.split(polygons, range(_BATCH, len(polygons), _BATCH)):
        if len(part):
            boxes[part] = _extents([annotations[n]["segmentation"] for n in part])
    limits = np.array([(width, height) for height, width in sizes], dtype=np.float64)
    limits = np.tile(limits.reshape(-1, 2), 2)
    boxes = np.minimum(boxes.clip(min=0), limits)
    boxes[(boxes[:, 2:] <= boxes[:, :2]).any(1)] = np.nan
    return boxes


def _extents(polygons: list[list[list[float]]]) -> np.ndarray:
    """(N, 4) XYXY of N lists of polygons."""
    flat = [list(chain.from_iterable(parts)) for parts in polygons]
    starts = np.cumsum([0] + [len(numbers) // 2 for numbers in flat[:-1]])
    points = np.fromiter(chain.from_iterable(flat), dtype=np.float64).reshape(-1, 2)
    return np.concatenate(
        [np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)], axis=1
    )
