"""The pixel stream: FPN features -> one representation Psi of D numbers for every pixel.

The architecture is PanopticFPN's semantic branch (paper, Sec. 4.1), with 256 channels: P3..P5 are
brought to the stride of P3 by 3x3 convolutions, each followed by a x2 up-sampling, and added; one
more convolution and up-sampling lead to stride 4, a 1x1 convolution to D dimensions. There is no
activation on the representations. Merged from P2 on, stride 4 needs no up-sampling, and what it
shows is as fine.
"""

from __future__ import annotations

import fvcore.nn.weight_init as weight_init
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.utils.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

PIXEL_STREAM_REGISTRY = Registry("PIXEL_STREAM")
PIXEL_STREAM_REGISTRY.__doc__ = """
Modules that map FPN features {name: (B, C, Hi, Wi)} to pixel representations Psi (B, D, h, w).
Called with ``(cfg, input_shape)``. Their attribute ``stride`` says how many pixels of the padded
image a cell of Psi is wide and high: ``MODEL.RDSNET.PIXEL_STREAM.STRIDE``.
"""


@PIXEL_STREAM_REGISTRY.register()
class PixelStream(SemSegFPNHead):
    """PanopticFPN-style pixel representations.

    Args:
        input_shape: the FPN features to merge.
        representation_dim: D.
        conv_dim: channels of the 3x3 convolutions.
        norm: their normalisation.
        stride: pixels per cell of Psi, which divide the stride of the finest feature.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        representation_dim: int,
        conv_dim: int,
        norm: str,
        stride: int = 4,
    ) -> None:
        finest = min(shape.stride for shape in input_shape.values())
        if stride < 1 or finest % stride:
            raise ValueError(
                "MODEL.RDSNET.PIXEL_STREAM.STRIDE must divide the stride of the finest of its "
                f"IN_FEATURES, {finest} for {sorted(input_shape)}; got {stride}"
            )
        super().__init__(
            input_shape,
            num_classes=representation_dim,
            conv_dims=conv_dim,
            common_stride=finest,
            norm=norm,
        )
        self.merge = Conv2d(
            conv_dim,
            conv_dim,
            kernel_size=3,
            padding=1,
            bias=not norm,
            norm=get_norm(norm, conv_dim),
            activation=F.relu,
        )
        weight_init.c2_msra_fill(self.merge)
        self.stride = stride
        scale = finest // stride
        self.upsample = (
            nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=False)
            if scale > 1
            else nn.Identity()
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        names = cfg.MODEL.RDSNET.PIXEL_STREAM.IN_FEATURES
        missing = [name for name in names if name not in input_shape]
        if missing:
            raise ValueError(
                f"MODEL.RDSNET.PIXEL_STREAM.IN_FEATURES names {missing}, but the backbone gives "
                f"{sorted(input_shape)}. p2 takes res2 in MODEL.FPN.IN_FEATURES (and, with a "
                "ResNet, in MODEL.RESNETS.OUT_FEATURES)"
            )
        return {
            "input_shape": {name: input_shape[name] for name in names},
            "representation_dim": cfg.MODEL.RDSNET.REPRESENTATION_DIM,
            "conv_dim": cfg.MODEL.RDSNET.PIXEL_STREAM.CONV_DIM,
            "norm": cfg.MODEL.RDSNET.PIXEL_STREAM.NORM,
            "stride": cfg.MODEL.RDSNET.PIXEL_STREAM.STRIDE,
        }

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """FPN features {name: (B, C, Hi, Wi)} -> Psi (B, D, h, w)."""
        merged = sum(head(features[f]) for f, head in zip(self.in_features, self.scale_heads))
        # The 1x1 convolution commutes with bilinear up-sampling (interpolation weights sum to 1,
        # so the bias survives): D channels are up-sampled instead of 256.
        return self.upsample(self.predictor(self.merge(merged)))


def build_pixel_stream(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build the pixel stream that ``MODEL.RDSNET.PIXEL_STREAM.NAME`` names."""
    return PIXEL_STREAM_REGISTRY.get(cfg.MODEL.RDSNET.PIXEL_STREAM.NAME)(cfg, input_shape)
