"""The authors' data pipeline: images and ground truth resized exactly as they do it."""

from __future__ import annotations

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import check_image_size
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, polygons_to_bitmask

from rdsnet.data.channels import Channels
from rdsnet.data.images import read_image
from rdsnet.data.rle import compressed_rle

from .boxes import to_continuous


class AuthorsDatasetMapper:
    """Maps Detectron2's dataset dict of an image to the input of :class:`.rdsnet.AuthorsRDSNet`.

    It differs from Detectron2's mapper in numbers, not in form: images are resized by OpenCV
    (bilinear without anti-aliasing; Detectron2 uses Pillow, which smooths), masks are drawn in the
    original image and resized by nearest neighbour, and the last pixel of a box, not its end, is
    scaled: ``(x + w - 1) * scale``.

    Args:
        min_size, max_size: limits of the shorter and the longer side, pixels; one value of
            ``min_size`` is drawn for each image.
        sampling: "choice" among the values of ``min_size``, or "range" between its two values.
        flip_probability: of a horizontal flip.
        with_objects: whether to add ``instances``.
    """

    def __init__(
        self,
        *,
        min_size: tuple[int, ...],
        max_size: int,
        sampling: str = "choice",
        flip_probability: float = 0.0,
        with_objects: bool = True,
    ) -> None:
        self.min_size, self.max_size, self.sampling = min_size, max_size, sampling
        self.flip_probability = flip_probability
        self.with_objects = with_objects

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> AuthorsDatasetMapper:
        Channels.of(cfg).require_photographs("AuthorsDatasetMapper")
        if not is_train:
            size = (cfg.INPUT.MIN_SIZE_TEST,)
            return cls(min_size=size, max_size=cfg.INPUT.MAX_SIZE_TEST, with_objects=False)
        return cls(
            min_size=tuple(cfg.INPUT.MIN_SIZE_TRAIN),
            max_size=cfg.INPUT.MAX_SIZE_TRAIN,
            sampling=cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
            flip_probability=0.5 if cfg.INPUT.RANDOM_FLIP == "horizontal" else 0.0,
        )

    def __call__(self, dataset_dict: dict) -> dict:
        """Map one image.

        Returns:
            The dict with ``image`` (3, H, W) uint8 RGB, ``scale_factor`` and, ``with_objects``,
            ``instances``: gt_boxes (continuous coordinates), gt_classes, gt_masks (BitMasks).
            Crowds and objects narrower or lower than 1 px are left out.
        """
        dataset_dict = dict(dataset_dict)
        image = read_image(dataset_dict["file_name"], "RGB")
        check_image_size(dataset_dict, image)
        height, width = image.shape[:2]
        scale = self.draw_scale(height, width)
        size = (int(height * scale + 0.5), int(width * scale + 0.5))
        flip = np.random.rand() < self.flip_probability
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        image = image[:, ::-1] if flip else image
        dataset_dict["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        dataset_dict["scale_factor"] = scale
        annotations = dataset_dict.pop("annotations", None)
        if self.with_objects and annotations is not None:
            objects = [a for a in annotations if is_learned(a)]
            dataset_dict["instances"] = ground_truth(objects, (height, width), size, scale, flip)
        return dataset_dict

    def draw_scale(self, height: int, width: int) -> float:
        """Factor that brings the shorter side to a drawn ``min_size``, the longer within limits."""
        if self.sampling == "range":
            low, high = min(self.min_size), max(self.min_size)
            short = np.random.randint(low, high + 1)
        else:
            short = np.random.choice(self.min_size)
        return min(self.max_size / max(height, width), int(short) / min(height, width))


def is_learned(annotation: dict) -> bool:
    """Whether an annotation is no crowd and at least 1 px wide and high."""
    width, height = xywh(annotation)[2:]
    return not annotation.get("iscrowd", 0) and width >= 1 and height >= 1


def xywh(annotation: dict) -> list[float]:
    box = list(map(float, annotation["bbox"]))
    return BoxMode.convert(box, annotation["bbox_mode"], BoxMode.XYWH_ABS)


def ground_truth(
    objects: list[dict],
    original_size: tuple[int, int],
    size: tuple[int, int],
    scale: float,
    flip: bool,
) -> Instances:
    """The objects of an image of ``original_size`` (H, W), resized to ``size``."""
    height, width = size
    rows = [(x, y, x + w - 1, y + h - 1) for x, y, w, h in map(xywh, objects)]
    boxes = np.array(rows, dtype=np.float32).reshape(-1, 4) * np.float32(scale)
    boxes = boxes.clip(0, np.array([width - 1, height - 1] * 2, dtype=np.float32))
    if flip:
        boxes = boxes[:, [2, 1, 0, 3]] * np.float32([-1, 1, -1, 1])
        boxes += np.float32([width - 1, 0, width - 1, 0])
    masks = np.zeros((len(objects), *size), dtype=bool)
    for i, annotation in enumerate(objects):
        mask = original_mask(annotation, original_size).astype(np.uint8)
        mask = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)
        masks[i] = mask[:, ::-1] if flip else mask
    classes = [annotation["category_id"] for annotation in objects]
    return Instances(
        size,
        gt_boxes=Boxes(to_continuous(torch.from_numpy(boxes))),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
        gt_masks=BitMasks(torch.from_numpy(masks)),
    )


def original_mask(annotation: dict, size: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) of an annotation with polygons or RLE in an image of ``size``."""
    segmentation = annotation.get("segmentation")
    if segmentation is None:
        raise ValueError(
            "an object has no 'segmentation'. RDSNet learns masks: give every annotation polygons "
            "or RLE."
        )
    if isinstance(segmentation, list):
        polygons = [np.asarray(p, dtype=np.float64).reshape(-1) for p in segmentation]
        return polygons_to_bitmask(polygons, *size)
    return mask_util.decode(compressed_rle(segmentation))
