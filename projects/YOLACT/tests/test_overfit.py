"""YOLACT and RDSNet_s learn four photographs by heart, stretched to 320 x 320 px."""

import json

import pytest
from overfitting import needs_photographs, overfit

from rdsnet.cli import main

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
    "SOLVER.MAX_ITER": "90",
    "SOLVER.STEPS": "(60, 80)",
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
    results = overfit(tmp_path, *(word for option in options.items() for word in option))
    assert results["segm"]["AP"] > 60, results
    assert results["bbox"]["AP"] > 60, results

    # MBRM is fitted to its masks like to any other model's.
    output = tmp_path / "output"
    weights = ["MODEL.WEIGHTS", str(output / "model_final.pth")]
    fit = ["fit-mbrm", "--config-file", str(output / "config.yaml"), *weights]
    assert main([*fit, "MODEL.RDSNET.MBRM.FIT.MAX_ITER", "100"]) in (0, None)
    kernel = json.loads((output / "mbrm" / "kernel.json").read_text())
    assert kernel["objects"] >= 15 and kernel["loss"] < kernel["loss_prior"]
