"""The section of a report that shows representations as in Fig. 3 of the paper."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import Instances
from torch import Tensor, nn

from rdsnet.data.channels import read_picture
from rdsnet.data.mapper import build_mapper
from rdsnet.evaluation.detections import Quality
from rdsnet.visualization import draw_objects, figures, objects_from_instances
from rdsnet.visualization.page import Figure, Picture, Section, picture_uri
from rdsnet.visualization.representations import colors, reduce_representations

logger = logging.getLogger(__name__)

_IMAGES_SHOWN = 3
_OBJECTS_SHOWN = 20
_PIXELS_SHOWN = 1500


def representations_section(
    cfg: CfgNode, model: nn.Module, quality: Quality | None = None
) -> Section | None:
    """Pixels as colours and objects as points, for a few images of the data.

    Args:
        cfg: of the run.
        model: an RDSNet with any object stream; of others there is no such picture (None).
        quality: which images came out well, and the score that objects must have.
    """
    model = model.module if hasattr(model, "module") else model
    if not (hasattr(model, "pixel_stream") and hasattr(model, "object_stream")):
        return None
    names = cfg.DATASETS.TEST or cfg.DATASETS.TRAIN
    if not names:
        return None
    records = _choose(DatasetCatalog.get(names[0]), quality)
    threshold = quality.score_threshold if quality and quality.f1 > 0 else 0.5
    rng = np.random.default_rng(0)
    mapper = build_mapper(cfg, is_train=False)
    rows = [_row(model, mapper(record), record, threshold, rng) for record in records]
    return Section(
        "Representations",
        "What the network makes of an image, as in Fig. 3 of the paper: the representations of "
        "pixels and objects, reduced to three dimensions (PCA) and to length 1. A colour is a "
        "place on the sphere: pixels of one object should share a colour, and the object's own "
        "representation (its foreground channel) should lie among them.",
        pictures=rows,
    )


def _choose(records: list[dict], quality: Quality | None) -> list[dict]:
    """Good images with a few objects, if there are some."""

    def rank(record: dict) -> tuple[bool, float]:
        few = 2 <= len(record.get("annotations", ())) <= 15
        good = quality.images.get(record["image_id"], 0.0) if quality else 0.0
        return few, good

    return sorted(records, key=rank, reverse=True)[:_IMAGES_SHOWN]


@torch.no_grad()
def _represent(model: nn.Module, inputs: dict) -> tuple[Tensor, Tensor, Instances]:
    """Psi (D, h, w) of the image without its padding, phi (N, D) of the objects' foreground, and
    the objects themselves, N by falling score.
    """
    training, dense_masks = model.training, model.dense_masks
    model.eval()
    model.dense_masks = False
    try:
        images = model.preprocess_image([inputs])
        features = model.backbone(images.tensor)
        predictions = model.object_stream(features)
        psi = model.pixel_stream(features)[0]
        (detections,) = model.represented(predictions, images.image_sizes, [inputs])
        instances = model.refine(detections, psi, images.image_sizes[0]).to("cpu")
    finally:
        model.train(training)
        model.dense_masks = dense_masks
    strides = model.strides(psi.shape[1:])
    height, width = (math.ceil(n / s) for n, s in zip(images.image_sizes[0], strides))
    phi = detections.phi[:, 1, : psi.shape[0]]  # without where the objects are
    return psi[:, :height, :width].float().cpu(), phi.float().cpu(), instances


def _row(
    model: nn.Module, inputs: dict, record: dict, threshold: float, rng: np.random.Generator
) -> list[Picture | Figure]:
    psi, phi, instances = _represent(model, inputs)
    kept = (instances.scores >= threshold).nonzero()[:_OBJECTS_SHOWN, 0]
    instances, phi = instances[kept], phi[kept]
    reduced = reduce_representations(psi.numpy(), phi.numpy())
    object_colors = colors(reduced.objects)
    objects = objects_from_instances(instances)
    objects = replace(
        objects,
        colors=[tuple(round(255 * c) for c in color) for color in object_colors.tolist()],
        labels=[""] * len(objects),
        regressed_boxes=None,
    )
    image = read_picture(record["file_name"])
    overlay = draw_objects(image, objects)
    pixels = (255 * colors(reduced.pixels)).astype(np.uint8)
    size = overlay.shape[1], overlay.shape[0]
    pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_NEAREST)
    dots = reduced.pixels.reshape(-1, 3)
    dots = dots[rng.choice(len(dots), min(_PIXELS_SHOWN, len(dots)), replace=False)]
    sphere = figures.points_figure(dots, colors(dots), reduced.objects, object_colors)
    return [
        Picture(picture_uri(overlay, 480), f"{len(objects)} objects in their own colours"),
        Picture(picture_uri(pixels, 480, quality=92), "pixels"),
        Figure(sphere, "dots: pixels; circles: objects"),
    ]
