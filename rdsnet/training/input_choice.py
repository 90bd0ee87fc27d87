"""How large training sees images: resized, or in crops of images at their own resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from detectron2.config import CfgNode

from rdsnet.data.statistics import DataStatistics

# Side in the network's input below which objects are hard to see, pixels. When more than this share
# of them would be shrunk below it, images keep their resolution and training sees crops.
_SMALL_OBJECT, _SMALL_SHARE = 12, 0.1
# The same where a crop as large as the shrunk image has no room for large objects, as in
# photographs: shrunk ones gave three times the AP in the same time (benchmarks/peers/views.md).
_SMALL_SHARE_BESIDE_LARGE = 0.5
# Crops have at least this share of the side that images are shrunk to, and so many objects in the
# mean; what they are smaller, iterations are more. Of crops of half the side, four times as many in
# the same time gave 1 to 2 AP more on nuclei (docs/results.md).
_CROP_SHARE, _CROP_OBJECTS = 0.5, 4
# Images are padded to multiples of this, pixels, on the right and at the bottom. A model that never
# saw padding in training finds objects in it, so sides vary there over all that are padded alike.
_PADDED_TO = 32


@dataclass(frozen=True)
class InputChoice:
    """What was decided.

    Attributes:
        scales: (I,) the factors that images are resized by.
        options: config keys and values that differ from the config's.
        note: a sentence for people, or nothing.
        cost: the pixels of a training image as a share of those that the config has.
    """

    scales: np.ndarray
    options: dict[str, object] = field(default_factory=dict)
    note: str = ""
    cost: float = 1.0


def choose_input(cfg: CfgNode, train: DataStatistics) -> InputChoice:
    """Decide by the sizes of the objects, and of the images that they are in."""
    if cfg.MODEL.META_ARCHITECTURE != "RDSNet":  # may resize by itself, as YOLACT does
        return InputChoice(np.ones(len(train.image_sizes)), note="as the config says")
    scales = _input_scales(cfg, train.image_sizes)
    of_objects = scales[train.image_index]
    lost = ((of_objects < 1) & (train.object_sizes * of_objects < _SMALL_OBJECT)).mean()
    short = max(cfg.INPUT.MIN_SIZE_TRAIN)
    large = 2 * np.quantile(train.object_sizes, 0.95)
    tolerated = _SMALL_SHARE if large <= short else _SMALL_SHARE_BESIDE_LARGE
    if short == 0:
        return InputChoice(scales)
    if lost <= tolerated:
        return _resized(cfg, train, scales, lost)
    side = _crop_side(train, short, large)
    smallest = side - _PADDED_TO + 1
    options = {
        "INPUT.MIN_SIZE_TRAIN": (0,),
        "INPUT.MIN_SIZE_TEST": 0,
        "INPUT.CROP.ENABLED": True,
        "INPUT.CROP.TYPE": "absolute_range",
        "INPUT.CROP.SIZE": [smallest, side],
    }
    note = (
        f"images at their own resolution, in training crops of {smallest} to {side} px a side "
        f"(brought to a shorter side of {short} px, {lost:.0%} of the objects would shrink below "
        f"{_SMALL_OBJECT} px)"
    )
    return InputChoice(np.ones(len(scales)), options, note, min(1.0, (side / short) ** 2))


def _input_scales(cfg: CfgNode, image_sizes: np.ndarray) -> np.ndarray:
    """(I,) factors by which Detectron2 resizes images of (I, 2) height and width for a test."""
    short, long = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    if short == 0:  # no resizing
        return np.ones(len(image_sizes))
    return np.minimum(short / image_sizes.min(1), long / image_sizes.max(1))


def _resized(cfg: CfgNode, train: DataStatistics, scales: np.ndarray, lost: float) -> InputChoice:
    """As the config says; ``lost`` is the share of objects that become too small."""
    short, long = max(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN
    options: dict[str, object] = {}
    note = f"shorter side {short} px, longer at most {long} px"
    if _fills_input(train.image_sizes, scales):
        smallest = short - _PADDED_TO + 1
        options = {
            "INPUT.MIN_SIZE_TRAIN": (smallest, short),
            "INPUT.MIN_SIZE_TRAIN_SAMPLING": "range",
        }
        note += f"; in training {smallest} to {short} px, to see padding too"
    if lost > _SMALL_SHARE:
        note += (
            f". {lost:.0%} of the objects shrink below {_SMALL_OBJECT} px: if these matter, give "
            f"INPUT.MIN_SIZE_TRAIN and INPUT.MIN_SIZE_TEST more than {short}"
        )
    return InputChoice(scales, options, note)


def _crop_side(train: DataStatistics, short: int, large: float) -> int:
    """Side of the largest crops, pixels: no more than ``large`` objects and density ask for."""
    density = (train.objects_per_image / train.image_sizes.prod(1)).mean()
    side = max(large, min(max(_CROP_SHARE * short, math.sqrt(_CROP_OBJECTS / density)), short))
    return _PADDED_TO * math.ceil(min(side, 2 * short) / _PADDED_TO)


def _fills_input(image_sizes: np.ndarray, scales: np.ndarray) -> bool:
    """Whether hardly any of the resized images needs padding."""
    resized = (image_sizes * scales[:, None] + 0.5).astype(int)
    return (resized % _PADDED_TO > 0).any(1).mean() <= _SMALL_SHARE
