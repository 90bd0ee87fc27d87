"""What annotation tools import: the tools' readers give the masks back."""

import json

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.structures import Boxes, Instances

from rdsnet.data.formats import read_export
from rdsnet.data.rle import segmentation_rle
from rdsnet.prediction.sources import Frame
from rdsnet.prediction.writers import build_writers

H, W = 60, 80
NAMES = ['disc "a"', "bär"]


def instances():
    """Two objects, the second in two parts, and one without pixels."""
    masks = torch.zeros(3, H, W, dtype=torch.bool)
    y, x = np.mgrid[:H, :W]
    masks[0] = torch.from_numpy((y - 30) ** 2 + (x - 25) ** 2 < 15**2)
    masks[1, 5:25, 50:60], masks[1, 30:50, 55:75] = True, True
    found = Instances((H, W))
    found.pred_boxes = Boxes([[10.0, 15, 40, 45], [50, 5, 75, 50], [1, 1, 2, 2]])
    found.scores, found.pred_classes = torch.tensor([0.9, 0.8, 0.55]), torch.tensor([1, 0, 0])
    found.pred_masks = masks
    return found


@pytest.fixture
def written(tmp_path):
    frame = Frame("photo", tmp_path / "a & b.png", np.zeros((H, W, 3), np.uint8))
    other = Frame("empty", tmp_path / "empty.png", np.zeros((H, W, 3), np.uint8))
    for writer in build_writers(["cvat", "label-studio"], tmp_path, (NAMES, [4, 9])):
        with writer:
            writer.write(frame, instances())
            writer.write(other, instances()[:0])
    return tmp_path


def overlaps(export):
    """IoU of every annotation with the mask of its class."""
    (content,) = export.parts.values()
    names = {category["id"]: category["name"] for category in content["categories"]}
    truth = {NAMES[1]: instances().pred_masks[0], NAMES[0]: instances().pred_masks[1]}
    found = {}
    for annotation in content["annotations"]:
        name = names[annotation["category_id"]]
        rle = segmentation_rle(annotation["segmentation"], (H, W))
        own = coco_mask.encode(np.asfortranarray(truth[name].numpy().astype(np.uint8)))
        found.setdefault(name, []).append(coco_mask.iou([rle], [own], [0])[0, 0])
    return found


def test_cvats_reader_gives_the_masks_back(written):
    found = overlaps(read_export(str(written / "cvat.xml"), str(written)))
    assert {name: len(values) for name, values in found.items()} == {NAMES[0]: 1, NAMES[1]: 1}
    assert min(found[NAMES[0]] + found[NAMES[1]]) > 0.95


def test_label_studios_reader_gives_the_masks_back_when_predictions_are_accepted(written):
    tasks = json.loads((written / "label_studio.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [
        str(written / "a & b.png"), str(written / "empty.png")
    ]  # fmt: skip
    (prediction,) = tasks[0]["predictions"]
    assert prediction["score"] == 0.55  # of the least certain object
    assert "score" not in tasks[1]["predictions"][0]
    assert [region["score"] for region in prediction["result"]] == [0.9, 0.8, 0.8]
    for task in tasks:
        task["annotations"] = task.pop("predictions")
    (written / "accepted.json").write_text(json.dumps(tasks))
    found = overlaps(read_export(str(written / "accepted.json"), str(written)))
    assert len(found[NAMES[1]]) == 1 and found[NAMES[1]][0] > 0.95
    assert len(found[NAMES[0]]) == 2  # its parts are objects: Label Studio knows no groups


def test_files_are_whole_after_every_image(tmp_path):
    frame = Frame("photo", tmp_path / "a.png", np.zeros((H, W, 3), np.uint8))
    (cvat,) = build_writers(["cvat"], tmp_path, (NAMES, [4, 9]))
    with cvat:
        for count in (1, 2, 3):
            cvat.write(frame, instances())
            text = (tmp_path / "cvat.xml").read_text(encoding="utf-8")
            assert text.count("<image ") == count and text.endswith("</annotations>\n")
