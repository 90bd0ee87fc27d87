"""``rdsnet export --int8``: what the file finds, what it says about itself, what is refused."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from detectron2.structures import pairwise_iou
from helpers.exporting import need_onnx

from rdsnet.api import load
from rdsnet.checkpoint.exported import read_texts, weights_of
from rdsnet.checkpoint.trained import prediction_config
from rdsnet.cli import main
from rdsnet.export import export
from rdsnet.prediction import quantizing
from rdsnet.prediction.exported import build_predictor


def discs(height, width, seed):
    """Bright discs on dark ground, as the nuclei model finds them."""
    generator = np.random.default_rng(seed)
    image = np.full((height, width), 20, np.uint8)
    for _ in range(12):
        centre = [int(generator.integers(8, side - 8)) for side in (width, height)]
        cv2.circle(image, centre, int(generator.integers(5, 10)), 180, -1)
    noise = generator.normal(0, 4, image.shape)
    image = (cv2.GaussianBlur(image, (5, 5), 0) + noise).clip(0, 255).astype(np.uint8)
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(4):
        assert cv2.imwrite(str(folder / f"{seed}.png"), discs(96, 128, seed))
    return folder


def need_nncf():
    need_onnx()
    pytest.importorskip("openvino", reason="needs rdsnet[int8]")
    return pytest.importorskip("nncf", reason="needs rdsnet[int8]")


@pytest.mark.slow
def test_a_file_in_8_bits(photos, tmp_path, capsys, monkeypatch):
    need_nncf()
    path, exact = tmp_path / "new" / "small.xml", tmp_path / "exact.xml"

    def export_and_keep(*args, **options):
        summary = export(*args, **options)
        copied(summary.path, exact)
        return summary

    monkeypatch.setattr(quantizing, "export", export_and_keep)
    words = ["export", "--weights", "nuclei", "--output", str(path), "--int8", str(photos)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "Calibrating by 4 images" in said and "in 8 bits it finds" in said
    assert sorted(file.name for file in path.parent.iterdir()) == ["small.bin", "small.xml"]

    assert weights_of(path).stat().st_size < 0.5 * weights_of(exact).stat().st_size
    texts = read_texts(exact)
    assert read_texts(path) == {**texts, "precision": "int8"} and "precision" not in texts

    # Another image than those that chose the ranges: the same objects, in nearly the same places.
    found, expected = (
        build_predictor(prediction_config(None, str(file), 0.5, ()))(discs(80, 144, seed=9))
        for file in (path, exact)
    )
    found, expected = found["instances"], expected["instances"]
    assert len(expected) > 5 and not np.isin(found.scores, expected.scores).all()
    overlaps = pairwise_iou(expected.pred_boxes, found.pred_boxes).amax(1)
    assert (overlaps > 0.7).float().mean() > 0.7

    with pytest.raises(ValueError, match="computes in int8, not in bf16"):
        options = ("MODEL.RDSNET.INFERENCE.PRECISION", "bf16")
        build_predictor(prediction_config(None, str(path), None, options))

    # What finds too little is not kept, and what was there stays.
    before = path.read_bytes(), weights_of(path).read_bytes()
    monkeypatch.setattr(quantizing, "_FEWEST_FOUND", 1.1)

    def exported_before(*args, **_):
        copied(exact, args[2])
        return SimpleNamespace(size=None)

    monkeypatch.setattr(quantizing, "export", exported_before)
    with pytest.raises(ValueError, match=r"finds \d+ of \d+ objects in 4 images, and"):
        load("nuclei").export(path, int8=photos)
    assert (path.read_bytes(), weights_of(path).read_bytes()) == before
    assert sorted(file.name for file in path.parent.iterdir()) == ["small.bin", "small.xml"]


def copied(path, target):
    for part in (path, weights_of(path)):
        shutil.copy(part, target.with_suffix(part.suffix))


def test_mistakes_are_named(weights, photos, tmp_path, capsys, monkeypatch):
    def refused(output, *images, options=()):
        words = ["export", "--weights", weights, "--output", str(tmp_path / output)]
        assert main([*words, *options, "--int8", *map(str, images)]) == 2
        assert not list(tmp_path.glob("model*"))
        return capsys.readouterr().err

    assert "model.onnx' must end in .xml" in refused("model.onnx", photos)
    size = ("--size", "64", "64")
    assert "leave --size out" in refused("model.xml", photos, options=size)
    monkeypatch.setattr(quantizing, "find_spec", lambda name: None if name == "nncf" else True)
    assert "--int8 needs nncf: pip install 'rdsnet[export,int8]'" in refused("model.xml", photos)
    monkeypatch.setattr(quantizing, "find_spec", lambda name: True)
    assert "none' does not exist" in refused("model.xml", tmp_path / "none")
    (tmp_path / "film.mp4").write_bytes(b"")
    assert "no images in" in refused("model.xml", tmp_path / "film.mp4")
    assert "leave --format out" in refused("model.xml", photos, options=("--format", "onnx"))
    with pytest.raises(FileNotFoundError, match="no images in an empty list"):
        load(weights).export(tmp_path / "model.xml", int8=[])
    (photos / "damaged.png").write_bytes(b"nothing")
    assert "damaged.png cannot be read" in refused("model.xml", photos)
    (tmp_path / "folder.xml").mkdir()
    assert "folder.xml' is a folder" in refused("folder.xml", photos)


def test_calibration_images_are_spread_evenly(tmp_path):
    for number in range(250):
        (tmp_path / f"{number:03}.png").write_bytes(b"")
    chosen = quantizing._calibration_images([str(tmp_path)])
    numbers = [int(path[-7:-4]) for path in chosen]
    assert len(numbers) == 100 and numbers[0] == 0 and numbers[-1] == 249
    assert set(np.diff(numbers)) <= {2, 3}
