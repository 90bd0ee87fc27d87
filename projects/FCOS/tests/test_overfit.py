"""RDSNet on FCOS learns four photographs by heart."""

import json

import pytest
from overfitting import needs_photographs, overfit

from rdsnet.cli import main

FCOS = ("MODEL.RDSNET.OBJECT_STREAM", "FCOSStream")
FCOS += ("MODEL.RETINANET.SCORE_THRESH_TEST", "0.2", "MODEL.RETINANET.NMS_THRESH_TEST", "0.6")
SHORT = ("SOLVER.MAX_ITER", "80", "SOLVER.STEPS", "(50, 70)")


@pytest.mark.slow
@needs_photographs
def test_small_model_on_fcos_overfits_four_photographs(tmp_path):
    results = overfit(tmp_path, *FCOS, *SHORT)
    assert results["segm"]["AP"] > 60, results
    assert results["bbox"]["AP"] > 60, results

    # MBRM is fitted to its masks like to any other model's
    output = tmp_path / "output"
    weights = ["MODEL.WEIGHTS", str(output / "model_final.pth")]
    fit = ["fit-mbrm", "--config-file", str(output / "config.yaml"), *weights]
    assert main([*fit, "MODEL.RDSNET.MBRM.FIT.MAX_ITER", "100"]) in (0, None)
    kernel = json.loads((output / "mbrm" / "kernel.json").read_text())
    assert kernel["objects"] >= 15 and kernel["loss"] < kernel["loss_prior"]
