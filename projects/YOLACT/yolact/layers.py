"""Convolutions as YOLACT has them."""

from __future__ import annotations

from detectron2.layers import get_norm
from torch import nn

from rdsnet.modeling.retinanet_stream import group_norm


def conv_block(in_channels: int, out_channels: int, norm: str = "") -> nn.Sequential:
    """3x3 convolution, normalisation (none in YOLACT), ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=not norm)
    normalization = group_norm(out_channels) if norm == "GN" else get_norm(norm, out_channels)
    return nn.Sequential(*filter(None, (conv, normalization)), nn.ReLU(inplace=True))


def initialize(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for all convolutions inside."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
