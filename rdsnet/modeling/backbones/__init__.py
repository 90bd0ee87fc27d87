"""Backbones beside Detectron2's: the small one, trained from scratch, and timm's, pretrained.

Read in this order: ``small``, ``timm`` (any of its models as features), ``timm_fpn`` (the same by
config, under an FPN), ``same_padding`` (a convolution of timm's, made constant), ``depthwise`` (the
gradients of others, made quick). Importing the package registers them in Detectron2's
``BACKBONE_REGISTRY``.
"""

from rdsnet.modeling.backbones import small, timm_fpn  # noqa: F401  (register)
from rdsnet.modeling.backbones.timm import TimmBackbone

__all__ = ["TimmBackbone"]
