"""RDSNet on RetinaNet learns four photographs by heart."""

import pytest
from overfitting import needs_photographs, overfit


@pytest.mark.slow
@needs_photographs
def test_small_model_overfits_four_photographs(tmp_path):
    results = overfit(tmp_path)
    assert results["segm"]["AP"] > 60, results
    assert results["bbox"]["AP"] > 60, results
