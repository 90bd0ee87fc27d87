"""The Predictor's model is made ready for inference; Detectron2's own takes the config, too."""

import json

import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from helpers.exporting import assert_same, random_image, tiny_config
from helpers.predicting import picture
from PIL import Image

from rdsnet.checkpoint import read_checkpoint
from rdsnet.cli import main
from rdsnet.export.check import objects_of
from rdsnet.modeling import precision
from rdsnet.prediction import Predictor


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    """Of a narrow ResNet-50 with frozen BatchNorm, and weights on disk; finds all it can."""
    cfg = tiny_config("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone")
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.DEPTH = "FrozenBN", 50
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.WEIGHTS = str(tmp_path_factory.mktemp("weights") / "model.pth")
    torch.manual_seed(3)
    model = build_model(cfg).eval()
    for norm in model.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.05, 0.4)
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    return cfg


def test_it_finds_what_detectron2s_predictor_finds(cfg):
    theirs, ours = DefaultPredictor(cfg), Predictor(cfg)
    for predictor in (theirs, ours):
        predictor.model.double()  # what is left of rounding is that of the folded weights
    image = random_image(60, 90)
    found = objects_of(ours(image.permute(1, 2, 0).numpy())["instances"])
    assert len(found.scores)
    assert_same(found, theirs.model, image)


def test_its_model_is_ready_and_the_file_as_it_was(cfg):
    before = read_checkpoint(cfg.MODEL.WEIGHTS)["model"]
    predictor = Predictor(cfg)
    predictor(picture())
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in predictor.model.modules())
    after = read_checkpoint(cfg.MODEL.WEIGHTS)["model"]
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_results_may_be_changed_in_place(cfg):
    """As those of Detectron2's: people scale boxes."""
    instances = Predictor(cfg)(picture())["instances"]
    before = instances.pred_boxes.tensor.clone()
    instances.pred_boxes.scale(2, 2)
    assert torch.equal(instances.pred_boxes.tensor, 2 * before)


def computed_in(predictor):
    """The type that its convolutions give."""
    seen = []
    hook = predictor.model.pixel_stream.predictor.register_forward_hook(
        lambda module, _, output: seen.append(output.dtype)
    )
    predictor(picture())
    hook.remove()
    return set(seen)


@pytest.mark.parametrize(
    ("wanted", "has", "dtype"),
    [
        ("float32", {"AVX512_BF16"}, torch.float32),
        ("auto", set(), torch.float32),
        ("auto", {"AVX512_BF16"}, torch.bfloat16),
        ("bf16", set(), torch.bfloat16),
    ],
)
def test_it_computes_in_the_precision_of_the_config(cfg, wanted, has, dtype, monkeypatch):
    monkeypatch.setattr(precision, "device_capabilities", lambda device: frozenset(has))
    cfg = cfg.clone()
    cfg.MODEL.RDSNET.INFERENCE.PRECISION = wanted
    assert computed_in(Predictor(cfg)) == {dtype}
    assert not torch.is_autocast_enabled("cpu")


def test_the_config_alone_means_float32(cfg):
    assert computed_in(Predictor(cfg)) == {torch.float32}


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(picture()).save(path)
    return path


def run(predict, image, tmp_path, *precision_words):
    words = ("--format", "coco", "--score-threshold", "0", *precision_words)
    status = predict(image, arguments=words)
    results = tmp_path / "out" / "coco_instances_results.json"
    return status, json.loads(results.read_text()) if results.exists() else []


def test_the_command_takes_bf16_where_the_processor_has_it(predict, image, tmp_path, monkeypatch):
    runs = {}
    for name, has, words in (
        ("auto without", set(), ("--precision", "auto")),
        ("auto with", {"AVX512_BF16"}, ("--precision", "auto")),
        ("float32", {"AVX512_BF16"}, ("--precision", "float32")),
        ("bf16", set(), ("--precision", "bf16")),
        ("option", set(), ("--opts", "MODEL.RDSNET.INFERENCE.PRECISION", "bf16")),
    ):
        monkeypatch.setattr(precision, "device_capabilities", lambda _, has=has: frozenset(has))
        status, runs[name] = run(predict, image, tmp_path, *words)
        assert status == 0 and runs[name]
    assert runs["auto without"] == runs["float32"]
    assert runs["auto with"] == runs["bf16"] == runs["option"]
    assert runs["bf16"] != runs["float32"]


def test_a_precision_that_the_processor_lacks_is_one_message(
    predict,
    image,
    tmp_path,
    monkeypatch,
    capsys,
):
    monkeypatch.setattr(precision, "device_capabilities", lambda _: frozenset({"AVX512_BF16"}))
    status, results = run(predict, image, tmp_path, "--precision", "fp16")
    message = capsys.readouterr().err
    assert status == 2 and not results
    assert "fp16" in message and "AMX_FP16" in message and "Traceback" not in message


def test_an_unknown_precision_is_refused_by_every_command_that_takes_one(capsys):
    for command in ("predict", "eval", "app"):
        with pytest.raises(SystemExit):
            main([command, "--precision", "fp64"])
        assert "choose from auto, float32, bf16, fp16" in capsys.readouterr().err.replace("'", "")
