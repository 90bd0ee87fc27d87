"""What `rdsnet train --data` decides from the data, before anything is trained."""

import json

import pytest
from PIL import Image

from rdsnet.training.own_data import prepare
from rdsnet.training.settings import Wishes


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write NAME.json with the given image ids and an object in each image; gives --data."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    box, square = [10, 10, 30, 30], [[10, 10, 40, 10, 40, 40, 10, 40]]

    def call(name, ids, objects=True):
        size = {"file_name": "a.png", "height": 64, "width": 64}
        what = {"category_id": 1, "bbox": box, "area": 900, "segmentation": square, "iscrowd": 0}
        annotations = [{"id": n, "image_id": id_, **what} for n, id_ in enumerate(ids, start=1)]
        content = {
            "images": [{"id": id_, **size} for id_ in ids],
            "annotations": annotations if objects else [],
            "categories": [{"id": 1, "name": "thing"}],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return f"{name}.json", "."

    return call


def prepared(data, val=None, **wishes):
    _, _, settings = prepare(data, val, config="small", output="out", wishes=Wishes(**wishes))
    return settings


def parts(settings):
    """(training, validation): the images and annotations of both files."""
    files = settings.options["DATASETS.COCO_FILES"]
    return [json.loads(open(json_file).read()) for _, json_file, _ in files]


IDS = {
    "hashes": [2**63 - 20 + n for n in range(40)],
    "long": [-(10**40) + n for n in range(21)],
    "text": [f"{n:x}-ä" for n in range(30)],
    "numbers and text": [n if n % 3 else f"id {n}" for n in range(50)],
}


@pytest.mark.parametrize("kind", IDS)
def test_a_tenth_is_held_out_whatever_the_ids_are(write, kind):
    ids = IDS[kind]
    train, val = parts(prepared(write("all", ids)))
    assert len(val["images"]) == round(len(ids) / 10) > 0
    held_out = {image["id"] for image in val["images"]}
    assert {a["image_id"] for a in val["annotations"]} == held_out
    trained = {image["id"] for image in train["images"]}
    assert trained == {a["image_id"] for a in train["annotations"]}
    assert trained | held_out == set(ids) and not trained & held_out


def test_the_same_images_are_held_out_whatever_their_order(write):
    ids = IDS["numbers and text"]
    first = parts(prepared(write("a", ids)))[1]["images"]
    second = parts(prepared(write("b", ids[::-1])))[1]["images"]
    assert sorted(map(str, (i["id"] for i in first))) == sorted(map(str, (i["id"] for i in second)))


def test_validation_data_without_objects_is_said(write):
    settings = prepared(write("train", [1, 2]), write("val", ["x"], objects=False), patience=3)
    notes = dict(settings.notes)
    assert "0 objects" in notes["Validation"]
    assert "without objects there is no AP: nothing can be compared" in notes["Evaluation"]
    assert "best model by" not in notes["Evaluation"] and "stops when" not in notes["Evaluation"]


def test_validation_data_without_images_is_refused(write):
    with pytest.raises(ValueError, match="val.json has no images to evaluate on"):
        prepared(write("train", [1, 2]), write("val", []))
