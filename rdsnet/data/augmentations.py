"""How training images are varied: presets for ``INPUT.AUGMENTATION``.

A preset adds to what Detectron2 makes of the keys ``INPUT.CROP``, ``INPUT.MIN_SIZE_TRAIN`` and
``INPUT.RANDOM_FLIP``. Masks and boxes follow exactly: turns and flips move whole pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from rdsnet.data.channels import Channels


@dataclass(frozen=True)
class Preset:
    """What a preset adds.

    Attributes:
        scales: smallest and largest factor of the size, what has grown being cut; None: it stays.
        any_side_up: whether images have no upper side: flipped vertically and turned by 90 degrees.
        colours: brightness, contrast and saturation of photographs vary by up to this share.
    """

    scales: tuple[float, float] | None = None
    any_side_up: bool = False
    colours: float = 0.0


PRESETS = {
    "none": Preset(),
    "light": Preset(),
    "strong": Preset(scales=(0.6, 1.5), colours=0.3),
    "microscopy": Preset(scales=(0.7, 1.4), any_side_up=True, colours=0.2),
    "aerial": Preset(scales=(0.7, 1.4), any_side_up=True, colours=0.3),
}


class RandomScale(T.Augmentation):
    """Resize by a factor between two, evenly drawn on a logarithmic scale.

    Args:
        cut: cut what has grown to the size that it had, at a random place. A batch is padded to its
            largest image: without that, factors of 0.7 to 1.4 cost half as much time again.
    """

    def __init__(self, smallest: float, largest: float, cut: bool = False) -> None:
        super().__init__()
        self.smallest, self.largest, self.cut = smallest, largest, cut

    def get_transform(self, image: np.ndarray) -> T.Transform | T.TransformList:
        height, width = image.shape[:2]
        factor = math.exp(self._rand_range(math.log(self.smallest), math.log(self.largest)))
        new_height, new_width = (max(1, round(side * factor)) for side in (height, width))
        resize = T.ResizeTransform(height, width, new_height, new_width)
        if not self.cut or factor <= 1:
            return resize
        left, top = (
            math.floor(self._rand_range(0, grown - side + 1))
            for grown, side in ((new_width, width), (new_height, height))
        )
        crop = T.CropTransform(left, top, width, height, new_width, new_height)
        return T.TransformList([resize, crop])


class RandomTranspose(T.Augmentation):
    """Exchange rows and columns of every second image: with flips, all turns by 90 degrees."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return Transpose() if self._rand_range() < 0.5 else T.NoOpTransform()


class Transpose(T.Transform):
    """(x, y) -> (y, x)."""

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(image.swapaxes(0, 1))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords[:, ::-1].copy()

    def inverse(self) -> T.Transform:
        return self


def with_preset(cfg: CfgNode, augmentations: list[T.Augmentation]) -> list[T.Augmentation]:
    """Detectron2's augmentations of a config, with those of ``INPUT.AUGMENTATION``.

    Raises:
        ValueError: there is no such preset.
    """
    check_preset(cfg.INPUT.AUGMENTATION)
    if cfg.INPUT.AUGMENTATION == "none":
        return [a for a in augmentations if not isinstance(a, T.RandomFlip)]
    preset = PRESETS[cfg.INPUT.AUGMENTATION]
    augmentations = list(augmentations)
    if preset.scales:
        # Before a crop, whose size is fixed; after the resizing that would undo it.
        crops = cfg.INPUT.CROP.ENABLED
        scale = RandomScale(*preset.scales, cut=not crops)
        augmentations.insert(0 if crops else len(augmentations), scale)
    if preset.any_side_up:
        augmentations += [T.RandomFlip(horizontal=False, vertical=True), RandomTranspose()]
    if preset.colours and Channels.of(cfg).are_photographs:
        low, high = 1 - preset.colours, 1 + preset.colours
        colours = (T.RandomBrightness, T.RandomContrast, T.RandomSaturation)
        augmentations += [vary(low, high) for vary in colours]
    return augmentations


def cuts_objects(cfg: CfgNode) -> bool:
    """Whether training images may be parts of images, so that boxes are those of cut masks."""
    preset = PRESETS.get(cfg.INPUT.AUGMENTATION, Preset())
    return cfg.INPUT.CROP.ENABLED or preset.scales is not None or cfg.INPUT.MOSAIC > 0


def check_preset(name: str) -> None:
    """Raise ValueError for what is no name of a preset."""
    if name not in PRESETS:
        raise ValueError(f"INPUT.AUGMENTATION must be one of {', '.join(PRESETS)}, got '{name}'")
