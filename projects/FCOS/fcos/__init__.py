"""RDSNet on FCOS: an object stream without anchors.

Importing this package registers its parts with Detectron2 and rdsnet; the configs in
``projects/FCOS/configs`` select them.
"""

from detectron2.config import CfgNode as CN

from .backbone import build_fcos_resnet_fpn_backbone
from .object_stream import FCOSPredictions, FCOSStream, RDSNetFCOSHead, match_locations

__all__ = [
    "FCOSPredictions",
    "FCOSStream",
    "RDSNetFCOSHead",
    "add_fcos_config",
    "build_fcos_resnet_fpn_backbone",
    "match_locations",
]


def add_fcos_config(cfg: CN) -> None:
    """Add the keys of this project to a Detectron2 config.

    Everything that FCOS has in common with RetinaNet (classes, convolutions of the head, focal
    loss, thresholds) is read from ``MODEL.RETINANET``.
    """
    cfg.MODEL.FCOS = CN()
    # Locations closer to the centre of an object than this, in strides of their level, horizontally
    # and vertically, are positive. Detectron2: 1.5.
    cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS = 1.5
