"""Masks of objects, moved as an augmentation has moved their image.

What an augmentation that only moves pixels (resizes to the nearest, crops, flips, turns) does is
found out once per image, as the place that every pixel came from; then each mask is looked up
there, inside its own box. The masks are the same as if each was augmented whole, which is what
others do, and objects that a crop has left out cost next to nothing.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import transforms as T
from detectron2.structures import polygons_to_bitmask

from rdsnet.data.augmentations import Transpose
from rdsnet.data.rle import compressed_rle

# Pixels that a mask may reach beyond its transformed box, by rounding.
_MARGIN = 2
# Transforms whose pixels of a mask are each one of the original's, or none. Subclasses may differ.
_MOVES_PIXELS = {
    T.BlendTransform,  # leaves masks as they are
    T.CropTransform,
    T.HFlipTransform,
    T.NoOpTransform,
    T.ResizeTransform,
    T.RotationTransform,
    T.VFlipTransform,
    Transpose,
}


class MovedMasks:
    """Moves the masks of one image.

    Args:
        transforms: what was done to the image.
        original_size, size: (H, W) of the original and of the augmented image.
    """

    def __init__(
        self, transforms: T.TransformList, original_size: tuple[int, int], size: tuple[int, int]
    ) -> None:
        self.transforms = transforms
        self.original_size = tuple(original_size)
        self.size = tuple(size)

    def move(self, segmentations: list[list | dict | np.ndarray | None]) -> list[np.ndarray | None]:
        """The masks of objects after the augmentation.

        Args:
            segmentations: in the original image, each as polygons, RLE or (H, W) mask.

        Returns:
            Of each (H, W) bool of the augmented image, or None where its box lies outside.

        Raises:
            ValueError: there is no segmentation, or its size is not the image's.
        """
        segmentations = [self._checked(segmentation) for segmentation in segmentations]
        if not segmentations:
            return []
        boxes = np.array([_box(segmentation) for segmentation in segmentations])
        windows = map(self._window, self.transforms.apply_box(boxes))
        return [
            None if window is None else self._moved(segmentation, window)
            for segmentation, window in zip(segmentations, windows)
        ]

    def _checked(self, segmentation: list | dict | np.ndarray | None) -> list | dict | np.ndarray:
        """Polygons (P, 2), compressed RLE or (H, W) bool."""
        if segmentation is None:
            raise ValueError(
                "an object has no 'segmentation'. RDSNet learns masks: give every annotation "
                "polygons or RLE, or set MODEL.MASK_ON False to train boxes only."
            )
        if isinstance(segmentation, list):
            return float_polygons(segmentation)
        is_coded = isinstance(segmentation, dict)
        shape = tuple(segmentation["size"]) if is_coded else np.shape(segmentation)
        if shape != self.original_size:
            raise ValueError(
                f"a mask has {shape} pixels, the image {self.original_size}. A mask must have the "
                "height and width of its image."
            )
        return compressed_rle(segmentation) if is_coded else np.asarray(segmentation, dtype=bool)

    def _moved(
        self, segmentation: list | dict | np.ndarray, window: tuple[slice, slice]
    ) -> np.ndarray:
        """The mask (H, W) bool, all of which is in ``window``."""
        if isinstance(segmentation, list):
            segmentation = [points for points in segmentation if len(points)]
            # Detectron2 would clip polygons before drawing them, for which it needs shapely.
            moved = [self.transforms.apply_coords(points).reshape(-1) for points in segmentation]
            return polygons_to_bitmask(moved, *self.size)
        mask = segmentation
        if isinstance(mask, dict):
            mask = mask_util.decode(mask).astype(bool)
        if not {type(transform) for transform in self.transforms.transforms} <= _MOVES_PIXELS:
            return self.transforms.apply_segmentation(mask.astype(np.uint8)).astype(bool)
        rows, columns, came_from_image = (found[window] for found in self._sources)
        moved = np.zeros(self.size, dtype=bool)
        moved[window] = mask[rows, columns] & came_from_image
        return moved

    def _window(self, box: np.ndarray) -> tuple[slice, slice] | None:
        """Pixels that ``box`` (4,) of the augmented image may touch; None: it lies outside."""
        left, top = np.maximum(np.floor(box[:2]).astype(int) - _MARGIN, 0)
        right, bottom = np.minimum(np.ceil(box[2:]).astype(int) + _MARGIN, self.size[::-1])
        if left >= right or top >= bottom:
            return None
        return slice(top, bottom), slice(left, right)

    @cached_property
    def _sources(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row and column (H, W) int64 that every pixel came from, and (H, W) bool whether it did.

        Found by moving pictures of the coordinates as masks are moved, a byte at a time: transforms
        resize 8 bits otherwise than others.
        """
        height, width = self.original_size
        rows, columns = np.indices((height, width), sparse=True)
        one = np.ones((height, width), dtype=np.uint8)
        moved = [self._moved_numbers(index, one) for index in (rows, columns)]
        return *moved, self.transforms.apply_segmentation(one) == 1

    def _moved_numbers(self, index: np.ndarray, one: np.ndarray) -> np.ndarray:
        total = np.zeros(self.size, dtype=np.int64)
        for shift in range(0, int(index.max()).bit_length(), 8):
            byte = (index >> shift & 255).astype(np.uint8) * one
            total += self.transforms.apply_segmentation(byte).astype(np.int64) << shift
        return total


def _box(segmentation: list | dict | np.ndarray) -> np.ndarray:
    """(4,) XYXY that encloses polygons (P, 2), compressed RLE or a (H, W) mask."""
    if isinstance(segmentation, list):
        points = np.concatenate([np.zeros((0, 2)), *segmentation])
        return np.concatenate((points.min(0), points.max(0))) if len(points) else np.zeros(4)
    if isinstance(segmentation, dict):
        x, y, w, h = mask_util.toBbox(segmentation)
        return np.array([x, y, x + w, y + h])
    return np.array([0, 0, *segmentation.shape[::-1]], dtype=np.float64)


def float_polygons(polygons: list) -> list[np.ndarray]:
    """Copies (P, 2) float64 of polygons. Transforms work in place: whole numbers stay whole."""
    return [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons]
