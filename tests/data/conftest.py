"""A small data set in COCO format, to be broken in one place by each test."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.coco_masks import HEIGHT, WIDTH, compressed, mask_of, uncompressed
from PIL import Image


def annotation(id_: int, image_id: int, category_id: int, box: list, segmentation, **more) -> dict:
    return {
        "id": id_,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": segmentation,
        **more,
    }


BOX = [10, 5, 20, 15]
POLYGON = [10, 5, 30, 5, 30, 20, 10, 20]

CONTENT = {
    "images": [
        {"id": id_, "file_name": f"{name}.png", "height": HEIGHT, "width": WIDTH}
        for id_, name in [(7, "polygons"), (3, "rle"), (5, "mixed"), (9, "crowd"), (4, "empty")]
    ],
    "annotations": [
        annotation(11, 7, 2, BOX, [POLYGON]),
        annotation(12, 7, 8, [2, 2, 10, 10], [[2, 2, 12, 2, 12, 12, 2, 12]]),
        annotation(13, 3, 2, BOX, compressed(mask_of(*BOX))),
        annotation(14, 3, 2, [0, 0, 6, 7], uncompressed(mask_of(0, 0, 6, 7))),
        annotation(15, 5, 8, BOX, [POLYGON]),
        annotation(16, 5, 2, [40, 20, 15, 15], compressed(mask_of(40, 20, 15, 15))),
        annotation(17, 9, 2, [0, 0, 60, 8], uncompressed(mask_of(0, 0, 60, 8)), iscrowd=1),
        annotation(18, 9, 8, BOX, [POLYGON]),
    ],
    "categories": [{"id": 8, "name": "dog"}, {"id": 2, "name": "cat"}],
}


class CocoFolder:
    """A folder with ``data.json`` and ``images/``; ``content`` may be changed before ``write``."""

    def __init__(self, folder: Path) -> None:
        self.content = copy.deepcopy(CONTENT)
        self.json_file = str(folder / "data.json")
        self.image_root = str(folder / "images")
        os.makedirs(self.image_root)
        rng = np.random.default_rng(0)
        for image in self.content["images"]:
            pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.image_path(image["file_name"]))

    def image_path(self, file_name: str) -> str:
        return os.path.join(self.image_root, file_name)

    def annotation(self, id_: int) -> dict:
        return next(a for a in self.content["annotations"] if a["id"] == id_)

    def write(self) -> str:
        Path(self.json_file).write_text(json.dumps(self.content))
        return self.json_file


@pytest.fixture
def coco(tmp_path) -> CocoFolder:
    return CocoFolder(tmp_path)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with tiny_coco/ and nuclei/."""
    folder = os.environ.get("RDSNET_DATA")
    if not folder:
        pytest.skip("RDSNET_DATA (folder with tiny_coco/ and nuclei/) is not set")
    return Path(folder)
