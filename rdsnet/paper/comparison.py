"""Fig. 4: the same objects by Mask R-CNN, by RDSNet without expanded cropping or MBRM, by RDSNet.

The paper chose its images by eye. Here the rule is that of Fig. 1
(:mod:`rdsnet.paper.localisation`): the objects whose regressed boxes are worst. So the second row
is at its worst, and the others would look better by chance alone; that is said below the figure.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as coco_mask
import torch
from detectron2.data import DatasetCatalog
from torch import nn
from torchvision.ops import box_iou

from rdsnet.checkpoint import Checkpointer
from rdsnet.data.channels import read_picture
from rdsnet.data.mapper import build_mapper
from rdsnet.fitting.study import refine
from rdsnet.paper.analysis import validation_profiles
from rdsnet.paper.localisation import (
    FONT_SIZE,
    REFINED,
    TRUE,
    WIDTH,
    EdgeError,
    draw_boxes,
    surroundings,
    worst_errors,
    write_jpeg,
)
from rdsnet.paper.plan import Paper
from rdsnet.paper.runs import finished
from rdsnet.training.trainer import Trainer
from rdsnet.visualization import objects_from_annotations
from rdsnet.visualization.sheet import captioned, contact_sheet

_COLUMNS = 4
# Square roots of areas from which on objects are large, medium, small, pixels (COCO's).
_SIZES = (96, 32, 0)
_OPACITY = 0.45


@dataclass(frozen=True)
class Found:
    """What a model has found of an object.

    Attributes:
        box: XYXY, pixels.
        mask: (H, W) bool.
        box_iou, mask_iou: with the true ones.
    """

    box: list[float]
    mask: np.ndarray
    box_iou: float
    mask_iou: float


def write_fig_4(paper: Paper, path: Path) -> list[dict]:
    """Draw the figure from the first seed's models, if they are there and have found objects.

    Returns:
        Of every column {"image_id", "label", and for every row its name: [box IoU, mask IoU], or
        None: not found}; []: there is no figure.
    """
    seed = paper.seeds[0]
    trainings = {training.name: training for training in paper.trainings}
    results = {}
    for name in ("mask_rcnn", "rdsnet"):
        results[name] = finished(paper, trainings[name], seed) if name in trainings else None
        if results[name] is None:
            return []
    cfgs = {name: paper.config(trainings[name], seed) for name in results}
    for name, cfg in cfgs.items():
        cfg.MODEL.WEIGHTS = results[name]["weights"]
    (dataset,) = cfgs["rdsnet"].DATASETS.TEST
    images = validation_profiles(cfgs["rdsnet"], dataset)
    chosen = _chosen(images)
    if not chosen:
        return []
    records = {record["image_id"]: record for record in DatasetCatalog.get(dataset)}
    rdsnet, mask_rcnn = _loaded(cfgs["rdsnet"]), _loaded(cfgs["mask_rcnn"])
    expand = rdsnet.test_expand
    rows = [
        ("Mask R-CNN", mask_rcnn, cfgs["mask_rcnn"], None, "pred_boxes"),
        ("no expansion, no MBRM", rdsnet, cfgs["rdsnet"], 1.0, "regressed_boxes"),
        ("RDSNet", rdsnet, cfgs["rdsnet"], expand, "pred_boxes"),
    ]
    shown = [{"image_id": error.image_id, "label": error.label} for error in chosen]
    cells = []
    for title, model, cfg, expansion, boxes in rows:
        mapper = build_mapper(cfg, is_train=False)
        if expansion is not None:
            model.test_expand = expansion
        cells.append([])
        for error, column in zip(chosen, shown):
            record = records[error.image_id]
            found = _find(model, mapper(record), record, error, boxes)
            column[title] = found and [round(found.box_iou, 4), round(found.mask_iou, 4)]
            cells[-1].append(_cell(read_picture(record["file_name"]), error, found, title))
    footer = "green: true box; blue: the model's box and mask; IoU of box, mask"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jpeg(contact_sheet(cells, footer=footer, cell_width=WIDTH), path)
    return shown


def _chosen(images: list) -> list[EdgeError]:
    """Large objects where any was found, else medium ones, else small ones."""
    for least in _SIZES:
        errors = worst_errors(images, refine(images, None), least)
        if errors:
            return errors[:_COLUMNS]
    return []


def _loaded(cfg) -> nn.Module:
    model = Trainer.build_model(cfg).eval()
    Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


@torch.no_grad()
def _find(
    model: nn.Module, inputs: dict, record: dict, error: EdgeError, boxes: str
) -> Found | None:
    """The detection of the object's class that overlaps it best, if at least by half."""
    instances = model([inputs])[0]["instances"].to("cpu")
    instances = instances[instances.pred_classes == error.label]
    if not len(instances):
        return None
    candidates = instances.get(boxes).tensor
    best, n = box_iou(torch.tensor([error.true]), candidates)[0].max(0)
    if best < 0.5:
        return None
    mask = instances.pred_masks[int(n)].numpy().astype(bool)
    return Found(candidates[n].tolist(), mask, best.item(), _mask_iou(mask, record, error.true))


def _mask_iou(mask: np.ndarray, record: dict, true: list[float]) -> float:
    """With the mask of the annotation whose box is ``true``."""
    objects = objects_from_annotations(record)
    n = np.abs(objects.boxes - np.array(true)).sum(1).argmin()
    own = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return float(coco_mask.iou([own], [objects.rles[n]], [0])[0, 0])


def _cell(image: np.ndarray, error: EdgeError, found: Found | None, title: str) -> np.ndarray:
    canvas = surroundings(image, error.true)
    if found:
        soft = surroundings(np.repeat(found.mask[..., None] * np.uint8(255), 3, 2), error.true)
        beyond = surroundings(np.zeros_like(image), error.true)[..., 0] > 127  # the image's end
        inside = ((soft[..., 0] > 127) & ~beyond).astype(np.uint8)
        chosen = inside > 0
        canvas[chosen] = (1 - _OPACITY) * canvas[chosen] + _OPACITY * np.array(REFINED)
        outlines, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, REFINED, 1, cv2.LINE_AA)
    draw_boxes(canvas, error.true, image.shape, [(error.true, TRUE)])
    if found:
        draw_boxes(canvas, error.true, image.shape, [(found.box, REFINED)])
    said = f"{found.box_iou:.0%}, {found.mask_iou:.0%}" if found else "not found"
    return captioned(canvas, f"{title}: {said}", WIDTH, FONT_SIZE)
