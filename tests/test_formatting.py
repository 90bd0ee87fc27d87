import numpy as np
import pytest

from rdsnet.formatting import decimal


@pytest.mark.parametrize(
    ("value", "places", "signed", "text"),
    [
        (-0.04, 1, False, "0.0"),
        (-0.04, 1, True, "0.0"),
        (0.04, 1, True, "0.0"),
        (-0.0, 2, False, "0.00"),
        (np.float32(-0.004), 2, True, "0.00"),
        (-0.2, 0, False, "0"),
        (-0.06, 1, True, "-0.1"),
        (-0.04, 2, False, "-0.04"),
        (12.34, 1, True, "+12.3"),
        (12.36, 1, False, "12.4"),
        (None, 1, False, "–"),
        (np.float64("nan"), 1, True, "–"),
    ],
)
def test_what_rounds_to_zero_has_no_sign(value, places, signed, text):
    assert decimal(value, places, signed=signed) == text


def test_what_stands_for_nothing_can_be_chosen():
    assert decimal(None, missing="-") == "-"
