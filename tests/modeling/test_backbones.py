"""Models of timm as backbones: which there are, their padding, their BatchNorm."""

import pytest
import timm
import torch
from detectron2.modeling import build_model
from helpers.exporting import assert_same, onnx_file, random_image, untrained
from helpers.timm_models import LITE, lite_config, timm_config
from timm.layers import Conv2dSame
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rdsnet.checkpoint import Checkpointer
from rdsnet.modeling.backbones import TimmBackbone
from rdsnet.modeling.backbones.same_padding import StaticSameConv2d
from rdsnet.modeling.backbones.timm import SUITABLE

RESNET_18 = "resnet18"


# ------------------------------------------------------------------- which models, which features


@pytest.mark.parametrize(
    ("name", "channels"),
    [  # as the papers' tables have them
        ("resnet18", [64, 128, 256, 512]),
        ("tf_efficientnet_lite0", [24, 40, 112, 320]),
        ("convnext_atto", [40, 80, 160, 320]),  # LayerNorm
        ("mobilenetv2_035", [8, 16, 32, 112]),
        ("swin_tiny_patch4_window7_224", [96, 192, 384, 768]),  # channels last, one size by default
        ("darknet17", [128, 256, 512, 1024]),  # features from stride 1 on
    ],
)
def test_features_have_the_strides_of_their_names(name, channels):
    backbone = TimmBackbone(name, ["res2", "res3", "res4", "res5"]).eval()
    assert [shape.channels for shape in backbone.output_shape().values()] == channels
    with torch.no_grad():
        features = backbone(torch.rand(2, 3, 64, 96))
    for feature, stride, count in zip(features.values(), (4, 8, 16, 32), channels, strict=True):
        assert feature.shape == (2, count, 64 // stride, 96 // stride)


@pytest.mark.slow
def test_models_that_messages_name_can_be_used():
    for name in SUITABLE.split(", "):
        backbone = TimmBackbone(name, ["res2", "res3", "res4", "res5"])
        strides = [shape.stride for shape in backbone.output_shape().values()]
        assert strides == [4, 8, 16, 32], name


def test_images_may_have_another_number_of_channels():
    backbone = TimmBackbone(RESNET_18, ["res3"], in_channels=1).eval()
    assert backbone(torch.rand(1, 1, 32, 32))["res3"].shape == (1, 128, 4, 4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnt18", "no model 'resnt18'.*Similar: resnet18"),
        ("qqq", "no model 'qqq'.*resnet18, resnet50"),
        ("vit_tiny_patch16_224", "stride 8 and 32, but.*has: res4 .stride 16.*resnet18"),
        ("crossvit_9_240", "has: stride 12, stride 17"),
        # Without padding there are fewer cells; positions are learnt for one size.
        ("inception_v3", "images of any size: 96 x 160 px give features.*resnet18"),
        ("coatnet_nano_rw_224", "images of any size.*resnet18"),
    ],
)
def test_models_that_do_not_fit_are_refused_with_some_that_do(name, words):
    with pytest.raises(ValueError, match=words):
        TimmBackbone(name, ["res3", "res4", "res5"])


def test_features_of_another_naming_are_refused():
    with pytest.raises(ValueError, match="'p3'.*named res2"):
        TimmBackbone(RESNET_18, ["p3"])


def test_pixels_may_have_a_finer_level_than_objects():
    keys = {"MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"]}
    with_p2 = build_model(timm_config(RESNET_18, **keys))
    strides = {name: shape.stride for name, shape in with_p2.backbone.output_shape().items()}
    assert strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
    without = build_model(timm_config(RESNET_18))
    assert "p2" not in without.backbone.output_shape()
    for model in (with_p2, without):
        predictions = model.object_stream(model.backbone(torch.rand(1, 3, 32, 64)))
        cells = 4 * 8 + 2 * 4 + 1 * 2  # of P3, P4, P5
        assert sum(map(len, predictions.anchors)) == 2 * cells  # two shapes of anchors


def test_the_pyramid_of_mask_rcnn_ends_in_a_pooled_level():
    keys = {"MODEL.BACKBONE.NAME": "build_timm_fpn_backbone"}
    backbone = build_model(timm_config(RESNET_18, **keys)).backbone
    assert list(backbone.output_shape()) == ["p3", "p4", "p5", "p6"]
    features = backbone(torch.rand(1, 3, 64, 64))
    assert torch.equal(features["p6"], features["p5"][:, :, ::2, ::2])


# --------------------------------------------------------------------------------- static padding


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "tf_mixnet_s", "tf_mobilenetv3_small_075"]
)
@pytest.mark.parametrize("size", [(32, 32), (96, 160), (224, 64)])
def test_static_padding_is_that_of_tensorflow(name, size):
    torch.manual_seed(3)
    dynamic = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    assert any(isinstance(m, Conv2dSame) for m in dynamic.modules())
    backbone = TimmBackbone(name, ["res2", "res3", "res4", "res5"]).eval()
    backbone.features.load_state_dict(dynamic.state_dict())
    assert not any(isinstance(m, Conv2dSame) for m in backbone.modules())
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        for ours, theirs in zip(backbone(image).values(), dynamic(image), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "pads"),
    [  # left, right, top, bottom
        (3, 2, 1, [0, 1, 0, 1]),
        (5, 2, 1, [1, 2, 1, 2]),
        ((3, 5), (1, 2), 1, [1, 2, 1, 1]),
        (3, 2, 2, [1, 2, 1, 2]),
        (1, 2, 1, [0, 0, 0, 0]),
    ],
)
def test_pads_are_constants(kernel, stride, dilation, pads):
    conv = StaticSameConv2d(2, 3, kernel, stride, dilation=dilation)
    assert conv.pads == pads
    assert (
        conv(torch.rand(1, 2, 8, 12)).shape[2:]
        == Conv2dSame.forward(conv, torch.rand(1, 2, 8, 12)).shape[2:]
    )


def test_a_backbone_with_static_padding_is_exported():
    backbone = TimmBackbone(LITE[0], ["res3", "res5"]).eval()
    image = torch.randn(1, 3, 64, 96)
    program = torch.export.export(backbone, (image,)).module()
    with torch.no_grad():
        found, expected = program(image), backbone(image)
    for name in ("res3", "res5"):
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.slow
def test_a_model_with_static_padding_is_exported_to_onnx(tmp_path):
    model = untrained(lite_config(""))
    image = random_image(60, 96)
    assert_same(onnx_file(model, image, tmp_path)(image), model, image)


# ------------------------------------------------------------------------------------- BatchNorm


def batch_norms(model):
    return [m for m in model.backbone.bottom_up.modules() if isinstance(m, _BatchNorm)]


def trained(model):
    """Statistics and factors of BatchNorm after a step with a large rate, and those before."""
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in batch_norms(model)]
    weight = next(model.backbone.bottom_up.parameters()).detach().clone()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, weight_decay=0.1)
    model.train()
    sum(f.square().mean() for f in model.backbone(torch.rand(2, 3, 64, 64)).values()).backward()
    optimizer.step()
    assert not torch.equal(next(model.backbone.bottom_up.parameters()), weight)
    return before, [m.state_dict() for m in batch_norms(model)]


def test_batch_norm_keeps_what_was_loaded(tmp_path):
    torch.save(timm.create_model(RESNET_18).state_dict(), tmp_path / "w.pth")
    cfg = timm_config(RESNET_18, f"timm://{tmp_path / 'w.pth'}")
    model = build_model(cfg)
    Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    for before, after in zip(*trained(model), strict=True):
        assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("keys", [{}, {"MODEL.TIMM.NORM": "BN"}])
def test_batch_norm_is_trained_from_random_weights(keys):
    model = build_model(timm_config(RESNET_18, "", **keys))
    for before, after in zip(*trained(model), strict=True):
        for key in ("running_mean", "running_var", "weight"):
            assert not torch.equal(after[key], before[key])


def test_batch_norm_is_never_frozen_at_random_statistics():
    model = build_model(timm_config(RESNET_18, "some.pth")).train()
    with pytest.raises(ValueError, match="no weights of this backbone have been loaded"):
        model.backbone(torch.rand(1, 3, 32, 32))
    # Weights of all but the backbone are none of it.
    others = {k: v for k, v in model.state_dict().items() if "bottom_up" not in k}
    model.load_state_dict(others, strict=False)
    with pytest.raises(ValueError, match="no weights of this backbone have been loaded"):
        model.backbone(torch.rand(1, 3, 32, 32))


def test_epsilon_of_batch_norm_is_that_of_the_weights():
    assert {m.eps for m in TimmBackbone(LITE[0], ["res5"], "FrozenBN")._frozen} == {1e-3}
    assert {m.eps for m in TimmBackbone(RESNET_18, ["res5"], "FrozenBN")._frozen} == {1e-5}


def test_sync_batch_norm_and_unknown_ones():
    synced = TimmBackbone(RESNET_18, ["res3"], "SyncBN")
    found = [m for m in synced.modules() if isinstance(m, _BatchNorm)]
    assert found and all(isinstance(m, nn.SyncBatchNorm) for m in found)
    with pytest.raises(ValueError, match="MODEL.TIMM.NORM must be one of FrozenBN.*'GN'"):
        TimmBackbone(RESNET_18, ["res3"], "GN")


@pytest.mark.parametrize("weights", ["", f"timm://{LITE[0]}"])
def test_a_checkpoint_needs_neither_package_nor_download(weights, tmp_path, without_weights):
    """However it was trained: frozen and trained BatchNorm are the same at inference."""
    torch.manual_seed(1)
    model = build_model(lite_config(weights))
    path = tmp_path / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    image = torch.rand(1, 3, 64, 64)
    for other in ("", str(path), f"timm://{LITE[0]}"):
        again = build_model(lite_config(other))
        Checkpointer(again.eval()).load(str(path))
        again.load_state_dict(model.state_dict())  # nothing is missing, nothing left over
        with torch.no_grad():
            for found, expected in zip(
                again.backbone(image).values(), model.eval().backbone(image).values()
            ):
                assert torch.equal(found, expected)
