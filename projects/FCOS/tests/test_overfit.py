"""RDSNet on FCOS learns four photographs by heart."""

import pytest
from helpers.overfitting import assert_learnt, assert_mbrm_can_be_fitted, needs_photographs, overfit

FCOS = ("MODEL.RDSNET.OBJECT_STREAM", "FCOSStream")
FCOS += ("MODEL.RETINANET.SCORE_THRESH_TEST", "0.2", "MODEL.RETINANET.NMS_THRESH_TEST", "0.6")
SHORT = ("SOLVER.MAX_ITER", "80", "SOLVER.STEPS", "(50, 70)")


@pytest.mark.slow
@needs_photographs
def test_small_model_on_fcos_overfits_four_photographs(tmp_path):
    assert_learnt(overfit(tmp_path, *FCOS, *SHORT))
    assert_mbrm_can_be_fitted(tmp_path)
