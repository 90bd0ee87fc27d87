"""YOLACT (Bolya et al. 2019) on rdsnet, and RDSNet_s: YOLACT with correlation (paper, Sec. 4.2).

Importing this package registers its parts with Detectron2 and rdsnet; the configs in
``projects/YOLACT/configs`` select them.
"""

from detectron2.config import CfgNode as CN

from .anchors import SquareAnchorGenerator
from .backbone import YOLACTFPN, build_yolact_resnet_fpn_backbone
from .fast_nms import fast_nms
from .mapper import YOLACTDatasetMapper
from .matching import hard_negatives, match_anchors
from .object_stream import YOLACTHead, YOLACTStream
from .protonet import Protonet
from .yolact import YOLACT

__all__ = [
    "YOLACT",
    "YOLACTFPN",
    "Protonet",
    "SquareAnchorGenerator",
    "YOLACTDatasetMapper",
    "YOLACTHead",
    "YOLACTStream",
    "add_yolact_config",
    "build_yolact_resnet_fpn_backbone",
    "fast_nms",
    "hard_negatives",
    "match_anchors",
]


def add_yolact_config(cfg: CN) -> None:
    """Add the keys of this project, with YOLACT's values, to a config that has those of rdsnet."""
    # How META_ARCH YOLACT makes masks of object and pixel representations: "linear_combination"
    # (YOLACT: tanh coefficients times ReLU prototypes, foreground only) or "correlation" (RDSNet_s:
    # background and foreground, no activations).
    cfg.MODEL.RDSNET.MASK_ASSEMBLY = "correlation"

    cfg.MODEL.YOLACT = CN()
    # Height and width that the model resizes every image to, pixels; the aspect ratio is not kept.
    # 0: images keep their size and are padded to a multiple of 32.
    cfg.MODEL.YOLACT.INPUT_SIZE = 550
    # Background anchors per positive anchor in the confidence loss: the hardest ones of an image.
    cfg.MODEL.YOLACT.NEGATIVES_PER_POSITIVE = 3
    # Weight of the semantic segmentation loss on P3.
    cfg.MODEL.YOLACT.SEMANTIC_LOSS_WEIGHT = 1.0
    # An anchor with a larger share of its area inside a crowd is no background.
    cfg.MODEL.YOLACT.CROWD_THRESHOLD = 0.7
    # Fast NMS looks at so many best boxes of every class, at least twice
    # TEST.DETECTIONS_PER_IMAGE.
    cfg.MODEL.YOLACT.FAST_NMS_TOP_K = 200
