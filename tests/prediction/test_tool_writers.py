"""What annotation tools import: the tools' readers give the masks back."""

import json
import shutil
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

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


def test_cvats_file_declares_every_class_in_its_order(written):
    export = read_export(str(written / "cvat.xml"), str(written))
    (content,) = export.parts.values()
    assert [category["name"] for category in content["categories"]] == NAMES


def test_datumaro_reads_the_same_masks(written, tmp_path):
    """A reader of CVAT's xml that is not ours, where it is installed: pip install datumaro."""
    pytest.importorskip("datumaro", reason="datumaro is not installed")
    from datumaro.components.dataset import Dataset

    folder = tmp_path / "from_cvat"
    (folder / "images").mkdir(parents=True)
    shutil.copy(written / "cvat.xml", folder)
    for name in ("a & b.png", "empty.png"):
        Image.new("RGB", (W, H)).save(folder / "images" / name)
    found = Dataset.import_from(str(folder), "cvat")
    assert {item.id: len(item.annotations) for item in found} == {"a & b": 3, "empty": 0}
    (item,) = (item for item in found if item.annotations)
    assert item.media.size == (H, W)
    masks = {}
    labels = next(iter(found.categories().values()))
    for shape in item.annotations:
        drawn = coco_mask.decode(coco_mask.frPyObjects([list(shape.points)], H, W))[..., 0]
        key = labels[shape.label].name, shape.group
        masks[key] = masks.get(key, 0) | drawn
    truth = instances().pred_masks.numpy()
    expected = {(NAMES[1], 0): truth[0], (NAMES[0], 1): truth[1]}
    assert masks.keys() == expected.keys()
    for key, mask in expected.items():
        assert (mask & (masks[key] > 0)).sum() > 0.95 * (mask | (masks[key] > 0)).sum()


def test_label_studios_reader_gives_the_masks_back_when_predictions_are_accepted(written):
    tasks = json.loads((written / "label_studio.json").read_text())
    address = f"/data/local-files/?d={quote(str(written)[1:])}/"
    addresses = [address + "a%20%26%20b.png", address + "empty.png"]
    assert [task["data"]["image"] for task in tasks] == addresses
    (prediction,) = tasks[0]["predictions"]
    assert prediction["score"] == 0.55  # of the least certain object
    assert "score" not in tasks[1]["predictions"][0]
    assert [region["score"] for region in prediction["result"]] == [0.9, 0.8, 0.8]
    for task in tasks:
        task["annotations"] = task.pop("predictions")
    (written / "accepted.json").write_text(json.dumps(tasks))
    found = overlaps(read_export(str(written / "accepted.json"), str(written)))
    assert {name: len(values) for name, values in found.items()} == {NAMES[0]: 1, NAMES[1]: 1}
    assert min(found[NAMES[0]] + found[NAMES[1]]) > 0.95


def test_a_part_that_got_another_class_in_label_studio_is_an_object_of_its_own(written):
    (task, _) = json.loads((written / "label_studio.json").read_text())
    task["annotations"] = task.pop("predictions")
    task["annotations"][0]["result"][2]["value"]["polygonlabels"] = [NAMES[1]]
    (written / "accepted.json").write_text(json.dumps([task]))
    (content,) = read_export(str(written / "accepted.json"), str(written)).parts.values()
    assert [len(annotation["segmentation"]) for annotation in content["annotations"]] == [1, 1, 1]


def test_images_that_label_studio_serves_are_found_without_naming_their_folder(written, tmp_path):
    Image.new("RGB", (W, H)).save(written / "a & b.png")
    (task, _) = json.loads((written / "label_studio.json").read_text())
    task["annotations"] = task.pop("predictions")
    elsewhere = tmp_path / "exports" / "accepted.json"
    elsewhere.parent.mkdir()
    elsewhere.write_text(json.dumps([task]))
    export = read_export(str(elsewhere))
    (image,) = export.parts["train"]["images"]
    assert Path(export.image_root, image["file_name"]).samefile(written / "a & b.png")


def test_label_studios_config_has_the_classes_and_the_names_that_the_tasks_use(written):
    config = ElementTree.parse(written / "label_studio.xml").getroot()
    image, polygons = config.find("Image"), config.find("PolygonLabels")
    assert [label.get("value") for label in polygons] == NAMES
    (task, _) = json.loads((written / "label_studio.json").read_text())
    assert image.get("value") == "$" + next(iter(task["data"]))
    for region in task["predictions"][0]["result"]:
        assert region["from_name"] == polygons.get("name")
        assert region["to_name"] == polygons.get("toName") == image.get("name")


def test_files_are_whole_after_every_image(tmp_path):
    frame = Frame("photo", tmp_path / "a.png", np.zeros((H, W, 3), np.uint8))
    (cvat,) = build_writers(["cvat"], tmp_path, (NAMES, [4, 9]))
    with cvat:
        for count in (1, 2, 3):
            cvat.write(frame, instances())
            text = (tmp_path / "cvat.xml").read_text(encoding="utf-8")
            assert text.count("<image ") == count and text.endswith("</annotations>\n")
