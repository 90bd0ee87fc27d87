"""SSD's data augmentation as YOLACT uses it, on Detectron2's transforms.

Photometric distortion, expansion, random crop, mirror, resize to the network's input. Where an
object's centre is cropped away, the object is too (:mod:`.mapper`).
"""

from __future__ import annotations

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, NoOpTransform, PadTransform, Transform
from PIL import Image


def build_ssd_augmentation(cfg: CfgNode) -> list[T.Augmentation]:
    """The five steps, with the sizes and colours of a config."""
    size = cfg.MODEL.YOLACT.INPUT_SIZE
    if size <= 0:
        raise ValueError(
            "the augmentation of YOLACT resizes every image to MODEL.YOLACT.INPUT_SIZE, which is "
            f"{size}. Give a size, or use DATASETS.MAPPER RDSNetDatasetMapper."
        )
    return [
        RandomPhotometricDistortion(cfg.INPUT.FORMAT),
        RandomExpand(cfg.MODEL.PIXEL_MEAN),
        RandomSampleCrop(),
        T.RandomFlip(prob=0.5 if cfg.INPUT.RANDOM_FLIP == "horizontal" else 0.0),
        Stretch(size),
    ]


class RandomPhotometricDistortion(T.Augmentation):
    """SSD's random brightness, contrast, saturation and hue: Detectron2's (project PointRend).

    Args:
        image_format: "BGR" or "RGB".
    """

    def __init__(self, image_format: str) -> None:
        super().__init__()
        if image_format not in ("BGR", "RGB"):
            raise ValueError(f"INPUT.FORMAT must be BGR or RGB for this, got '{image_format}'")
        self.image_format = image_format

    def get_transform(self, image: np.ndarray) -> Transform:
        # Importing the project registers its parts with Detectron2, so only where it is used.
        from detectron2.projects.point_rend.color_augmentation import ColorAugSSDTransform

        return ColorAugSSDTransform(img_format=self.image_format)


class RandomExpand(T.Augmentation):
    """With probability 0.5 put the image somewhere on a canvas of up to 4 x 4 its size.

    Args:
        colour: of the canvas, one number per channel.
    """

    def __init__(self, colour: list[float], max_ratio: float = 4.0, prob: float = 0.5) -> None:
        super().__init__()
        self.colour, self.max_ratio, self.prob = colour, max_ratio, prob

    def get_transform(self, image: np.ndarray) -> Transform:
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        height, width = image.shape[:2]
        ratio = self._rand_range(1.0, self.max_ratio)
        down = int(height * ratio) - height
        right = int(width * ratio) - width
        top = int(self._rand_range(0, down + 1))
        left = int(self._rand_range(0, right + 1))
        return ColouredPad(left, top, right - left, down - top, width, height, self.colour)


class ColouredPad(PadTransform):
    """fvcore's padding in a colour."""

    def __init__(self, x0, y0, x1, y1, orig_w, orig_h, colour: list[float]) -> None:
        super().__init__(x0, y0, x1, y1, orig_w, orig_h)
        self.colour = colour

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        padded = super().apply_image(img)
        canvas = np.empty_like(padded)
        canvas[:] = np.round(self.colour) if img.dtype == np.uint8 else self.colour
        inside = np.s_[self.y0 : self.y0 + self.orig_h, self.x0 : self.x0 + self.orig_w]
        canvas[inside] = img
        return canvas


class RandomSampleCrop(T.Augmentation):
    """SSD's random crop with the centre of at least one object inside.

    One time in six the image stays whole. Sides are 0.3 to 1 times those of the image, with an
    aspect ratio between 0.5 and 2; 50 tries. SSD also asks for a minimal IoU of crop and objects;
    the released YOLACT does not (its test never fails, and it learned worse when it did).
    """

    MIN_SHARE, MAX_ASPECT, TRIES, WHOLE = 0.3, 2.0, 50, 1 / 6

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        while self._rand_range() >= self.WHOLE:
            for _ in range(self.TRIES):
                w = self._rand_range(self.MIN_SHARE * width, width)
                h = self._rand_range(self.MIN_SHARE * height, height)
                left, top = self._rand_range(0, width - w), self._rand_range(0, height - h)
                low = np.array([int(left), int(top)])
                high = np.array([int(left + w), int(top + h)])
                if (high <= low).any() or not 1 / self.MAX_ASPECT <= h / w <= self.MAX_ASPECT:
                    continue
                inside = ((centres > low) & (centres < high)).all(axis=1)
                if inside.any():
                    return CropTransform(*low.tolist(), *(high - low).tolist())
        return NoOpTransform()


class Stretch(T.Augmentation):
    """Resize to a square; the aspect ratio is not kept."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def get_transform(self, image: np.ndarray) -> Transform:
        return BilinearResize(*image.shape[:2], self.size, self.size, Image.BILINEAR)


class BilinearResize(T.ResizeTransform):
    """Detectron2's, but plainly bilinear as in the model's own resizing: Pillow would smooth."""

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        nearest = interp == Image.NEAREST
        interpolation = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
        resized = cv2.resize(img, (self.new_w, self.new_h), interpolation=interpolation)
        return resized.reshape(self.new_h, self.new_w, *img.shape[2:])
