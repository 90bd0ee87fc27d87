"""What tests of timm's models share: configs."""

from helpers.exporting import tiny_config

LITE = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
IMAGENET = {
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "INPUT.FORMAT": "RGB",
}


def timm_config(name, weights="", **keys):
    """The smallest model of the tests of export, on a timm model."""
    cfg = tiny_config()
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_timm_fpn_backbone"
    cfg.MODEL.TIMM.NAME, cfg.MODEL.WEIGHTS = name, weights
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    for key, value in {**IMAGENET, **keys}.items():
        cfg.merge_from_list([key, value])
    return cfg


def lite_config(weights=f"timm://{LITE[0]}"):
    normalised = {"MODEL.PIXEL_MEAN": [127.0] * 3, "MODEL.PIXEL_STD": [128.0] * 3}
    return timm_config(LITE[0], weights, **normalised)
