"""Fig. 1: which localisation errors are shown."""

import numpy as np
import pytest
from helpers.image_profiles import image

from rdsnet.paper.localisation import (
    REFINED,
    REGRESSED,
    TRUE,
    EdgeError,
    _draw_error,
    _view,
    worst_errors,
)

NAN = float("nan")


def test_the_worst_of_every_image_are_chosen_by_the_regressed_boxes_alone():
    pairs = [
        # off by 2 of 10 px, and by 1 of 10
        image(1, [[0, 0, 10, 12], [20, 20, 31, 30]], [[0, 0, 10, 10], [20, 20, 30, 30]]),
        # off by 4 of 10 px; what has found nothing does not count
        image(2, [[0, 4, 10, 10], [50, 50, 90, 90]], [[0, 0, 10, 10], [NAN] * 4]),
        image(3, [[50, 50, 90, 90]], [[NAN] * 4]),
    ]
    images, refined = zip(*pairs)
    errors = worst_errors(images, refined)
    assert [(e.image_id, round(e.before, 3), e.after) for e in errors] == [(2, 0.4, 0), (1, 0.2, 0)]
    assert errors[0].regressed == [0, 4, 10, 10] and errors[0].true == [0, 0, 10, 10]
    assert [e.image_id for e in worst_errors(images, refined, least_size=10.1)] == []


@pytest.mark.parametrize(
    ("box", "view"),
    [
        ([40, 40, 60, 60], (32, 32, 36)),  # around its centre
        ([0, 0, 20, 20], (0, 0, 36)),  # at the image's corner
        ([80, 10, 100, 30], (64, 2, 36)),
        ([0, 0, 100, 60], (0, -20, 100)),  # no more than all of a 100 x 60 px image
    ],
)
def test_what_is_around_an_object_is_shown_inside_the_image(box, view):
    height = 60 if box[2] - box[0] == 100 else 100
    assert _view(box, (height, 100, 3)) == pytest.approx(view)


def test_a_picture_has_the_three_boxes():
    error = EdgeError(1, 0, [40, 40, 60, 60], [36, 40, 60, 60], [41, 40, 60, 60], 0.2, 0.05)
    picture = _draw_error(np.zeros((100, 100, 3), np.uint8), error)
    for color in (TRUE, REGRESSED, REFINED):
        assert (picture == color).all(-1).sum() > 20
