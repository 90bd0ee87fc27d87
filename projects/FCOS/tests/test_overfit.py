"""RDSNet on FCOS learns four photographs by heart."""

import pytest
from helpers.overfitting import assert_learns, assert_mbrm_can_be_fitted, needs_photographs

FCOS = ("MODEL.RDSNET.OBJECT_STREAM", "FCOSStream")
FCOS += ("MODEL.RETINANET.SCORE_THRESH_TEST", "0.2", "MODEL.RETINANET.NMS_THRESH_TEST", "0.6")


@pytest.mark.slow
@needs_photographs
def test_small_model_on_fcos_overfits_four_photographs(tmp_path):
    assert_mbrm_can_be_fitted(assert_learns(tmp_path, *FCOS, iterations=80))
