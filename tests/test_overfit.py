"""The small model learns four photographs by heart.

If gradients, targets, masks and evaluation did not agree, it could not.
"""

import json
import os
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser

from rdsnet.engine import main

ROOT = Path(__file__).resolve().parents[1]
IMAGES = [184791, 219578, 289393, 308394]  # 19 objects of 13 classes, none of them a crowd


def write_subset(source: Path, image_ids: list[int], target: Path) -> int:
    """Write the given images, their annotations and the classes in use; return the objects."""
    content = json.loads(source.read_text())
    annotations = [a for a in content["annotations"] if a["image_id"] in image_ids]
    used = {a["category_id"] for a in annotations}
    subset = {
        "images": [i for i in content["images"] if i["id"] in image_ids],
        "annotations": annotations,
        "categories": [c for c in content["categories"] if c["id"] in used],
    }
    target.write_text(json.dumps(subset))
    return len(annotations)


@pytest.mark.slow
@pytest.mark.skipif("RDSNET_DATA" not in os.environ, reason="RDSNET_DATA names no data folder")
def test_small_model_overfits_four_photographs(tmp_path):
    tiny_coco = Path(os.environ["RDSNET_DATA"]) / "tiny_coco"
    few = tmp_path / "few.json"
    source = tiny_coco / "annotations" / "instances_val2017.json"
    assert write_subset(source, IMAGES, few) == 19
    files = [["few", str(few), str(tiny_coco / "val2017")]]
    arguments = [
        "--config-file",
        str(ROOT / "configs" / "quick_schedules" / "rdsnet_small_overfit.yaml"),
        "OUTPUT_DIR",
        str(tmp_path / "output"),
        "DATASETS.COCO_FILES",
        str(files),
        "SEED",
        "1",
    ]
    results = main(default_argument_parser().parse_args(arguments))
    assert results["segm"]["AP"] > 60, results
    assert results["bbox"]["AP"] > 60, results
