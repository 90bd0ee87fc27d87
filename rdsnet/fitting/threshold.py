"""The threshold of the masks, fitted after everything else has converged.

A pixel belongs to a mask when its foreground probability is larger than
``MODEL.RDSNET.MASK_THRESHOLD``. The best number depends on how the model has learnt: targets on a
coarse grid make masks too small, the hardest background makes them too large. It is one number, so
validation images tell it well.

What is maximised is the share of COCO's ten IoUs (0.5 to 0.95) that a mask reaches, in the mean
over the detections that have found an object. That is what mask AP sees of a mask; ranking and
recall, the rest of AP, hardly depend on the threshold, and make AP itself jump where there are few
images. The network runs once over the data, whatever the number of thresholds.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.structures import BoxMode
from pycocotools import mask as coco_mask
from tqdm import tqdm

from rdsnet.data.mapper import build_mapper
from rdsnet.data.rle import segmentation_rle
from rdsnet.fitting.profiles import match_detections
from rdsnet.modeling import RDSNet

logger = logging.getLogger(__name__)

THRESHOLDS = tuple(step / 20 for step in range(4, 13))  # 0.2, 0.25, ..., 0.6
_IOUS = np.linspace(0.5, 0.95, 10)


@dataclass
class ThresholdFit:
    """The best of :data:`THRESHOLDS`, and how good each of them is.

    Attributes:
        threshold: the best one.
        objects: how many have been found.
        quality: per threshold the share of :data:`_IOUS` that masks reach, 0..1.
    """

    threshold: float
    objects: int
    quality: dict[float, float]

    def text(self) -> str:
        shares = ", ".join(f"{100 * q:.1f} % at {t:g}" for t, q in self.quality.items())
        return (
            f"Mask threshold {self.threshold:g}: the masks of {self.objects} objects reach so many "
            f"of the IoUs 0.5 to 0.95: {shares}"
        )


def fit_threshold(cfg: CfgNode, model: RDSNet) -> ThresholdFit:
    """Try :data:`THRESHOLDS` on ``DATASETS.TEST``.

    Args:
        cfg: of the model and the data.
        model: with its weights loaded.

    Raises:
        ValueError: if there is no validation set, or the model finds no object in it.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError(
            "DATASETS.TEST is empty. The mask threshold is fitted to validation images."
        )
    ious = [np.zeros((len(THRESHOLDS), 0))]
    training = model.training
    model.eval()
    try:
        for name in cfg.DATASETS.TEST:
            records = DatasetCatalog.get(name)
            loader = build_detection_test_loader(
                records,
                mapper=build_mapper(cfg, is_train=False),
                num_workers=cfg.DATALOADER.NUM_WORKERS,
            )
            # The loader keeps the order of the records.
            progress = tqdm(loader, desc=f"{name}, mask threshold", unit="image", disable=None)
            for record, inputs in zip(records, progress, strict=True):
                ious.append(_mask_ious(model, inputs, record, THRESHOLDS))
    finally:
        model.train(training)
    of_objects = np.concatenate(ious, axis=1)
    count = of_objects.shape[1]
    if not count:
        raise ValueError(
            f"the model finds no object in {', '.join(cfg.DATASETS.TEST)} (same class, IoU of the "
            "box at least 0.5)"
        )
    quality = (of_objects[..., None] >= _IOUS).mean((1, 2))
    best = int(quality.argmax())
    return ThresholdFit(
        THRESHOLDS[best], count, dict(zip(THRESHOLDS, quality.round(4).tolist(), strict=True))
    )


@torch.no_grad()
def _mask_ious(
    model: RDSNet, inputs: list[dict], record: dict, thresholds: Sequence[float]
) -> np.ndarray:
    """IoUs of masks with those of the N objects of an image that were found: (thresholds, N).

    Args:
        model: in evaluation mode.
        inputs: the model's input, a list of one image.
        record: its annotations, as Detectron2's catalog has them.
    """
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    psi = model.pixel_stream(features)[0]
    predictions = model.object_stream(features)
    (detections,) = model.represented(predictions, images.image_sizes, inputs)
    order = detections.scores.argsort(descending=True, stable=True)
    detections = detections[order]
    objects = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    gt_boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    found = match_detections(
        model.output_boxes(detections.pred_boxes.tensor).float().cpu(),
        detections.pred_classes.cpu(),
        torch.tensor(gt_boxes, dtype=torch.float32).view(-1, 4),
        torch.tensor([a["category_id"] for a in objects], dtype=torch.int64),
    )
    detections = detections[(found >= 0).to(psi.device)]
    size = (record["height"], record["width"])
    truth = [segmentation_rle(objects[m]["segmentation"], size) for m in found[found >= 0].tolist()]
    if not truth:
        return np.zeros((len(thresholds), 0))
    boxes, output_size = detections.pred_boxes.tensor, detections.image_size
    phi, psi = model.located(detections.phi, psi, boxes, images.image_sizes[0], output_size)
    kept = model.mask_threshold
    ious = []
    try:
        for threshold in thresholds:
            model.mask_threshold = threshold
            masks = model.assemble(phi, psi, boxes, images.image_sizes[0], output_size)
            of_pairs = coco_mask.iou(masks.rle(), truth, [0] * len(truth))
            ious.append(of_pairs.diagonal())
    finally:
        model.mask_threshold = kept
    return np.stack(ious)
