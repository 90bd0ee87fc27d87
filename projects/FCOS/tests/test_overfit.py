"""RDSNet on FCOS learns four photographs by heart."""

import pytest
from overfitting import needs_photographs, overfit

FCOS = ("MODEL.RDSNET.OBJECT_STREAM", "FCOSStream")
FCOS += ("MODEL.RETINANET.SCORE_THRESH_TEST", "0.2", "MODEL.RETINANET.NMS_THRESH_TEST", "0.6")


@pytest.mark.slow
@needs_photographs
def test_small_model_on_fcos_overfits_four_photographs(tmp_path):
    results = overfit(tmp_path, *FCOS)
    assert results["segm"]["AP"] > 60, results
    assert results["bbox"]["AP"] > 60, results
