"""What check-data says about data with faults, compared with what training then does."""

import json
import os

import pytest

from rdsnet.cli import main
from rdsnet.data.rle import segmentation_rle
from rdsnet.data.shapes import make_shapes_dataset

SHORT = (
    "--config small --no-val --iterations 2 --batch-size 2 --device cpu INPUT.MIN_SIZE_TRAIN (96,) "
    "INPUT.MIN_SIZE_TEST 96 DATALOADER.NUM_WORKERS 0 MODEL.RDSNET.MBRM.FIT.AFTER_TRAINING False"
).split()


class Data:
    """Six images of shapes in photos/, their json, and what a test changes in both."""

    def __init__(self, folder):
        paths = make_shapes_dataset(folder, num_train=6, num_val=1, size=(96, 128), seed=5)
        self.json, self.photos = paths["train_json"], paths["train_images"]
        with open(self.json) as file:
            self.content = json.load(file)

    def photo(self, number):
        return os.path.join(self.photos, self.content["images"][number]["file_name"])


def as_crowds(data):
    sizes = {image["id"]: (image["height"], image["width"]) for image in data.content["images"]}
    for annotation in data.content["annotations"]:
        rle = segmentation_rle(annotation["segmentation"], sizes[annotation["image_id"]])
        counts = rle["counts"]
        rle = {**rle, "counts": counts.decode() if isinstance(counts, bytes) else counts}
        annotation.update(segmentation=rle, iscrowd=1)


def with_windows_names(data):
    for image in data.content["images"]:
        image["file_name"] = f"D:\\shots\\{image['file_name'].upper()}"


def without_some_files(data):
    for number, make in enumerate((os.mkfifo, os.mkdir, lambda path: os.symlink("no", path))):
        os.unlink(data.photo(number))
        make(data.photo(number))


def with_one_name_for_all(data):
    for category in data.content["categories"]:
        category["name"] = "shape"


def with_inner_polygons(data):
    for annotation in data.content["annotations"]:
        x, y, w, h = annotation["bbox"]
        outer = [x, y, x + w, y, x + w, y + h, x, y + h]
        inner = [x + w / 4, y + h / 4, x + w / 2, y + h / 4, x + w / 2, y + h / 2]
        annotation["segmentation"] = [outer, inner]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "options", "works"),
    [
        (as_crowds, ["--crowds-are-objects"], False),
        (with_windows_names, [], False),
        (without_some_files, [], False),
        (with_one_name_for_all, [], True),
        (with_inner_polygons, ["--inner-polygons-are-holes"], True),
    ],
)
def test_the_verdict_is_what_training_does(change, options, works, tmp_path, monkeypatch, capsys):
    """Before the repair, and after it."""
    monkeypatch.chdir(tmp_path)
    data = Data(tmp_path / change.__name__)  # which also names the data set
    change(data)
    with open(data.json, "w") as file:
        json.dump(data.content, file)

    def verdict(*arguments):
        status = main(["check-data", *arguments])
        said = capsys.readouterr().out
        assert status == (0 if "Training would work." in said else 1)
        return status == 0

    def trains(json_file, output):
        return main(["train", "--data", json_file, data.photos, "--output", output, *SHORT]) == 0

    assert verdict(data.json, data.photos) == works == trains(data.json, "before")
    assert verdict(data.json, data.photos, "--fix", "fixed.json", *options)
    assert trains("fixed.json", "after")
    assert os.path.isfile("after/model_final.pth")
