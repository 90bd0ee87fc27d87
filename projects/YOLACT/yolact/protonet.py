"""Protonet, YOLACT's pixel stream: P3 -> prototypes (linear combination) or Psi (correlation)."""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from rdsnet.modeling import PIXEL_STREAM_REGISTRY

from .layers import conv_block, initialize

STRIDE = 4


@PIXEL_STREAM_REGISTRY.register()
class Protonet(nn.Module):
    """Three 3x3 convolutions, x2 up-sampling, one more, a 1x1 convolution to D channels.

    The feature has stride 8, so the prototypes have stride 4.

    Args:
        in_channels: of the finest feature.
        in_feature: its name.
        representation_dim: D, the number of prototypes.
        conv_dim: channels of the 3x3 convolutions.
        norm: "" (YOLACT) or "GN".
        relu: whether prototypes are rectified: so in YOLACT; a representation to be correlated is
            not.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        in_feature: str = "p3",
        representation_dim: int = 32,
        conv_dim: int = 256,
        norm: str = "",
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.stride = STRIDE
        self.in_feature = in_feature
        self.layers = nn.Sequential(
            conv_block(in_channels, conv_dim, norm),
            conv_block(conv_dim, conv_dim, norm),
            conv_block(conv_dim, conv_dim, norm),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            conv_block(conv_dim, conv_dim, norm),
            nn.Conv2d(conv_dim, representation_dim, 1),
            nn.ReLU() if relu else nn.Identity(),
        )
        initialize(self)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        keys = cfg.MODEL.RDSNET.PIXEL_STREAM
        name = keys.IN_FEATURES[0]
        if len(keys.IN_FEATURES) != 1 or name not in input_shape or input_shape[name].stride != 8:
            raise ValueError(
                "Protonet works on one feature of stride 8: MODEL.RDSNET.PIXEL_STREAM.IN_FEATURES "
                f"must be ['p3'], got {list(keys.IN_FEATURES)}"
            )
        if keys.STRIDE != STRIDE:
            raise ValueError(
                f"Protonet's prototypes have stride {STRIDE}: "
                f"MODEL.RDSNET.PIXEL_STREAM.STRIDE must be {STRIDE}, got {keys.STRIDE}"
            )
        return {
            "in_channels": input_shape[name].channels,
            "in_feature": name,
            "representation_dim": cfg.MODEL.RDSNET.REPRESENTATION_DIM,
            "conv_dim": keys.CONV_DIM,
            "norm": keys.NORM,
            "relu": cfg.MODEL.RDSNET.MASK_ASSEMBLY == "linear_combination",
        }

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """FPN features -> (B, D, h, w) at half the stride of P3."""
        return self.layers(features[self.in_feature])
