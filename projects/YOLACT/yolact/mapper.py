"""Training images for YOLACT: SSD's augmentation, and crowds that are kept to be ignored."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import BoxMode, Instances

from rdsnet.data.mapper import DATASET_MAPPER_REGISTRY, RDSNetDatasetMapper

from .augmentation import build_ssd_augmentation


@DATASET_MAPPER_REGISTRY.register()
class YOLACTDatasetMapper(RDSNetDatasetMapper):
    """:class:`~rdsnet.data.mapper.RDSNetDatasetMapper` with YOLACT's augmentation in training.

    ``instances`` have ``gt_is_crowd`` (M,) bool besides. An object whose centre an augmentation
    has moved out of the image is left out; boxes are those of the annotations, cut at the image.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        arguments = super().from_config(cfg, is_train)
        arguments["channels"].require_photographs("DATASETS.MAPPER YOLACTDatasetMapper")
        if is_train:
            arguments["augmentations"] = build_ssd_augmentation(cfg)
            arguments["recompute_boxes"] = False
        return arguments

    def augmentation_input(self, image: np.ndarray, dataset_dict: dict) -> T.AugInput:
        objects = [a for a in dataset_dict.get("annotations", []) if not a.get("iscrowd", 0)]
        return T.AugInput(image, boxes=xyxy(objects))

    def learned(self, annotations: list[dict], transforms: T.TransformList, size) -> list[dict]:
        """All annotations, crowds too, whose centre lies in the augmented image of ``size``."""
        boxes = xyxy(annotations)
        centres = transforms.apply_coords((boxes[:, :2] + boxes[:, 2:]) / 2)
        inside = ((centres > 0) & (centres < np.array(size[::-1]))).all(axis=1)
        return [dict(a) for a, is_inside in zip(annotations, inside) if is_inside]

    def to_instances(self, objects: list[dict], size, mask_format: str) -> Instances:
        instances = super().to_instances(objects, size, mask_format)
        crowd = [bool(a.get("iscrowd", 0)) for a in objects]
        instances.gt_is_crowd = torch.tensor(crowd, dtype=torch.bool)
        return instances


def xyxy(annotations: list[dict]) -> np.ndarray:
    """Boxes (M, 4) of annotations, x1, y1, x2, y2."""
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)
