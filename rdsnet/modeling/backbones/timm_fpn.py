"""From a config to a model of timm under an FPN, in Detectron2's registry."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from rdsnet.modeling.backbones.timm import TimmBackbone, import_timm

# MODEL.WEIGHTS "timm://NAME" or "timm://FILE": pretrained weights of the backbone alone.
PRETRAINED = "timm://"
# How far, of 255, a mean or standard deviation in the config may be from that of the weights.
_TOLERATED = 1.0


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """The timm model ``MODEL.TIMM.NAME`` with the features ``MODEL.FPN.IN_FEATURES``.

    BatchNorm can only be frozen at statistics that somebody has measured: with random weights
    (``MODEL.WEIGHTS ""``) it is trained.
    """
    weights, norm = cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.NORM
    if weights.startswith(PRETRAINED):
        _check_pretrained(cfg)
    if norm == "FrozenBN" and not weights:
        norm = "BN"
    return TimmBackbone(
        cfg.MODEL.TIMM.NAME, cfg.MODEL.FPN.IN_FEATURES, norm, in_channels=input_shape.channels
    )


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmFPN:
    """Under Detectron2's FPN, with a last level by pooling: the counterpart of
    ``build_resnet_fpn_backbone``.
    """
    top_block = LastLevelMaxPool()
    top_block.in_feature = cfg.MODEL.FPN.IN_FEATURES[-1].replace("res", "p")
    return _fpn(cfg, build_timm_backbone(cfg, input_shape), top_block)


@BACKBONE_REGISTRY.register()
def build_retinanet_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmFPN:
    """Under Detectron2's FPN, with two more levels made from the coarsest features: the counterpart
    of ``build_retinanet_resnet_fpn_backbone``. From res3, res4, res5: P3..P7; from res2: P2 too.
    """
    bottom_up = build_timm_backbone(cfg, input_shape)
    coarsest = cfg.MODEL.FPN.IN_FEATURES[-1]
    in_channels = bottom_up.output_shape()[coarsest].channels
    return _fpn(cfg, bottom_up, LastLevelP6P7(in_channels, cfg.MODEL.FPN.OUT_CHANNELS, coarsest))


class TimmFPN(FPN):
    """Detectron2's FPN, which in training on a CPU keeps the channels of its maps side by side.

    Convolutions are quicker so. The gradient of GroupNorm is not: what heads are given lies in
    memory as usual.
    """

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> {"p3": (B, C, H/8, W/8), ...}"""
        if not (self.training and x.device.type == "cpu"):
            return super().forward(x)
        features = super().forward(x.contiguous(memory_format=torch.channels_last))
        return {name: feature.contiguous() for name, feature in features.items()}


def _fpn(cfg: CfgNode, bottom_up: TimmBackbone, top_block: nn.Module) -> TimmFPN:
    return TimmFPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _check_pretrained(cfg: CfgNode) -> None:
    """Whether the weights ``MODEL.WEIGHTS`` "timm://..." fit the rest of the config.

    Raises:
        ValueError: they are another model's, or ``MODEL.PIXEL_MEAN``, ``MODEL.PIXEL_STD`` or
            ``INPUT.FORMAT`` are not those that they were trained with; the message says what to
            write.
    """
    timm, name = import_timm(), cfg.MODEL.TIMM.NAME
    weights = cfg.MODEL.WEIGHTS.removeprefix(PRETRAINED)
    if not is_file_name(weights):
        if weights.partition(".")[0] != name.partition(".")[0]:
            raise ValueError(
                f"MODEL.WEIGHTS '{cfg.MODEL.WEIGHTS}' does not fit MODEL.TIMM.NAME '{name}': write "
                f"{PRETRAINED}{name}, or {PRETRAINED}FILE for a file with its weights"
            )
        name = weights
    try:
        pretrained = timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:  # an unknown tag
        known = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise ValueError(
            f"MODEL.WEIGHTS '{cfg.MODEL.WEIGHTS}': {error} timm knows weights: {', '.join(known)}"
        ) from error
    if pretrained is None or len(cfg.MODEL.PIXEL_MEAN) != len(pretrained.mean):
        return  # nothing is known, or the images have other channels than theirs
    theirs = [round(255 * value, 3) for value in (*pretrained.mean, *pretrained.std)]
    ours = [*cfg.MODEL.PIXEL_MEAN, *cfg.MODEL.PIXEL_STD]
    if cfg.INPUT.FORMAT == "RGB" and all(abs(a - b) <= _TOLERATED for a, b in zip(ours, theirs)):
        return
    raise ValueError(
        f"the weights {cfg.MODEL.WEIGHTS} expect images that are normalised as those that they "
        f"were trained with. Write MODEL.PIXEL_MEAN {theirs[:3]}, MODEL.PIXEL_STD {theirs[3:]}, "
        f"INPUT.FORMAT RGB (now: {ours[:3]}, {ours[3:]}, {cfg.INPUT.FORMAT})"
    )


def is_file_name(weights: str) -> bool:
    """Whether what follows "timm://" is a file and not the name of a model."""
    return "/" in weights or weights.endswith((".safetensors", ".pth", ".pt", ".bin"))
