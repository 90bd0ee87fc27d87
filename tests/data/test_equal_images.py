"""One photograph under several names: found by its bytes, and kept on one side of the hold-out."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from rdsnet.cli import main
from rdsnet.data import equal_images as module
from rdsnet.data.equal_images import equal_image_findings, equal_images
from rdsnet.training.own_data import prepare
from rdsnet.training.settings import Wishes


@pytest.fixture
def files(tmp_path):
    """Call with {name: bytes}; gives {name: path}."""

    def write(contents):
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
        return {name: str(tmp_path / name) for name in contents}

    return write


def test_files_of_equal_bytes_are_groups(files):
    long = bytes(range(256)) * 200
    other_middle = long[:25000] + b"x" + long[25001:]
    other_end = long[:-1] + b"x"  # beyond what is compared first
    paths = files(
        {"a": long, "b": other_middle, "c": long, "d": other_end, "e": b"s", "f": b"s", "g": b"t"}
    )
    assert equal_images(paths) == [["a", "c"], ["e", "f"]]


def test_only_files_that_may_be_equal_are_read(files, monkeypatch):
    """By size first; by a sample then; only c and d are read to their ends."""
    rng = np.random.default_rng(3)
    a, b, c = (rng.bytes(20_000) for _ in range(3))
    paths = files({"a": a, "b": b, "c": c, "d": c, "lonely": rng.bytes(7), "empty": b""})
    read = {"_sample": [], "_digest": []}
    for name, calls in read.items():
        look = getattr(module, name)
        note = lambda path, look=look, calls=calls: calls.append(path) or look(path)  # noqa: E731
        monkeypatch.setattr(module, name, note)
    assert equal_images(paths) == [["c", "d"]]
    names = {key: sorted(map(os.path.basename, calls)) for key, calls in read.items()}
    assert names == {"_sample": ["a", "b", "c", "d"], "_digest": ["c", "d"]}


def test_links_and_one_name_under_two_ids_are_equal_and_empty_files_are_not(files, tmp_path):
    paths = files({"a.png": b"pixels", "empty1.png": b"", "empty2.png": b""})
    (tmp_path / "link.png").symlink_to("a.png")
    os.mkfifo(tmp_path / "pipe.png")
    paths |= {name: str(tmp_path / name) for name in ("link.png", "pipe.png", "none.png")}
    assert equal_images({**paths, "again": paths["a.png"]}) == [["a.png", "link.png", "again"]]


def test_check_data_names_the_images_that_are_one(coco, tmp_path, capsys):
    shutil.copy(coco.image_path("rle.png"), coco.image_path("copy of rle.png"))
    twice = {**coco.content["images"][2], "id": 70}  # mixed.png
    copy = {**coco.content["images"][1], "id": 71, "file_name": "copy of rle.png"}
    coco.content["images"] += [twice, copy]
    found = [(f.where, f.message) for f in equal_image_findings(coco.content, coco.image_root)]
    assert found == [
        ("images 3, 71", "'rle.png', 'copy of rle.png' are equal"),
        ("images 5, 70", "'mixed.png' is the file of each"),
    ]
    words = ["check-data", coco.write(), coco.image_root, "--sheet", str(tmp_path / "s.png")]
    assert main(words) == 0
    assert "same photograph: 2" in capsys.readouterr().out
    assert main([*words, "--no-images"]) == 0  # no file is read
    assert "same photograph" not in capsys.readouterr().out


class Photographs:
    """``count`` pictures of noise with one object each; ``copies`` {copy: original} of them."""

    def __init__(self, folder, count, copies):
        folder.mkdir()
        self.root = str(folder)
        images, annotations = [], []
        for k in range(count):
            name = f"{k:03d}.png"
            source = copies.get(k, k)
            pixels = np.random.default_rng(source).integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
            images.append({"id": k, "file_name": name, "height": 40, "width": 60})
            square = [10, 5, 30, 5, 30, 25, 10, 25]
            annotation = {"id": k + 1, "image_id": k, "category_id": 1, "bbox": [10, 5, 20, 20]}
            annotations.append({**annotation, "iscrowd": 0, "area": 400, "segmentation": [square]})
        categories = [{"id": 1, "name": "leaf"}]
        self.content = {"images": images, "annotations": annotations, "categories": categories}

    def write(self, path, ids):
        parts = {
            "images": [image for image in self.content["images"] if image["id"] in ids],
            "annotations": [a for a in self.content["annotations"] if a["image_id"] in ids],
        }
        path.write_text(json.dumps({**self.content, **parts}))
        return str(path), self.root


def prepared(data, val=None, hold_out=True):
    return prepare(data, val, config="small", output="out", wishes=Wishes(), hold_out=hold_out)[2]


def ids_of(path):
    with open(path) as file:
        return {image["id"] for image in json.load(file)["images"]}


@pytest.mark.parametrize("seed", range(4))
def test_the_hold_out_parts_no_photograph(seed, tmp_path, monkeypatch):
    """60 images of which 40 are copies of others, in groups of random sizes."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(seed)
    copies = {k: int(rng.integers(0, 20)) for k in range(20, 60)}
    photographs = Photographs(tmp_path / "photos", 60, copies)
    settings = prepared(photographs.write(tmp_path / "all.json", range(60)))
    train, val = (ids_of(tmp_path / f"out/data/{part}.json") for part in ("train", "val"))
    assert train | val == set(range(60)) and not train & val
    assert 0 < len(val) <= 6
    assert not {copies.get(k, k) for k in train} & {copies.get(k, k) for k in val}
    text = dict(settings.notes)["Same images"]
    groups = [[k for k in range(60) if copies.get(k, k) == of] for of in range(20)]
    groups = [group for group in groups if len(group) > 1]
    assert f"{sum(map(len, groups))} images are {len(groups)} photographs" in text


def test_without_copies_the_hold_out_is_a_tenth(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photographs = Photographs(tmp_path / "photos", 30, {})
    settings = prepared(photographs.write(tmp_path / "all.json", range(30)))
    assert len(ids_of(tmp_path / "out/data/val.json")) == 3
    assert "Same images" not in dict(settings.notes)


def test_groups_larger_than_a_tenth_are_not_parted_either(tmp_path, monkeypatch):
    """Bursts of 5, 9 and 10 images; a tenth are 2."""
    monkeypatch.chdir(tmp_path)
    copies = {k: 0 if k < 9 else 9 if k < 14 else 14 for k in range(24)}
    photographs = Photographs(tmp_path / "photos", 24, copies)
    prepared(photographs.write(tmp_path / "all.json", range(24)))
    assert ids_of(tmp_path / "out/data/val.json") == set(range(9, 14))


def test_a_single_photograph_is_parted_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photographs = Photographs(tmp_path / "photos", 25, dict.fromkeys(range(1, 25), 0))
    settings = prepared(photographs.write(tmp_path / "all.json", range(25)))
    text = dict(settings.notes)["Same images"]
    assert text.startswith("25 images are 1 photograph") and "is trained on, too" in text
    assert len(ids_of(tmp_path / "out/data/val.json")) == 2


def test_training_says_how_many_validation_images_it_trains_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copies = {12: 3, 14: 14, 16: 7, 17: 16}  # 17 is of 16's number: another picture than 7
    photographs = Photographs(tmp_path / "photos", 20, copies)
    train = photographs.write(tmp_path / "a.json", range(12))
    val = photographs.write(tmp_path / "b.json", range(12, 20))
    text = dict(prepared(train, val).notes)["Same images"]
    assert "2 of the 8 images of" in text and "such as '012.png'" in text
    clean = photographs.write(tmp_path / "c.json", {13, 14, 15, 18})
    assert "Same images" not in dict(prepared(train, clean).notes)
