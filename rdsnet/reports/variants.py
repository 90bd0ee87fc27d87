"""What training will see: images as their augmentations vary them, with the objects that follow."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, polygons_to_bitmask

from rdsnet.data.channels import Channels, picture_of
from rdsnet.data.mapper import build_mapper
from rdsnet.data.mosaic import with_mosaics
from rdsnet.data.seeding import SAMPLE, seeded
from rdsnet.visualization.objects import Objects, objects_from_masks
from rdsnet.visualization.overlay import draw_objects
from rdsnet.visualization.sheet import captioned, contact_sheet, write_sheet

_IMAGES, _VARIANTS = 4, 5
_CELL_WIDTH = 320


def draw_variants(
    cfg: CfgNode, records: Sequence[dict], class_names: Sequence[str], path: str | os.PathLike
) -> int:
    """Draw images, a row each, as the mapper of a training gives them to the model.

    Args:
        cfg: of the training: ``DATASETS.MAPPER``, ``INPUT``.
        records: Detectron2's dicts of images with objects; the fullest, the emptiest and two
            between are taken.
        class_names: of its classes.
        path: PNG file; its folder is made if missing.

    Returns:
        the number of images shown; without any no picture is written.
    """
    records = [r for r in records if any(not a.get("iscrowd", 0) for a in r["annotations"])]
    records.sort(key=lambda record: len(record["annotations"]))
    places = np.linspace(0, len(records) - 1, min(_IMAGES, len(records))).round().astype(int)
    mapper, rows = with_mosaics(cfg, build_mapper(cfg, True), records), []
    for number, place in enumerate(places):
        record, row = records[place], []
        for variant in range(_VARIANTS):
            with seeded(0, SAMPLE, number * _VARIANTS + variant):
                mapped = mapper(record)
            image = mapped["image"].numpy().transpose(1, 2, 0)
            if not Channels.of(cfg).are_photographs:
                image = picture_of(image)[:, :, ::-1]
            elif cfg.INPUT.FORMAT != "RGB":
                image = image[:, :, ::-1]
            objects = _objects(mapped, class_names)
            name = os.path.basename(record["file_name"]) if variant == 0 else ""
            text = f"{name} {image.shape[1]} x {image.shape[0]} px".strip()
            picture = draw_objects(np.ascontiguousarray(image), objects, min_side=_CELL_WIDTH)
            row.append(captioned(picture, text, _CELL_WIDTH))
        rows.append(row)
    if not rows:
        return 0
    footer = f"INPUT.AUGMENTATION {cfg.INPUT.AUGMENTATION}: what training may make of an image"
    sheet = contact_sheet(rows, footer=footer, cell_width=_CELL_WIDTH)
    write_sheet(sheet, path)
    return len(rows)


def _objects(mapped: dict, class_names: Sequence[str]) -> Objects:
    """The ground truth that the mapper gives."""
    instances, size = mapped["instances"], mapped["image"].shape[1:]
    masks = instances.gt_masks
    if isinstance(masks, BitMasks):
        masks = masks.tensor.numpy()
    else:
        masks = np.array([polygons_to_bitmask(polygons, *size) for polygons in masks.polygons])
    boxes = instances.gt_boxes.tensor.numpy()
    return objects_from_masks(boxes, masks, instances.gt_classes.tolist(), class_names)
