"""The pixel stream: which features, which stride."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch.nn import functional as F

import rdsnet
from rdsnet.modeling import PixelStream
from rdsnet.modeling.pixel_stream import build_pixel_stream


def pixel_stream(finest: int, stride: int) -> PixelStream:
    """On features of stride ``finest`` and twice that, with random weights."""
    torch.manual_seed(0)
    names = {2**i: f"p{i}" for i in range(1, 6)}
    shapes = {names[s]: ShapeSpec(channels=6, stride=s) for s in (finest, 2 * finest)}
    return PixelStream(shapes, representation_dim=5, conv_dim=8, norm="", stride=stride)


@pytest.mark.parametrize("finest, stride", [(8, 4), (4, 4), (4, 2), (8, 2), (8, 8)])
def test_psi_has_its_stride_whatever_it_is_merged_from(finest, stride):
    stream = pixel_stream(finest, stride)
    features = {
        name: torch.randn(1, 6, 64 // s, 96 // s)
        for name, s in zip(stream.in_features, (finest, 2 * finest))
    }
    psi = stream(features)
    assert stream.stride == stride and psi.shape == (1, 5, 64 // stride, 96 // stride)
    # What it shows is that of the finest feature's stride, up-sampled.
    coarse = pixel_stream(finest, finest)(features)
    scale = finest // stride
    if scale > 1:
        coarse = F.interpolate(coarse, scale_factor=scale, mode="bilinear", align_corners=False)
    torch.testing.assert_close(psi, coarse)


@pytest.mark.parametrize("finest, stride", [(4, 8), (8, 3), (8, 0)])
def test_a_stride_that_does_not_divide_the_finest_features_is_refused(finest, stride):
    with pytest.raises(ValueError, match=f"STRIDE must divide .* {finest} for .*got {stride}"):
        pixel_stream(finest, stride)


def test_features_that_the_backbone_does_not_give_are_named_with_the_remedy():
    cfg = rdsnet.get_cfg()
    cfg.MODEL.RDSNET.PIXEL_STREAM.IN_FEATURES = ["p2", "p3"]
    with pytest.raises(
        ValueError, match=r"names \['p2'\], but .* \['p3'\].* takes res2 in MODEL.FPN"
    ):
        build_pixel_stream(cfg, {"p3": ShapeSpec(channels=6, stride=8)})
