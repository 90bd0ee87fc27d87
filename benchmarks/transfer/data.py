"""The data sets as COCO files, and few of their training images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class DataSet:
    """Annotations and images of training and validation below ``$RDSNET_DATA``."""

    title: str
    train: tuple[str, str]  # annotations, folder of images
    val: tuple[str, str]
    sizes: tuple[int, ...]  # numbers of training images
    category: str = ""  # the one class, where the annotations name none


DATA_SETS = {
    "kudzu": DataSet(
        "insects on leaves",
        ("kudzu/train/via_region_data.json", "kudzu/train"),
        ("kudzu/val/via_region_data.json", "kudzu/val"),
        (10, 24),  # that is all
        "kudzu bug",
    ),
    "waste": DataSet(
        "medical waste",
        ("waste/train/_annotations.coco.json", "waste/train"),
        ("waste/valid/_annotations.coco.json", "waste/valid"),
        (10, 25, 50),
    ),
}


def coco_content(annotations: Path, images: Path, category: str = "") -> dict:
    """A json of COCO, or of the VGG Image Annotator (VIA) with polygons of one class, as COCO's.

    Categories without objects are left out: exporters add a root to theirs.
    """
    content = json.loads(annotations.read_text(encoding="utf-8"))
    if "annotations" not in content:
        content = from_via(content, images, category)
    used = {a["category_id"] for a in content["annotations"]}
    kept = [category for category in content["categories"] if category["id"] in used]
    return {**content, "categories": kept}


def from_via(content: dict, images: Path, category: str) -> dict:
    """Every file is an image, every polygon an object of the one class."""
    coco: dict[str, list] = {"images": [], "annotations": []}
    for entry in content.values():
        with Image.open(images / entry["filename"]) as image:
            width, height = image.size
        image_id = len(coco["images"]) + 1
        coco["images"].append(
            {"id": image_id, "file_name": entry["filename"], "height": height, "width": width}
        )
        regions = entry["regions"]  # a list, or in older files a dictionary
        for region in regions.values() if isinstance(regions, dict) else regions:
            shape = region["shape_attributes"]
            points = np.array([shape["all_points_x"], shape["all_points_y"]], dtype=float).T
            coco["annotations"].append(annotation(points, image_id, len(coco["annotations"]) + 1))
    return {**coco, "categories": [{"id": 1, "name": category}]}


def annotation(points: np.ndarray, image_id: int, id_: int) -> dict:
    """COCO's annotation of a polygon (P, 2), x and y."""
    x, y = points.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    corner, size = points.min(0), np.ptp(points, axis=0)
    return {
        "id": id_,
        "image_id": image_id,
        "category_id": 1,
        "bbox": [*corner.tolist(), *size.tolist()],
        "segmentation": [points.ravel().tolist()],
        "area": float(area),
        "iscrowd": 0,
    }


def few(content: dict, number: int | None, seed: int) -> dict:
    """So many of its images, drawn by the seed; fewer are always among more. None: all."""
    with_objects = {a["image_id"] for a in content["annotations"]}
    images = [image for image in content["images"] if image["id"] in with_objects]
    order = np.random.default_rng(seed).permutation(len(images))[:number]
    chosen = [images[k] for k in sorted(order)]
    ids = {image["id"] for image in chosen}
    annotations = [a for a in content["annotations"] if a["image_id"] in ids]
    return {**content, "images": chosen, "annotations": annotations}
