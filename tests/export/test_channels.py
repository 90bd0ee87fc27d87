"""A file of a model for images that are no photographs, in the place of the model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.exporting import need_onnx, tiny_config, untrained

import rdsnet
from rdsnet.checkpoint.description import save_model
from rdsnet.checkpoint.exported import read_texts
from rdsnet.cli import main
from rdsnet.export.check import agreeing_objects, made_up_image, objects_of

COUNT = 5
RANGES = [[0.0, 4000.0 + 100 * n] for n in range(COUNT)]


@pytest.mark.slow  # to be traced takes a minute
def test_an_exported_model_of_five_channels(tmp_path, capsys):
    need_onnx()
    cfg = tiny_config("INPUT.CHANNELS", COUNT, "INPUT.SCALING", "dataset")
    cfg.INPUT.SCALE_RANGES = RANGES
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [127.0] * COUNT, [64.0] * COUNT
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    weights, file = str(tmp_path / "model_best.pth"), str(tmp_path / "model.onnx")
    save_model(tmp_path / "model_best.pth", untrained(cfg).state_dict(), cfg)
    assert main(["export", "--weights", weights, "--output", file]) == 0
    assert "Input: image (5, height, width) float32, as in the files" in capsys.readouterr().out
    takes = json.loads(read_texts(file)["input"])
    assert takes["shape"][0] == COUNT and takes["dtype"] == "float32"
    assert takes["scaling"] == "dataset" and takes["ranges"] == RANGES

    values = made_up_image((60, 90), COUNT, torch.float32).numpy().transpose(1, 2, 0) * 16
    np.save(tmp_path / "image.npy", (values + np.random.default_rng().uniform(0, 1, values.shape)))
    expected, found = (
        objects_of(
            rdsnet.load(path, precision="float32")
            .predict(tmp_path / "image.npy", score_threshold=0.0)
            .instances
        )
        for path in (weights, file)
    )
    assert len(expected.scores) == len(found.scores) == cfg.TEST.DETECTIONS_PER_IMAGE
    assert agreeing_objects(expected, found).float().mean() > 0.8


def test_made_up_images_of_any_channels():
    usual = made_up_image((70, 80))
    assert usual.shape == (3, 70, 80) and usual.dtype == torch.uint8
    other = made_up_image((70, 80), 7, torch.float32)
    assert other.shape == (7, 70, 80) and other.dtype == torch.float32
    assert (other[3:6] == usual).all()
