"""The authors' backbone: ResNet-FPN with trained BN affine parameters and a linear P7."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import Tensor, nn


class FixedStatisticsBatchNorm2d(FrozenBatchNorm2d):
    """BatchNorm with fixed mean and variance whose scale and shift are trained.

    Its state has the names of ``FrozenBatchNorm2d``, so checkpoints serve both.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps)
        weight, bias = self.weight, self.bias
        del self.weight, self.bias
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)


def train_affine(module: nn.Module) -> None:
    """Replace every FrozenBatchNorm2d inside ``module`` by FixedStatisticsBatchNorm2d."""
    for name, child in module.named_children():
        if isinstance(child, FrozenBatchNorm2d):
            setattr(module, name, FixedStatisticsBatchNorm2d(child.num_features, child.eps))
        else:
            train_affine(child)


class LinearP6P7(LastLevelP6P7):
    """P6 from C5 and P7 from P6, without Detectron2's ReLU between them."""

    def forward(self, c5: Tensor) -> list[Tensor]:
        p6 = self.p6(c5)
        return [p6, self.p7(p6)]


@BACKBONE_REGISTRY.register()
def build_authors_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """P3..P7 of ``MODEL.FPN.OUT_CHANNELS`` channels on a ResNet.

    ``MODEL.RESNETS.NORM`` must be "FrozenBN"; scale and shift of the stages that
    ``MODEL.BACKBONE.FREEZE_AT`` leaves are trained.
    """
    if cfg.MODEL.RESNETS.NORM != "FrozenBN":
        raise ValueError(
            "build_authors_resnet_fpn_backbone needs MODEL.RESNETS.NORM 'FrozenBN', "
            f"got '{cfg.MODEL.RESNETS.NORM}'"
        )
    bottom_up = build_resnet_backbone(cfg, input_shape)
    train_affine(bottom_up)
    bottom_up.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
    out_channels = cfg.MODEL.FPN.OUT_CHANNELS
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=out_channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LinearP6P7(bottom_up.output_shape()["res5"].channels, out_channels),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
