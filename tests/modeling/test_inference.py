"""Models made ready for inference find what they found before; the models themselves stay."""

import copy

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from helpers.exporting import (
    assert_equal,
    assert_same,
    found_by,
    random_image,
    tiny_config,
    untrained,
)
from helpers.timm_models import lite_config
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rdsnet.export.check import objects_of
from rdsnet.export.exporting import usable_threshold
from rdsnet.export.graph import ImageToObjects
from rdsnet.modeling import inference_precision, prepare_for_inference, winograd
from rdsnet.modeling.backbones import TimmBackbone
from rdsnet.modeling.folding import fold_norms
from rdsnet.modeling.group_statistics import GroupStatistics

NORMS = (FrozenBatchNorm2d, _BatchNorm)


def resnet_config():
    """A ResNet-50 with an eighth of the channels, whose BatchNorm is frozen."""
    cfg = tiny_config("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone")
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.DEPTH = "FrozenBN", 50
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
    return cfg


CONFIGS = {"R_50": resnet_config, "lite": lambda: lite_config(""), "small": tiny_config}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    """Random weights, and statistics as if something had been learnt."""
    model = untrained(CONFIGS[request.param]())
    with torch.no_grad():
        for norm in norms_of(model):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.3)
        for block in model.modules():
            if isinstance(block, BottleneckBlock):  # or activations grow from block to block
                block.conv3.norm.weight.mul_(0.2)
        image = random_image(64, 96)
        model.object_stream.score_threshold = usable_threshold(ImageToObjects(model), image)
    return model


def norms_of(model):
    return [module for module in model.modules() if isinstance(module, NORMS)]


@pytest.mark.parametrize("size", [(64, 96), (75, 61)])
def test_the_same_objects_are_found(model, size):
    """In float64, where no decision depends on the order in which a processor adds."""
    exact, image = copy.deepcopy(model).double(), random_image(*size)
    expected = found_by(exact, image)
    assert len(expected.scores)
    assert_equal(found_by(prepare_for_inference(exact), image), expected)


@pytest.mark.parametrize("size", [(64, 96), (75, 61)])
def test_the_same_objects_are_found_with_fewer_multiplications(model, size, monkeypatch):
    monkeypatch.setattr(winograd, "_CHANNELS", (1, 512))
    monkeypatch.setattr(winograd, "_SMALLEST_MAP", 1)
    exact, image = copy.deepcopy(model).double(), random_image(*size)
    prepared = prepare_for_inference(exact)
    quick = [m for m in prepared.modules() if isinstance(m, winograd.WinogradConv2d)]
    assert quick
    with torch.no_grad():
        assert_equal(found_by(prepared, image), found_by(exact, image))
    unused = {conv for conv in quick if conv.transformed is None}
    assert unused <= {prepared.object_stream.head.rep_pred}  # evaluated at objects alone


def test_levels_without_detections_are_not_represented():
    model = untrained(tiny_config("MODEL.RETINANET.NORM", "GN"))
    prepared, image = prepare_for_inference(model), random_image(64, 96)
    assert prepared.object_stream.head.lazy_subnet and not model.object_stream.head.lazy_subnet
    seen = []
    tower = prepared.object_stream.head.rep_subnet
    tower.register_forward_hook(lambda *_: seen.append(1))
    prepared.object_stream.score_threshold = 1.0
    assert len(found_by(prepared, image).scores) == 0 and not seen
    statistics = GroupStatistics(prepared)
    with statistics.used(), torch.no_grad():  # which tells calls apart by number
        found_by(prepared, image)
    assert len(seen) == len(prepared.object_stream.in_features)
    assert prepared.object_stream.head.lazy_subnet


def test_in_float32_they_differ_by_rounding_alone(model):
    image = random_image(64, 96, seed=1)
    assert_same(found_by(prepare_for_inference(model), image), model, image)


def test_the_model_itself_and_its_weights_stay_as_they_are(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layout = {name: value.stride() for name, value in model.state_dict().items()}
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    prepared = prepare_for_inference(model)
    assert not any(value.requires_grad for value in prepared.parameters())
    for value in prepared.state_dict().values():
        if value.is_floating_point():
            value.fill_(7)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name: value.stride() for name, value in after.items()} == layout
    assert trained == [name for name, value in model.named_parameters() if value.requires_grad]


def test_norms_with_fixed_statistics_are_gone_and_the_others_stay(model):
    prepared = prepare_for_inference(model)
    assert not norms_of(prepared)
    group_norms = [sum(isinstance(m, nn.GroupNorm) for m in x.modules()) for x in (model, prepared)]
    assert group_norms[0] == group_norms[1] > 0


def test_a_prepared_model_does_not_pass_for_the_model(model):
    """Weights that were folded are not loaded where they would be wrong."""
    if norms_of(model):
        with pytest.raises(RuntimeError, match="Missing key"):
            copy.deepcopy(model).train().load_state_dict(prepare_for_inference(model).state_dict())


class Branches(nn.Module):
    """Of its norms, only ``foldable`` belongs to one convolution alone."""

    def __init__(self):
        super().__init__()
        self.alone, self.foldable = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.shared, self.after_shared = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.standardised, self.after_standardised = Standardised(4, 4, 1), nn.BatchNorm2d(4)
        self.twice, self.after_twice = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.first = nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.foldable(self.alone(self.first(x)))
        shared = self.shared(x)
        x = self.after_shared(shared) + shared
        x = self.after_standardised(self.standardised(x))
        return self.twice(self.after_twice(self.twice(x)))


class Standardised(nn.Conv2d):
    """Its weights are not what it convolves with."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std(), self.bias)


class InputDependent(nn.Module):
    """Takes steps that depend on its input."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return self.norm(x) if x.mean() > -1e9 else x


@pytest.mark.parametrize(
    ("features", "left"),
    [
        (Branches, ["after_shared", "after_standardised", "after_twice", "first"]),
        (InputDependent, ["norm"]),
    ],
)
def test_a_norm_stays_where_folding_it_would_change_results(features, left):
    backbone = TimmBackbone("tf_efficientnet_lite0", ["res3", "res4", "res5"], "BN")
    torch.manual_seed(0)
    backbone.features = features()
    with torch.no_grad():
        for norm in norms_of(backbone):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    backbone.double().eval()
    image = torch.randn(1, 3, 9, 11, dtype=torch.float64)
    expected = backbone.features(image)
    fold_norms(backbone)
    names = {name for name, m in backbone.features.named_modules() if isinstance(m, NORMS)}
    assert names == set(left)
    torch.testing.assert_close(backbone.features(image), expected)


def test_a_norm_that_learns_statistics_is_not_folded():
    """Of a model in training mode: its results depend on the batch."""
    model = build_model(lite_config(""))
    number = len(norms_of(model))
    fold_norms(model.train())
    assert len(norms_of(model)) == number > 0


def test_half_precision_is_of_convolutions_alone(model):
    """Those compute in it; what is found has the types of float32."""
    cfg = tiny_config("MODEL.RDSNET.INFERENCE.PRECISION", "bf16")
    prepared, image = prepare_for_inference(model), random_image(64, 96)
    seen = []
    conv = prepared.object_stream.head.bbox_pred
    conv.register_forward_hook(lambda module, _, output: seen.append(output.dtype))
    exact = found_by(prepared, image)
    with inference_precision(cfg) as name:
        found = found_by(prepared, image)
    assert name == "bf16" and len(found.scores)
    assert set(seen[len(seen) // 2 :]) == {torch.bfloat16}
    assert set(seen[: len(seen) // 2]) == {torch.float32}
    assert [x.dtype for x in found] == [x.dtype for x in exact]


def test_pixels_are_represented_only_where_something_was_found(model):
    """And results without objects have every field all the same."""
    prepared, image = prepare_for_inference(model), random_image(64, 96)
    calls = []
    prepared.pixel_stream.register_forward_hook(lambda *_: calls.append(1))
    inputs = {"image": image, "height": 50, "width": 70}
    with torch.no_grad():
        (some,) = prepared([inputs])
        assert len(some["instances"]) and len(calls) == 1
        prepared.object_stream.score_threshold = 1.0
        none = [result["instances"] for result in prepared([inputs, inputs])]
    assert len(calls) == 1
    for instances in none:
        assert len(instances) == 0 and instances.pred_masks.shape == (0, 50, 70)
        assert instances.pred_boxes.tensor.shape == (0, 4)
        assert list(instances.get_fields()) == list(some["instances"].get_fields())


def test_an_image_without_objects_may_stand_beside_one_with_objects(model):
    exact, image = prepare_for_inference(copy.deepcopy(model).double()), random_image(64, 96)
    expected = found_by(exact, image)
    detect = exact.object_stream.detect

    def in_the_second_alone(predictions, sizes):
        first, second = detect(predictions, sizes)
        return [first[:0], second]

    exact.object_stream.detect = in_the_second_alone
    with torch.no_grad():
        first, second = exact([{"image": torch.zeros_like(image)}, {"image": image}])
    assert len(first["instances"]) == 0
    assert_equal(objects_of(second["instances"]), expected)
