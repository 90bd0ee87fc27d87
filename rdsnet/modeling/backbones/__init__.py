"""Backbones beside Detectron2's: the small one, trained from scratch, and timm's, pretrained.

Importing registers them in Detectron2's ``BACKBONE_REGISTRY``.
"""

from rdsnet.modeling.backbones import small, timm_fpn  # noqa: F401  (register)
from rdsnet.modeling.backbones.timm import TimmBackbone

__all__ = ["TimmBackbone"]
