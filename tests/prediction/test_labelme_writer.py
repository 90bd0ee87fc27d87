"""What labelme opens: our reader gives the masks back, and its own loader takes the files."""

import json

import cv2
import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.structures import Boxes, Instances
from helpers.predicting import picture
from PIL import Image

from rdsnet.data.formats import read_export
from rdsnet.data.rle import segmentation_rle
from rdsnet.prediction.sources import Frame
from rdsnet.prediction.writers import build_writers

H, W = 90, 120
NAMES = ["cell", 'bär "b"']


def blobs(rng, number=5):
    """(N, H, W) bool: discs, each grown together with another one, or in two parts."""
    y, x = np.mgrid[:H, :W] + 0.5
    masks = []
    for _ in range(number):
        mask = np.zeros((H, W), bool)
        for _ in range(2):
            cy, cx, radius = rng.uniform(0, H), rng.uniform(0, W), rng.uniform(3, 25)
            mask |= (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        masks.append(mask)
    return np.stack(masks)


@pytest.fixture
def written(tmp_path):
    """Folder of labelme files, the masks and their scores."""
    rng = np.random.default_rng()
    masks = blobs(rng)
    found = Instances((H, W))
    found.pred_boxes = Boxes(torch.zeros(len(masks), 4))
    found.scores = torch.from_numpy(np.sort(rng.uniform(0.1, 1, len(masks)))[::-1].copy())
    found.pred_classes = torch.arange(len(masks)) % 2
    found.pred_masks = torch.from_numpy(masks)
    Image.fromarray(picture(H, W)).save(tmp_path / "photo ü.png")
    frame = Frame("photo ü", tmp_path / "photo ü.png", picture(H, W)[:, :, ::-1])
    (writer,) = build_writers(["labelme"], tmp_path / "out", (NAMES, [1, 2]))
    with writer:
        writer.write(frame, found)
    return tmp_path / "out" / "labelme", masks, found.scores.tolist()


def test_our_reader_gives_the_masks_back_but_for_simpler_outlines_and_holes(written):
    folder, masks, scores = written
    content = read_export(folder).part("train")
    names = {category["id"]: category["name"] for category in content["categories"]}
    assert content["images"][0]["file_name"] == "photo ü.png"
    assert len(content["annotations"]) == len(masks)
    for n, a in enumerate(content["annotations"]):
        assert names[a["category_id"]] == NAMES[n % 2]
        drawn = coco_mask.decode(segmentation_rle(a["segmentation"], (H, W)))
        filled = masks[n].astype(np.uint8)
        outside = cv2.findContours(filled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
        cv2.drawContours(filled, outside, -1, 1, cv2.FILLED)
        near = cv2.dilate(filled, np.ones((3, 3))) - cv2.erode(filled, np.ones((3, 3)))
        assert not ((drawn != filled) & (near == 0)).any()  # a pixel at the border, at most
        assert (drawn != filled).sum() <= 0.12 * filled.sum() + 2
    shapes = json.loads(next(folder.iterdir()).read_text())["shapes"]
    assert {shape["description"] for shape in shapes} == {f"score {s:.3f}" for s in scores}


def test_labelmes_own_loader_takes_them(written):
    labelme = pytest.importorskip(
        "labelme", reason="labelme cannot be imported: pip install labelme", exc_type=ImportError
    )
    folder, masks, _ = written
    path = next(folder.iterdir())
    loaded = labelme.LabelFile(str(path))
    ours = json.loads(path.read_text())
    with Image.open(folder / ours["imagePath"]) as image:
        assert image.size == (W, H)
    ours = ours["shapes"]
    assert len(loaded.shapes) == len(ours) >= len(masks)
    for theirs, own in zip(loaded.shapes, ours, strict=True):
        for key in ("label", "points", "group_id", "shape_type", "description"):
            assert theirs[key] == own[key], key
