"""RDSNet-lite, its peers, and RDSNet-lite with one element of its recipe or input changed."""

from __future__ import annotations

from dataclasses import dataclass, field

LITE = "configs/lite/rdsnet_lite0_96.yaml"


@dataclass(frozen=True)
class Model:
    """A config file, and keys that differ from it."""

    title: str
    config: str = LITE
    options: dict[str, object] = field(default_factory=dict)


PEERS = {
    "lite": Model("RDSNet-lite"),
    "mask_rcnn": Model("Mask R-CNN", "configs/paper/mask_rcnn_lite0_96.yaml"),
}
_FROM_P3 = {
    "MODEL.RETINANET.IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[24], [48], [96], [192], [384]],
}
# Peers that are measured when they are named.
OTHERS = {
    "lite_p3": Model("RDSNet-lite, detector from stride 8", options=_FROM_P3),
    "mask_rcnn_bf16": Model(
        "Mask R-CNN in bfloat16", PEERS["mask_rcnn"].config, {"SOLVER.AMP.ENABLED": True}
    ),
}
# Three sizes per octave, from 12 px on P2, without an object's own threshold.
FIXED_IOU = {
    "MODEL.RDSNET.ASSIGNMENT.NAME": "iou",
    "MODEL.ANCHOR_GENERATOR.SIZES": [
        [12 * 2 ** (level + third / 3) for third in range(3)] for level in range(6)
    ],
}
RECIPE = {
    "lite": PEERS["lite"],
    "focal": Model(
        "focal loss instead of quality focal loss",
        options={"MODEL.RDSNET.CLASSIFICATION_LOSS": "focal"},
    ),
    "no_mask_scoring": Model(
        "scores without the masks' confidence", options={"MODEL.RDSNET.MASK_SCORING": False}
    ),
    "no_prior": Model(
        "masks without the ellipse in the box", options={"MODEL.RDSNET.MASK_PRIOR": "none"}
    ),
    "shared_tower": Model(
        "one tower for classes, boxes and representations",
        options={"MODEL.RDSNET.SHARED_TOWER": True},
    ),
    "fixed_iou": Model("three anchors and fixed IoU instead of ATSS", options=FIXED_IOU),
    "giou": Model(
        "GIoU loss for boxes, weight 2",
        options={
            "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": "giou",
            "MODEL.RDSNET.BOX_LOSS_WEIGHT": 2.0,
        },
    ),
    "detector_p3": Model("detector from P3", options=_FROM_P3),
    "pixels_p3": Model(
        "pixel stream from P3",
        options={"MODEL.RDSNET.PIXEL_STREAM.IN_FEATURES": ["p3", "p4", "p5"]},
    ),
    "grid": Model(
        "mask loss on the grid of psi", options={"MODEL.RDSNET.MASK_LOSS.RESOLUTION": "grid"}
    ),
    "expand_10": Model("boxes not expanded", options={"MODEL.RDSNET.TRAIN_EXPAND": 1.0}),
    "expand_15": Model("boxes expanded by 1.5", options={"MODEL.RDSNET.TRAIN_EXPAND": 1.5}),
    "no_ohem": Model("without OHEM", options={"MODEL.RDSNET.OHEM.ENABLED": False}),
    "mask_weight": Model("mask loss times 3", options={"MODEL.RDSNET.MASK_LOSS_WEIGHT": 3.0}),
    "steps": Model(
        "learning rate in steps instead of a cosine",
        options={"SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR"},
    ),
    "float32": Model("in float32", options={"SOLVER.AMP.ENABLED": False}),
    "ema": Model("averaged weights", options={"SOLVER.EMA.ENABLED": True}),
    "microscopy": Model(
        "augmentation of images without an upper side",
        options={"INPUT.AUGMENTATION": "microscopy"},
    ),
    "mosaic": Model("every second image a mosaic of parts of four", options={"INPUT.MOSAIC": 0.5}),
    "channels_64": Model("64 channels", "configs/lite/rdsnet_lite0_64.yaml"),
    "scratch": Model("without pretrained weights", options={"MODEL.WEIGHTS": ""}),
}


def crops(side: int) -> dict[str, object]:
    """Images at their own resolution, in training crops of ``side`` px."""
    return {
        "INPUT.MIN_SIZE_TRAIN": (0,),
        "INPUT.MIN_SIZE_TEST": 0,
        "INPUT.CROP.ENABLED": True,
        "INPUT.CROP.SIZE": [side, side],
        "INPUT.CROP.TYPE": "absolute",
    }


# How photographs are seen: shrunk, as "lite" sees them, or in crops; and from which level on.
VIEWS = {
    "lite": PEERS["lite"],
    "detector_p3": RECIPE["detector_p3"],
    "crops_256": Model("crops of 256 px", options=crops(256)),
    "crops_512": Model("crops of 512 px", options=crops(512)),
}
# What training varies in photographs; without that they are exchanged left and right ("light").
VARIATION = {
    "lite_p3": OTHERS["lite_p3"],
    "lite_p3_strong": Model(
        "sizes and colours varied", options=_FROM_P3 | {"INPUT.AUGMENTATION": "strong"}
    ),
    "lite_p3_microscopy": Model(
        "flips, quarter turns, sizes and colours varied",
        options=_FROM_P3 | {"INPUT.AUGMENTATION": "microscopy"},
    ),
}
# Heads that take less time (benchmarks/models/heads.py says how much).
HEADS = {
    "lite": PEERS["lite"],
    "shared_tower": RECIPE["shared_tower"],
    "one_convolution": Model(
        "three towers of one convolution", options={"MODEL.RETINANET.NUM_CONVS": 1}
    ),
    "no_norm": Model("a head without normalisation", options={"MODEL.RETINANET.NORM": ""}),
    "channels_64": RECIPE["channels_64"],
}
# How quickly pretrained weights may change, in photographs.
PACE = {
    "lite_p3": OTHERS["lite_p3"],
    "backbone_10": Model(
        "a tenth of the rate for the backbone, not a quarter",
        options=_FROM_P3 | {"SOLVER.BACKBONE_LR_FACTOR": 0.1},
    ),
    "backbone_100": Model(
        "the full rate for the backbone",
        options=_FROM_P3 | {"SOLVER.BACKBONE_LR_FACTOR": 1.0},
    ),
    "half_rate": Model(
        "half the rate for all",
        options=_FROM_P3 | {"SOLVER.BACKBONE_LR_FACTOR": 1.0, "SOLVER.BASE_LR": 0.0005},
    ),
    "double_rate": Model(
        "twice the rate, a tenth of it for the backbone",
        options=_FROM_P3 | {"SOLVER.BACKBONE_LR_FACTOR": 0.1, "SOLVER.BASE_LR": 0.002},
    ),
}
MODELS = PEERS | OTHERS | RECIPE | VIEWS | VARIATION | HEADS | PACE
