"""YOLACT's feature pyramid: P3..P7, the last two by strided convolutions of P5."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone, build_resnet_backbone
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import initialize


class YOLACTFPN(Backbone):
    """FPN for inputs of any size (550 is no multiple of a stride).

    It differs from Detectron2's FPN: coarser maps are resized to the size of the finer one,
    bilinearly, before they are added; P3..P5 end in a ReLU; P6 and P7 are convolutions of stride 2
    of the level before, without ReLU.

    Args:
        bottom_up: gives ``in_features``.
        in_features: C3, C4, C5, fine to coarse.
        out_channels: of every level.
    """

    def __init__(self, bottom_up: Backbone, in_features: list[str], out_channels: int = 256):
        super().__init__()
        self.bottom_up = bottom_up
        self.in_features = in_features
        shapes = [bottom_up.output_shape()[name] for name in in_features]
        self.lateral = nn.ModuleList(nn.Conv2d(s.channels, out_channels, 1) for s in shapes)
        self.output = nn.ModuleList(
            nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in shapes
        )
        self.downsample = nn.ModuleList(
            nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1) for _ in range(2)
        )
        for layers in (self.lateral, self.output, self.downsample):
            initialize(layers)
        strides = [s.stride for s in shapes]
        strides += [strides[-1] * 2, strides[-1] * 4]
        self._out_feature_strides = {f"p{stride.bit_length() - 1}": stride for stride in strides}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)

    @property
    def size_divisibility(self) -> int:
        """Not needed; lets cells of P3..P5 be exactly as large as their strides."""
        return 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> {"p3": (B, C, H / 8, W / 8), ..., "p7"}; sizes are rounded up."""
        bottom_up = self.bottom_up(x)
        merged = None
        outputs: list[Tensor] = []
        for name, lateral, output in reversed(
            list(zip(self.in_features, self.lateral, self.output))
        ):
            own = lateral(bottom_up[name])
            if merged is not None:
                own = own + F.interpolate(
                    merged, own.shape[-2:], mode="bilinear", align_corners=False
                )
            merged = own
            outputs.insert(0, F.relu(output(merged)))
        for downsample in self.downsample:
            outputs.append(downsample(outputs[-1]))
        return dict(zip(self._out_features, outputs))


@BACKBONE_REGISTRY.register()
def build_yolact_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> YOLACTFPN:
    """YOLACT's pyramid of ``MODEL.FPN.OUT_CHANNELS`` channels on Detectron2's ResNet."""
    return YOLACTFPN(
        build_resnet_backbone(cfg, input_shape),
        cfg.MODEL.FPN.IN_FEATURES,
        cfg.MODEL.FPN.OUT_CHANNELS,
    )
