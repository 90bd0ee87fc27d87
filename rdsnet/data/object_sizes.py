"""How large the objects are that a model was trained on.

A size is the square root of the area of a box. It is known in pixels of the images, and in pixels
of the network's input, as the config resizes images for a test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from rdsnet.data.datasets import register_coco_files

PERCENTILES = (5, 50, 95)


@dataclass(frozen=True)
class ObjectSizes:
    """Percentiles 5, 50 and 95 of the sizes of objects, pixels.

    Attributes:
        in_images: of the images' own pixels.
        in_input: of the network's.
    """

    in_images: tuple[float, float, float]
    in_input: tuple[float, float, float]

    @property
    def scale(self) -> float:
        """By which images were resized for the network, where it has seen the median object."""
        return self.in_input[1] / self.in_images[1]

    def share_below(self, size: float) -> float:
        """The share of the objects that are smaller than ``size``, pixels of the images.

        Between the percentiles it grows with the logarithm of the size; it is from 0.05 to 0.95.
        """
        # Objects of one size are smaller than all that is larger, and not smaller than themselves.
        known = np.log(self.in_images) + np.arange(3) * 1e-9
        return float(np.interp(np.log(size), known, np.array(PERCENTILES) / 100))


def object_sizes(cfg: CfgNode) -> ObjectSizes | None:
    """What a config says, in ``DATASETS.OBJECT_SIZES``; None: nothing.

    Raises:
        ValueError: the entries are not three positive numbers each, rising.
    """
    stored = cfg.DATASETS.get("OBJECT_SIZES", {})
    values = [tuple(stored.get(name, ())) for name in ("IN_IMAGES", "IN_INPUT")]
    if not any(values):
        return None
    for name, sizes in zip(("IN_IMAGES", "IN_INPUT"), values):
        are_numbers = all(isinstance(size, int | float) for size in sizes)
        if len(sizes) != 3 or not are_numbers or not 0 < sizes[0] <= sizes[1] <= sizes[2]:
            raise ValueError(
                f"DATASETS.OBJECT_SIZES.{name} {list(sizes)} should be three sizes in pixels, "
                "those of percentiles 5, 50 and 95, or [] in both entries"
            )
    return ObjectSizes(*values)


def measured_object_sizes(cfg: CfgNode) -> ObjectSizes | None:
    """Those of the objects in ``DATASETS.TRAIN``, crowds left out; None: there are none.

    Raises:
        KeyError: a data set is not registered.
        OSError, ValueError: its annotations cannot be read (any more).
    """
    register_coco_files(cfg)
    in_images, in_input = [], []
    for name in cfg.DATASETS.TRAIN:
        for record in DatasetCatalog.get(name):
            sizes = _sizes(record.get("annotations", ()))
            in_images.append(sizes)
            in_input.append(sizes * scale_at_once(cfg, (record["height"], record["width"])))
    if not sum(map(len, in_images)):
        return None
    return ObjectSizes(*(_percentiles(np.concatenate(sizes)) for sizes in (in_images, in_input)))


def scale_at_once(cfg: CfgNode, size: tuple[int, int]) -> float:
    """By which the config resizes an image (H, W) that the model sees at once."""
    shortest, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    return min(shortest / min(size), longest / max(size)) if shortest else 1.0


def _sizes(annotations: Sequence[dict]) -> np.ndarray:
    """(N,) of the objects of an image, pixels."""
    boxes = [
        BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYWH_ABS)
        for a in annotations
        if not a.get("iscrowd", 0)
    ]
    areas = np.array(boxes, dtype=np.float64).reshape(-1, 4)[:, 2:].prod(1)
    return np.sqrt(areas[areas > 0])


def _percentiles(sizes: np.ndarray) -> tuple[float, float, float]:
    low, middle, high = (round(float(size), 2) for size in np.percentile(sizes, PERCENTILES))
    return low, middle, high
