"""The data sets of the comparison: COCO json files made of what lies in ``$RDSNET_DATA``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from models import crops
from PIL import Image

Parts = dict[str, tuple[Path, Path]]
"""{"train" | "val": (json file, image folder)}"""


@dataclass(frozen=True)
class DataSet:
    """What to train and evaluate on, and how all models see it.

    Attributes:
        title: for tables.
        prepare: (folder that holds the data sets, folder to write json files to) -> its parts.
        options: config keys and values.
    """

    title: str
    prepare: Callable[[Path, Path], Parts]
    options: dict[str, object]


def nuclei(data: Path, out: Path) -> Parts:
    """Images of at most 320 px: most of the set, of one magnification, quickly evaluated."""
    parts = {}
    for split in ("train", "val"):
        content = json.loads((data / "nuclei" / f"{split}.json").read_text())
        images = [i for i in content["images"] if max(i["height"], i["width"]) <= 320]
        ids = {image["id"] for image in images}
        annotations = [a for a in content["annotations"] if a["image_id"] in ids]
        content = {**content, "images": images, "annotations": annotations}
        parts[split] = write(content, out / f"{split}.json"), data / "nuclei" / "images"
    return parts


def waste(data: Path, out: Path) -> Parts:
    """Roboflow's export, without its root category, which has no objects."""
    parts = {}
    for split, folder in (("train", "train"), ("val", "valid")):
        folder = data / "waste" / folder
        content = json.loads((folder / "_annotations.coco.json").read_text())
        used = {a["category_id"] for a in content["annotations"]}
        content["categories"] = [c for c in content["categories"] if c["id"] in used]
        parts[split] = write(content, out / f"{split}.json"), folder
    return parts


def kudzu(data: Path, out: Path) -> Parts:
    """VGG Image Annotator's polygons."""
    parts = {}
    for split in ("train", "val"):
        folder = data / "kudzu" / split
        images, annotations = [], []
        described = json.loads((folder / "via_region_data.json").read_text())
        for image_id, entry in enumerate(described.values(), 1):
            with Image.open(folder / entry["filename"]) as image:
                width, height = image.size
            size = {"width": width, "height": height}
            images.append({"id": image_id, "file_name": entry["filename"], **size})
            regions = entry["regions"]
            for region in regions.values() if isinstance(regions, dict) else regions:
                shape = region["shape_attributes"]
                x, y = shape["all_points_x"], shape["all_points_y"]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": 1,
                        "iscrowd": 0,
                        "area": area(x, y),
                        "bbox": [min(x), min(y), max(x) - min(x), max(y) - min(y)],
                        "segmentation": [[c for point in zip(x, y) for c in point]],
                    }
                )
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "kudzu"}],
        }
        parts[split] = write(content, out / f"{split}.json"), folder
    return parts


def area(x: list[float], y: list[float]) -> float:
    """Area of a polygon by the shoelace formula."""
    return abs(sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))) / 2


def write(content: dict, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def resized(side: int) -> dict[str, object]:
    """Images whose shorter side is ``side`` px."""
    return {
        "INPUT.MIN_SIZE_TRAIN": (side,),
        "INPUT.MIN_SIZE_TEST": side,
        "INPUT.MAX_SIZE_TRAIN": 2 * side,
        "INPUT.MAX_SIZE_TEST": 2 * side,
    }


DATA_SETS = {
    "nuclei": DataSet(
        "cell nuclei (at most 320 px)", nuclei, {**crops(128), "TEST.DETECTIONS_PER_IMAGE": 300}
    ),
    "waste": DataSet("medical waste, 4 classes", waste, resized(256)),
    "kudzu": DataSet("insects on leaves", kudzu, resized(256)),
}
