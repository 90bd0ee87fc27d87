"""Training images put together from parts of four: ``INPUT.MOSAIC``.

A model that has learnt from small crops alone has seen no image that is unlike itself from place to
place. In a large image it meets such: GroupNorm, in heads and pixel stream, takes mean and
deviation of everything at once. With mosaics it learns that at the cost of a crop.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import filter_empty_instances
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch import Tensor

# Left, top, width and height, pixels.
_Part = tuple[int, int, int, int]


def with_mosaics(cfg: CfgNode, mapper: Callable, dataset: Sequence[dict]) -> Callable:
    """A training's mapper, with mosaics if ``INPUT.MOSAIC`` asks for them.

    Raises:
        ValueError: it is no probability.
    """
    probability = cfg.INPUT.MOSAIC
    if not 0 <= probability <= 1:
        raise ValueError(f"INPUT.MOSAIC must be a probability from 0 to 1, got {probability}")
    return MosaicMapper(mapper, dataset, probability) if probability else mapper


class MosaicMapper:
    """Another mapper's images, some of them replaced by a mosaic of four, of the same size.

    The image's own part is the upper left quarter; the others are of images drawn at random from
    all, whatever the sampler prefers. Of each a part of the size of its quarter is taken, wherever
    it happens to lie; what an image is too small for stays black.

    Args:
        mapper: from a dataset dict to a dict with ``image`` (C, H, W) and ``instances`` with
            ``gt_boxes`` and, if there are masks, ``gt_masks`` as BitMasks; or to None.
        dataset: Detectron2's standard dicts, from which the other three come.
        probability: of a mosaic.

    Raises (when called):
        ValueError: masks are polygons.
    """

    def __init__(self, mapper: Callable, dataset: Sequence[dict], probability: float) -> None:
        self.mapper, self.dataset, self.probability = mapper, dataset, probability

    def __call__(self, dataset_dict: dict) -> dict | None:
        mapped = self.mapper(dataset_dict)
        if mapped is None or random.random() >= self.probability:
            return mapped
        parts = [mapped] + [self.mapper(random.choice(self.dataset)) for _ in range(3)]
        return mapped if None in parts else {**mapped, **_joined(parts)}


def _joined(mapped: list[dict]) -> dict:
    """``image`` and ``instances`` of the mosaic; its size is that of the first."""
    canvas = torch.zeros_like(mapped[0]["image"])
    height, width = canvas.shape[1:]
    instances = []
    for number, quarter in enumerate(_quarters(height, width)):
        left, top, quarter_width, quarter_height = quarter
        image = mapped[number]["image"]
        x, y = (
            random.randint(0, max(0, side - wanted))
            for side, wanted in ((image.shape[2], quarter_width), (image.shape[1], quarter_height))
        )
        part = image[:, y : y + quarter_height, x : x + quarter_width]
        canvas[:, top : top + part.shape[1], left : left + part.shape[2]] = part
        cut = (x, y, part.shape[2], part.shape[1])
        moved = _moved(mapped[number]["instances"], cut, (left, top), (height, width))
        instances.append(moved)
    return {"image": canvas, "instances": Instances.cat(instances)}


def _quarters(height: int, width: int) -> list[_Part]:
    y, x = height // 2, width // 2
    return [
        (0, 0, x, y),
        (x, 0, width - x, y),
        (0, y, x, height - y),
        (x, y, width - x, height - y),
    ]


def _moved(
    instances: Instances, cut: _Part, to: tuple[int, int], size: tuple[int, int]
) -> Instances:
    """The objects of a part of an image, moved to another place (x, y) of an image of ``size``.

    Boxes are those of the cut masks, or without masks the cut boxes. Objects that lie outside are
    left out.
    """
    left, top, width, height = cut
    x, y = to
    moved = Instances(size)
    for name, values in instances.get_fields().items():
        if isinstance(values, Boxes):
            boxes = Boxes(values.tensor - values.tensor.new_tensor([left, top, left, top]))
            boxes.clip((height, width))
            values = Boxes(boxes.tensor + boxes.tensor.new_tensor([x, y, x, y]))
        elif isinstance(values, BitMasks):
            part = values.tensor[:, top : top + height, left : left + width]
            values = BitMasks(_placed(part, to, size))
        elif isinstance(values, PolygonMasks):
            raise ValueError(
                "INPUT.MOSAIC cuts masks, which polygons cannot be: set INPUT.MASK_FORMAT bitmask"
            )
        moved.set(name, values)
    if moved.has("gt_masks"):
        moved.gt_boxes = moved.gt_masks.get_bounding_boxes()
    return filter_empty_instances(moved)


def _placed(masks: Tensor, to: tuple[int, int], size: tuple[int, int]) -> Tensor:
    x, y = to
    placed = masks.new_zeros(len(masks), *size)
    placed[:, y : y + masks.shape[1], x : x + masks.shape[2]] = masks
    return placed
