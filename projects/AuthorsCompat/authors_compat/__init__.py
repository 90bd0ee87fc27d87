"""The authors' public implementation of RDSNet, reproduced number by number.

Importing this package registers its parts with Detectron2 and rdsnet; the configs in
``projects/AuthorsCompat/configs`` select them.
"""

from detectron2.config import CfgNode as CN

from .anchors import RoundedAnchorGenerator
from .backbone import FixedStatisticsBatchNorm2d, build_authors_resnet_fpn_backbone
from .boxes import InclusiveBox2BoxTransform, padded_windows, to_continuous, to_inclusive
from .mbrm import InclusiveMBRM
from .object_stream import AuthorsRetinaNetStream, OverwritingMatcher
from .pixel_stream import AlignedCornersPixelStream
from .rdsnet import AuthorsRDSNet

__all__ = [
    "AlignedCornersPixelStream",
    "AuthorsRDSNet",
    "AuthorsRetinaNetStream",
    "FixedStatisticsBatchNorm2d",
    "InclusiveBox2BoxTransform",
    "InclusiveMBRM",
    "OverwritingMatcher",
    "RoundedAnchorGenerator",
    "add_authors_compat_config",
    "build_authors_resnet_fpn_backbone",
    "padded_windows",
    "to_continuous",
    "to_inclusive",
]


def add_authors_compat_config(cfg: CN) -> None:
    """Add the keys of this project, with the authors' values, to a Detectron2 config."""
    cfg.MODEL.AUTHORS_COMPAT = CN()
    # Objects whose mask has at most so many pixels, in the network's input, get no mask loss.
    cfg.MODEL.AUTHORS_COMPAT.MIN_MASK_AREA = 100
