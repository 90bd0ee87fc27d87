"""YOLACT and RDSNet_s learn four photographs by heart, stretched to 320 x 320 px."""

import pytest
from helpers.overfitting import assert_learns, assert_mbrm_can_be_fitted, needs_photographs

DETECTOR = {
    "MODEL.META_ARCHITECTURE": "YOLACT",
    "MODEL.YOLACT.INPUT_SIZE": "320",
    "MODEL.RDSNET.OBJECT_STREAM": "YOLACTStream",
    "MODEL.RDSNET.PIXEL_STREAM.NAME": "Protonet",
    "MODEL.RDSNET.PIXEL_STREAM.IN_FEATURES": "['p3']",
    "MODEL.RDSNET.BOX_LOSS_WEIGHT": "1.5",
    "MODEL.RDSNET.MASK_LOSS_WEIGHT": "6.125",
    "MODEL.ANCHOR_GENERATOR.NAME": "SquareAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.SIZES": "[[16], [32], [64], [128], [256]]",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": "[[1.0, 0.5, 2.0]]",
    "MODEL.RETINANET.NUM_CONVS": "1",
}
MASKS = {
    "yolact": {
        "MODEL.RDSNET.MASK_ASSEMBLY": "linear_combination",
        "MODEL.RDSNET.TRAIN_EXPAND": "1.0",
        "MODEL.RDSNET.TEST_EXPAND": "1.0",
        "MODEL.RDSNET.OHEM.ENABLED": "False",
        "MODEL.RDSNET.MASK_THRESHOLD": "0.5",
    },
    "rdsnet_s": {"MODEL.RDSNET.MASK_ASSEMBLY": "correlation"},
}


@pytest.mark.slow
@needs_photographs
@pytest.mark.parametrize("name", MASKS)
def test_small_model_overfits_four_photographs(tmp_path, name):
    options = {**DETECTOR, **MASKS[name]}
    words = (word for option in options.items() for word in option)
    assert_mbrm_can_be_fitted(assert_learns(tmp_path, *words, iterations=90))
