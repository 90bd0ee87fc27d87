"""What tests of ``rdsnet predict`` share."""

import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from rdsnet import get_cfg
from rdsnet.cli import main
from rdsnet.prediction import Predictor

OBJECTS = 7  # per image: TEST.DETECTIONS_PER_IMAGE of the model below


def picture(height=60, width=90, seed=0):
    """Noise, (H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def load_coco(out):
    """images.json and the results of an output folder."""
    images = json.loads((out / "images.json").read_text())
    return images, json.loads((out / "coco_instances_results.json").read_text())


def seen_images(monkeypatch):
    """The list of the images that predictors will be given, in the order of being read."""
    seen, original = [], Predictor.prepare

    def watch(self, image):
        seen.append(image)
        return original(self, image)

    monkeypatch.setattr(Predictor, "prepare", watch)
    return seen


CATEGORIES = [{"id": 4, "name": "disc"}, {"id": 9, "name": "bar"}]


@pytest.fixture(scope="session")
def model_files(tmp_path_factory):
    """{"config", "weights", "json"}: paths as str; the json declares the model's categories."""
    folder = tmp_path_factory.mktemp("model")
    content = {"images": [], "annotations": [], "categories": CATEGORIES}
    annotations = folder / "annotations.json"
    annotations.write_text(json.dumps(content))
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "RDSNet"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_rdsnet_small_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = "GN"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 32
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.RDSNET.PIXEL_STREAM.CONV_DIM = 32
    cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    cfg.MODEL.RETINANET.NUM_CLASSES = len(CATEGORIES)
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    cfg.TEST.DETECTIONS_PER_IMAGE = OBJECTS
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 96, 160
    cfg.DATASETS.COCO_FILES = [["cli_test", str(annotations), str(folder)]]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("cli_test",)
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return {
        "config": str(folder / "config.yaml"),
        "weights": str(folder / "model_final.pth"),
        "json": annotations,
    }


@pytest.fixture
def predict(model_files, tmp_path):
    """Call with inputs and more arguments; returns the exit status. Results are in tmp_path/out.

    In float32: bfloat16, which --precision auto takes where the processor has it, has too few
    digits to tell the scores of an untrained model apart.
    """

    def call(*inputs, arguments=("--format", "coco,labelme,png", "--score-threshold", "0")):
        words = ["predict", "--config-file", model_files["config"]]
        words += ["--weights", model_files["weights"], "--input", *map(str, inputs)]
        words += ["--precision", "float32"]
        return main([*words, "--output", str(tmp_path / "out"), *arguments])

    return call
