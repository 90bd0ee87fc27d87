"""Uncertain images first: the measure, the order, and that nothing else changes."""

import csv
import json
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from helpers.predicting import picture, seen_images
from PIL import Image

from rdsnet.prediction.ordering import UncertainFirst, doubts
from rdsnet.prediction.sources import Frame
from rdsnet.prediction.thresholds import ScoreThresholds
from rdsnet.prediction.writers import build_writers
from rdsnet.prediction.writers.writer import Writer

FORMATS = "coco,cvat,label-studio,labelme,csv"
ALL = ["--format", FORMATS, "--score-threshold", "0.01"]


def order_of(folder):
    with open(folder / "order.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_doubt_is_one_at_the_threshold_and_none_where_the_model_is_sure():
    scores = torch.tensor([0.0, 0.2, 0.3, 0.4, 0.7, 1.0, 0.5, 1.0])
    thresholds = torch.tensor([0.4] * 6 + [0.0, 1.0])
    wanted = [0, 0.5, 0.75, 1, 0.5, 0, 0.5, 0]
    assert doubts(scores, thresholds).tolist() == pytest.approx(wanted, abs=1e-6)


class Kept(Writer):
    """Keeps what it is given."""

    def begin(self):
        self.seen = []

    def add(self, frame, instances):
        self.seen.append((frame.path.name, frame.name, frame.image, instances.scores.tolist()))


def found(scores, classes, size=(20, 30)):
    instances = Instances(size)
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    instances.pred_boxes = Boxes(torch.zeros(len(scores), 4))
    return instances


def test_order_is_that_of_undecided_objects_by_the_threshold_of_their_class(tmp_path):
    """Against a plain computation, on random scores."""
    rng = np.random.default_rng()
    thresholds = ScoreThresholds((0.3, 0.6))
    kept = Kept(tmp_path, None, [])
    wanted, pixels = {}, {}
    with kept, UncertainFirst([kept], thresholds, tmp_path / "out", 5, print) as writer:
        for n in range(9):
            name, number = f"{n}.png", int(rng.integers(0, 6))
            pixels[name] = picture(20, 30, seed=n)
            Image.fromarray(pixels[name]).save(tmp_path / name)
            scores, classes = rng.random(number).astype(np.float32), rng.integers(0, 2, number)
            total, shown = 0.0, []
            for score, k in zip(scores.tolist(), classes.tolist(), strict=True):
                t = (0.3, 0.6)[k]
                doubt = (1 - score) / (1 - t) if score >= t else score / t
                total += doubt if doubt >= 0.5 else 0
                shown += [score] if score >= t else []
            wanted[name] = total, shown
            frame = Frame(f"out {n}", tmp_path / name, pixels[name][:, :, ::-1])
            writer.write(frame, found(scores.tolist(), classes.tolist()))
        assert not (tmp_path / "out" / "order.csv").exists()
    names = sorted(wanted, key=lambda name: (-wanted[name][0], name))
    assert [row["file"] for row in order_of(tmp_path / "out")] == [
        str(tmp_path / name) for name in names
    ]
    assert [name for name, *_ in kept.seen] == names[:5]
    for name, output, image, scores in kept.seen:
        assert output == f"out {name[0]}" and scores == pytest.approx(wanted[name][1])
        assert (image == pixels[name][:, :, ::-1]).all()
    assert "The 5 most uncertain of 9 images written" in writer.text()


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(4):
        Image.fromarray(picture(60, 90, seed=n)).save(folder / f"{n}.png")
    pages = [Image.fromarray(picture(60, 90, seed=10 + n)) for n in range(3)]
    pages[0].save(folder / "stack.tif", save_all=True, append_images=pages[1:])
    return folder


def objects_by_image(out):
    """{(file, page): rows of the objects}."""
    with open(out / "objects.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for row in rows:
        found.setdefault((row["file"], row["frame"]), []).append(row)
    return found


def test_all_files_are_in_the_order_and_say_the_same_as_without(
    predict, photos, tmp_path, monkeypatch
):
    assert predict(photos, arguments=ALL) == 0
    (tmp_path / "out").rename(tmp_path / "plain")
    assert not (tmp_path / "plain" / "order.csv").exists()
    seen = seen_images(monkeypatch)
    assert predict(photos, arguments=[*ALL, "--order", "uncertain"]) == 0
    assert len(seen) == 7  # once each
    rows, out = order_of(tmp_path / "out"), tmp_path / "out"
    values = [float(row["uncertainty"]) for row in rows]
    assert values == sorted(values, reverse=True) and len(rows) == 7
    order = [(row["file"], row["frame"]) for row in rows]
    images = json.loads((out / "images.json").read_text())["images"]
    assert [(i["file_name"], str(i.get("frame", ""))) for i in images] == order
    tasks = json.loads((out / "label_studio.json").read_text())
    cvat = [image.get("name") for image in ElementTree.parse(out / "cvat.xml").iter("image")]
    assert len(tasks) == len(cvat) == 7
    names = [f.rpartition("/")[2] if not p else f"stack_{int(p):06d}" for f, p in order]
    assert cvat == names
    plain = tmp_path / "plain"
    assert objects_by_image(out) == objects_by_image(plain)
    for path in (plain / "labelme").iterdir():
        assert (out / "labelme" / path.name).read_bytes() == path.read_bytes()
    assert [int(row["objects"]) for row in rows] == [
        len(objects_by_image(plain).get(image, [])) for image in order
    ]


def test_a_limit_writes_the_first_ones_and_lists_all(predict, photos, tmp_path, capsys):
    words = ["--format", "labelme", "--score-threshold", "0.01", "--order", "uncertain"]
    assert predict(photos, arguments=[*words, "--limit", "2"]) == 0
    rows = order_of(tmp_path / "out")
    assert len(rows) == 7
    written = {path.stem for path in (tmp_path / "out" / "labelme").iterdir()}
    assert len(written) == 2
    for row in rows[:2]:
        stem = row["file"].rpartition("/")[2].partition(".")[0]
        assert (f"{stem}_{int(row['frame']):06d}" if row["frame"] else stem) in written
    output = capsys.readouterr().out
    assert "The 2 most uncertain of 7 images written" in output and "order.csv" in output


def test_what_was_found_before_ctrl_c_is_written_in_order(predict, photos, tmp_path, monkeypatch):
    add = UncertainFirst.add

    def interrupted(self, frame, instances):
        if len(self._records) == 3:
            raise KeyboardInterrupt
        add(self, frame, instances)

    monkeypatch.setattr(UncertainFirst, "add", interrupted)
    assert predict(photos, arguments=[*ALL, "--order", "uncertain"]) == 130
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert len(images) == len(order_of(tmp_path / "out")) == 3


def test_what_cannot_be_ordered_is_said(predict, photos, tmp_path, capsys):
    assert predict(photos, arguments=["--limit", "2"]) == 2
    assert "--limit can only be given together with --order" in capsys.readouterr().err
    assert predict("0", arguments=["--order", "uncertain"]) == 2
    assert "not for videos and cameras" in capsys.readouterr().err
    words = ["--tile", "auto", "--order", "uncertain"]
    assert predict(photos, arguments=words) == 2
    assert "--order does not go with --tile" in capsys.readouterr().err


def test_an_image_that_is_gone_is_said_and_the_others_are_written(tmp_path, capsys):
    (csv_writer,) = build_writers(["csv"], tmp_path, (["a"], [1]))
    said = []
    thresholds = ScoreThresholds((0.5,))
    with csv_writer, UncertainFirst([csv_writer], thresholds, tmp_path, None, said.append) as first:
        for name in ("gone.png", "there.png"):
            Image.fromarray(picture(20, 30)).save(tmp_path / name)
            first.write(Frame(name[:-4], tmp_path / name, picture(20, 30)), found([0.6], [0]))
        (tmp_path / "gone.png").unlink()
    assert len(said) == 1 and "gone.png" in said[0]
    with open(tmp_path / "objects.csv", encoding="utf-8", newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [str(tmp_path / "there.png")]
