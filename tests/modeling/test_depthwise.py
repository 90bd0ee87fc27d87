"""Gradients of depthwise convolutions on a CPU, and a pyramid in training: the usual ones."""

from functools import partial

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN
from helpers.timm_models import timm_config
from torch import nn

from rdsnet.modeling.backbones import TimmBackbone
from rdsnet.modeling.backbones.depthwise import QuickGradientConv2d, has_slow_gradient
from rdsnet.modeling.backbones.timm_fpn import TimmFPN, build_retinanet_timm_fpn_backbone

FORMATS = (torch.contiguous_format, torch.channels_last)


def gradients(conv, x, seed=0):
    """Output, and gradients of input and weight, for random gradients of the output."""
    x = x.clone().requires_grad_()
    conv.weight.grad = None
    y = conv(x)
    random = torch.Generator().manual_seed(seed)
    y.backward(torch.randn(y.shape, generator=random).to(y.dtype))
    return y.detach(), x.grad, conv.weight.grad


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(3, 2, 1, 1), (5, 1, 2, 1), (5, 2, 0, 1), ((3, 5), (1, 2), (1, 0), 1), (3, 2, 2, 2)],
)
def test_gradients_are_those_of_float64(kernel, stride, padding, dilation, memory_format):
    conv = QuickGradientConv2d(
        24, 24, kernel, stride, padding, dilation=dilation, groups=24, bias=False
    )
    assert has_slow_gradient(conv)
    exact = nn.Conv2d(24, 24, kernel, stride, padding, dilation=dilation, groups=24, bias=False)
    exact.load_state_dict(conv.state_dict())
    x = torch.randn(2, 24, 13, 18).contiguous(memory_format=memory_format)
    found = gradients(conv, x)
    for ours, theirs in zip(found, gradients(exact.double(), x.double()), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    assert found[1].is_contiguous(memory_format=memory_format)  # as what it belongs to


@pytest.mark.parametrize("memory_format", FORMATS)
def test_gradients_in_bfloat16_are_rounded_once(memory_format):
    conv = QuickGradientConv2d(16, 16, 5, 2, 2, groups=16, bias=False)
    exact = nn.Conv2d(16, 16, 5, 2, 2, groups=16, bias=False).double()
    exact.weight.data.copy_(conv.weight.detach().bfloat16())
    x = torch.randn(2, 16, 20, 24).bfloat16().contiguous(memory_format=memory_format)
    with torch.autocast("cpu", torch.bfloat16):
        y, of_x, of_weight = gradients(conv, x)
    assert (y.dtype, of_x.dtype, of_weight.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    # Random gradients are drawn in float32 and rounded; so they are for the exact ones.
    x64 = x.double().requires_grad_()
    random = torch.Generator().manual_seed(0)
    exact(x64).backward(torch.randn(y.shape, generator=random).bfloat16().double())
    one_rounding = 2.0**-8
    for ours, theirs in ((of_x, x64.grad), (of_weight, exact.weight.grad)):
        torch.testing.assert_close(
            ours.double(), theirs, rtol=one_rounding, atol=one_rounding * theirs.abs().mean().item()
        )


def test_only_what_is_wanted_is_computed():
    conv = QuickGradientConv2d(8, 8, 5, 2, 2, groups=8, bias=False)
    conv(torch.randn(1, 8, 9, 9)).sum().backward()  # an image needs no gradient
    assert conv.weight.grad is not None
    conv.requires_grad_(False)
    x = torch.randn(1, 8, 9, 9, requires_grad=True)
    conv(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False),
        nn.Conv2d(8, 8, 5, 2, 2, bias=False),
        nn.Conv2d(8, 16, 5, 2, 2, groups=8, bias=False),
        nn.Conv2d(8, 8, 5, 2, 2, groups=8),
        nn.Conv2d(8, 8, 5, 1, "same", groups=8, bias=False),
        nn.Conv2d(8, 8, 5, 2, 2, groups=8, bias=False, padding_mode="reflect"),
    ],
)
def test_other_convolutions_are_as_they_were(conv):
    assert not has_slow_gradient(conv)
    x = torch.randn(2, 8, 12, 12)
    expected = conv(x)
    assert torch.equal(QuickGradientConv2d.like(conv, padding_mode=conv.padding_mode)(x), expected)


def test_float64_keeps_its_digits():
    conv = QuickGradientConv2d(4, 4, 5, 2, 2, groups=4, bias=False).double()
    x = torch.randn(1, 4, 7, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(conv, x)


def test_the_backbone_has_them():
    backbone = TimmBackbone("tf_efficientnet_lite0", ["res2", "res3", "res4", "res5"])
    slow = [m for m in backbone.modules() if isinstance(m, nn.Conv2d) and has_slow_gradient(m)]
    assert len(slow) == 11  # 3 with strides and 3 x 3 ... all of 5 x 5
    assert all(isinstance(m, QuickGradientConv2d) for m in slow)


def test_a_pyramid_gives_and_learns_what_detectron2s_does():
    cfg = timm_config("tf_efficientnet_lite0")
    ours = build_retinanet_timm_fpn_backbone(cfg, ShapeSpec(channels=3)).double().train()
    assert isinstance(ours, TimmFPN)
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    results = []
    for forward in (ours.forward, partial(FPN.forward, ours)):
        ours.zero_grad()
        features = forward(x)
        sum((f * f.detach().roll(1)).sum() for f in features.values()).backward()
        results.append((features, {name: p.grad for name, p in ours.named_parameters()}))
    (features, gradients), (expected, expected_gradients) = results
    assert all(f.is_contiguous() for f in features.values())
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(gradients, expected_gradients)
