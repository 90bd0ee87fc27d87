"""From a dataset dict to what the model is fed: the image read, augmented, with its objects.

Detectron2's mapper, made safe for data as it is found: polygons and RLE mixed, images without
objects, broken files.
"""

from __future__ import annotations

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances, PolygonMasks
from detectron2.utils.registry import Registry

from rdsnet.data.augmentations import cuts_objects, with_preset
from rdsnet.data.channels import PHOTOGRAPHS, ArrayInput, Channels
from rdsnet.data.moved_masks import MovedMasks, float_polygons

DATASET_MAPPER_REGISTRY = Registry("DATASET_MAPPER")
DATASET_MAPPER_REGISTRY.__doc__ = """
Dataset mappers for ``DATASETS.MAPPER``. Called with ``(cfg, is_train)``.
"""


@DATASET_MAPPER_REGISTRY.register()
class RDSNetDatasetMapper(DatasetMapper):
    """Detectron2's :class:`DatasetMapper` with masks for every image.

    Takes the same arguments, or ``(cfg, is_train)``, and returns the same dict: ``image``
    (3, H, W) uint8 and, in training, ``instances`` with ``gt_boxes``, ``gt_classes`` and
    ``gt_masks``. The differences:

    - ``gt_masks`` is always there (with ``MODEL.MASK_ON``), also for an image without objects.
    - ``INPUT.MASK_FORMAT polygon`` holds for images whose objects are all polygons and which are
      not cut (``INPUT.CROP``, ``AUGMENTATION``, ``MOSAIC``); others get BitMasks, whatever the
      format is. So polygons and RLE may be mixed, and ``INPUT.CROP`` does without shapely.
    - Polygons given in whole pixels are not rounded to whole pixels after resizing.
    - ``INPUT.CHANNELS`` and ``INPUT.SCALING`` are followed: ``image`` may be (C, H, W) float32.
    - Errors name the image.

    Crowds are left out, objects that an augmentation has made empty too; of images
    that are cut boxes are those of the cut masks.
    """

    @configurable
    def __init__(self, *args, channels: Channels = PHOTOGRAPHS, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.channels = channels

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        arguments = super().from_config(cfg, is_train)
        arguments["channels"] = Channels.of(cfg)
        if is_train:
            arguments["augmentations"] = with_preset(cfg, arguments["augmentations"])
            arguments["recompute_boxes"] = cfg.MODEL.MASK_ON and cuts_objects(cfg)
        return arguments

    def __call__(self, dataset_dict: dict) -> dict:
        """Map one image.

        Args:
            dataset_dict: Detectron2's standard dict of one image; it is not changed.

        Raises:
            FileNotFoundError, ValueError: the image is missing, broken or has another size than
                declared; an object has no mask, or one of another size.
        """
        dataset_dict = dict(dataset_dict)
        image = self.channels.read(dataset_dict["file_name"], self.image_format)
        _check_size(dataset_dict, image)
        augmented = self.augmentation_input(image, dataset_dict)
        transforms = self.augmentations(augmented)
        image = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        dataset_dict["image"] = torch.from_numpy(image)
        annotations = dataset_dict.pop("annotations", None)
        if self.is_train and annotations is not None:
            objects = self.learned(annotations, transforms, image.shape[1:])
            try:
                dataset_dict["instances"] = self._instances(
                    objects,
                    transforms,
                    (dataset_dict["height"], dataset_dict["width"]),
                    image.shape[1:],
                )
            except ValueError as error:
                raise ValueError(f"image {dataset_dict['file_name']}: {error}") from error
        return dataset_dict

    def augmentation_input(self, image: np.ndarray, dataset_dict: dict) -> T.AugInput:
        """What augmentations see: the image. A subclass may add boxes."""
        return T.AugInput(image) if self.channels.are_photographs else ArrayInput(image)

    def learned(
        self, annotations: list[dict], transforms: T.TransformList, size: tuple[int, int]
    ) -> list[dict]:
        """Copies of the annotations that become ground truth: all but crowds."""
        return [dict(a) for a in annotations if a.get("iscrowd", 0) == 0]

    def to_instances(
        self, objects: list[dict], size: tuple[int, int], mask_format: str
    ) -> Instances:
        """Instances of an image of ``size`` from its augmented annotations."""
        return detection_utils.annotations_to_instances(objects, size, mask_format=mask_format)

    def _instances(
        self,
        objects: list[dict],
        transforms: T.TransformList,
        original_size: tuple[int, int],
        size: tuple[int, int],
    ) -> Instances:
        """The objects, moved from the image of ``original_size`` to the augmented of ``size``."""
        as_polygons = (
            self.use_instance_mask
            and self.instance_mask_format == "polygon"
            and not self.recompute_boxes
            and all(isinstance(obj.get("segmentation"), list) for obj in objects)
        )
        masks = None
        if self.use_instance_mask and not as_polygons:
            moved = MovedMasks(transforms, original_size, size)
            masks = moved.move([obj.get("segmentation") for obj in objects])
            objects = [obj for obj, mask in zip(objects, masks) if mask is not None]
            masks = [mask for mask in masks if mask is not None]
        for obj in objects:
            if not self.use_keypoint:
                obj.pop("keypoints", None)
            if as_polygons:
                obj["segmentation"] = float_polygons(obj["segmentation"])
            else:
                obj.pop("segmentation", None)
            detection_utils.transform_instance_annotations(
                obj, transforms, size, keypoint_hflip_indices=self.keypoint_hflip_indices
            )
        if masks is not None:
            objects = [obj | {"segmentation": mask} for obj, mask in zip(objects, masks)]
        instances = self.to_instances(objects, size, "polygon" if as_polygons else "bitmask")
        if self.use_instance_mask and not objects:
            no_masks = PolygonMasks([]) if as_polygons else BitMasks(torch.zeros(0, *size))
            instances.gt_masks = no_masks
        if self.recompute_boxes:
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return detection_utils.filter_empty_instances(instances)


def _check_size(dataset_dict: dict, image: np.ndarray) -> None:
    """Complete ``height`` and ``width`` of a dataset dict from its image (H, W, C), or check them.

    Raises:
        ValueError: the image has another size than declared.
    """
    try:
        detection_utils.check_image_size(dataset_dict, image)
    except detection_utils.SizeMismatchError:
        raise ValueError(
            f"image {dataset_dict['file_name']} is {image.shape[1]} x {image.shape[0]} pixels "
            f"(EXIF rotation applied), its 'width' and 'height' say {dataset_dict['width']} x "
            f"{dataset_dict['height']}. 'rdsnet check-data' says whether the masks fit the one or "
            "the other, and what to do."
        ) from None


def build_mapper(cfg: CfgNode, is_train: bool) -> DatasetMapper:
    """The mapper that ``DATASETS.MAPPER`` names."""
    return DATASET_MAPPER_REGISTRY.get(cfg.DATASETS.MAPPER)(cfg, is_train)
