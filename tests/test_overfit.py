"""RDSNet on RetinaNet learns four photographs by heart."""

import pytest
from helpers.overfitting import assert_learnt, needs_photographs, overfit


@pytest.mark.slow
@needs_photographs
def test_small_model_overfits_four_photographs(tmp_path):
    assert_learnt(overfit(tmp_path))
