"""A small FPN backbone that trains from scratch on a CPU.

Detectron2's ResNet-18 at half its width, normalised with GroupNorm because small batches and
frozen statistics from nowhere would not do: 2.8 M parameters before the pyramid.
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock

_BLOCKS_PER_STAGE = 2


@BACKBONE_REGISTRY.register()
def build_rdsnet_small_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """P3..P7 (strides 8..128) of ``MODEL.FPN.OUT_CHANNELS`` channels.

    P2 (stride 4) too where ``MODEL.FPN.IN_FEATURES`` begins with res2. The stem has
    ``MODEL.RESNETS.STEM_OUT_CHANNELS`` channels, the stages ``MODEL.RESNETS.RES2_OUT_CHANNELS``
    x 1, 2, 4, 8.
    """
    resnets = cfg.MODEL.RESNETS
    stem = BasicStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, norm=resnets.NORM)
    stages = []
    in_channels = resnets.STEM_OUT_CHANNELS
    for stage in range(4):
        out_channels = resnets.RES2_OUT_CHANNELS * 2**stage
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                _BLOCKS_PER_STAGE,
                stride_per_block=[1 if stage == 0 else 2] + [1] * (_BLOCKS_PER_STAGE - 1),
                in_channels=in_channels,
                out_channels=out_channels,
                norm=resnets.NORM,
            )
        )
        in_channels = out_channels
    in_features = cfg.MODEL.FPN.IN_FEATURES or ["res3", "res4", "res5"]
    bottom_up = ResNet(stem, stages, out_features=in_features)
    bottom_up.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return FPN(
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(in_channels, channels),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
