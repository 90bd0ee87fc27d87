"""Convolutions with fewer multiplications give what the direct ones give."""

import pytest
import torch
from detectron2.layers import Conv2d
from torch import nn
from torch.nn import functional as F

from rdsnet.modeling.winograd import WinogradConv2d, is_suitable, use_winograd


def convolution(channels=96, outputs=100, **kwargs):
    torch.manual_seed(0)
    return Conv2d(channels, outputs, 3, padding=1, **kwargs).eval().requires_grad_(False)


def magnitude(x):
    return x.abs().mean().item()


@pytest.mark.parametrize("size", [(24, 24), (25, 30), (23, 97), (2, 300)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_convolution(size, bias):
    conv = convolution(bias=bias).double()
    x = torch.randn(2, 96, *size, dtype=torch.float64)
    quick = WinogradConv2d.of(conv)
    torch.testing.assert_close(quick(x), conv(x))
    torch.testing.assert_close(quick(x.to(memory_format=torch.channels_last)), conv(x))
    assert quick.transformed is not None


def test_in_float32_it_differs_by_rounding():
    conv, x = convolution(256, 256), torch.randn(1, 256, 25, 40)
    exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    error = (WinogradConv2d.of(conv)(x) - exact).abs().max().item()
    assert error < 2e-4 * magnitude(exact)


def test_norm_and_activation_follow_as_before():
    conv = convolution(norm=nn.GroupNorm(4, 100), activation=F.relu).double()
    x = torch.randn(1, 96, 24, 24, dtype=torch.float64)
    torch.testing.assert_close(WinogradConv2d.of(conv)(x), conv(x))


def test_small_maps_half_precision_and_gradients_are_computed_directly():
    conv = convolution()
    quick = WinogradConv2d.of(conv)
    small, large = torch.randn(1, 96, 8, 8), torch.randn(1, 96, 24, 24)
    assert torch.equal(quick(small), conv(small))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quick(large), conv(large))
    large.requires_grad_()
    assert torch.equal(quick(large), conv(large)) and quick(large).requires_grad
    assert quick.transformed is None  # no memory was spent


def test_layers_that_a_module_calls_from_a_list_are_replaced_there_too():
    """As those of Detectron2's FPN."""

    class Parent(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = convolution(), nn.Conv2d(96, 96, 1)
            self.layers = [self.two, self.one]

    parent = Parent()
    use_winograd(parent)
    assert isinstance(parent.one, WinogradConv2d)
    assert parent.layers[0] is parent.two and parent.layers[1] is parent.one


class OwnWeights(nn.Conv2d):
    """May compute its weights anew in every call."""


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(96, 96, 1),
        nn.Conv2d(96, 96, 3),
        nn.Conv2d(96, 96, 3, padding=1, stride=2),
        nn.Conv2d(96, 96, 3, padding=2, dilation=2),
        nn.Conv2d(96, 96, 3, padding=1, groups=2),
        nn.Conv2d(96, 96, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(16, 96, 3, padding=1),
        nn.Conv2d(512, 96, 3, padding=1),
        nn.Conv2d(96, 4, 3, padding=1),
        OwnWeights(96, 96, 3, padding=1),
    ],
)
def test_other_convolutions_stay_as_they_are(other):
    assert not is_suitable(other)
    model = nn.Sequential(other, nn.Conv2d(96, 96, 3, padding=1))
    use_winograd(model)
    assert model[0] is other and isinstance(model[1], WinogradConv2d)
