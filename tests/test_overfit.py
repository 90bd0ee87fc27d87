"""RDSNet on RetinaNet learns four photographs by heart."""

import pytest
from helpers.overfitting import assert_learns, needs_photographs


@pytest.mark.slow
@needs_photographs
def test_small_model_overfits_four_photographs(tmp_path):
    assert_learns(tmp_path, iterations=120)
