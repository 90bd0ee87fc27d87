"""Expanded windows against a pixel-by-pixel definition."""

import pytest
import torch

from rdsnet.modeling.cropping import expanded_windows
from rdsnet.ops import compiled

pytestmark = pytest.mark.numeric


def pixels_inside(box, expand, height, width):
    """Pixels whose centres lie in [X1, X2) x [Y1, Y2) of the expanded box, one by one."""
    x1, y1, x2, y2 = box
    centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
    half_x, half_y = (x2 - x1) * expand / 2, (y2 - y1) * expand / 2
    inside = torch.zeros(height, width, dtype=torch.bool)
    for y in range(height):
        for x in range(width):
            inside[y, x] = (
                centre_x - half_x <= x + 0.5 < centre_x + half_x
                and centre_y - half_y <= y + 0.5 < centre_y + half_y
            )
    return inside


@pytest.mark.parametrize("expand", [1.0, 1.2, 1.5])
def test_window_holds_the_pixels_with_centres_in_the_expanded_box(expand):
    generator = torch.Generator().manual_seed(7)
    height, width = 23, 31
    boxes = torch.rand(60, 4, generator=generator, dtype=torch.float64) * 50 - 10
    boxes = torch.cat(
        [torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])], 1
    )
    windows = expanded_windows(boxes, expand, (height, width))
    for box, (x1, y1, x2, y2) in zip(boxes.tolist(), windows.tolist(), strict=True):
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[y1:y2, x1:x2] = True
        assert torch.equal(mask, pixels_inside(box, expand, height, width)), box


def test_half_pixel_edges_include_the_pixel_to_the_right_of_the_edge():
    # A centre exactly on the low edge is inside, on the high edge outside.
    assert expanded_windows(torch.tensor([[0.5, 1.5, 3.5, 4.5]]), 1.0, (9, 9)).tolist() == [
        [0, 1, 3, 4]
    ]


def test_full_image_box_gives_the_full_window():
    windows = expanded_windows(torch.tensor([[0.0, 0.0, 40.0, 30.0]]), 1.2, (30, 40))
    assert windows.tolist() == [[0, 0, 40, 30]] and windows.dtype == torch.int64


@pytest.mark.parametrize(
    "box",
    [
        [5.0, 5.0, 2.0, 8.0],
        [float("nan"), 0.0, 4.0, 4.0],
        [0.0, 0.0, float("inf"), 4.0],
        [100.0, 100.0, 120.0, 120.0],
        [3.0, 3.0, 3.0, 3.0],
    ],
)
def test_reversed_infinite_outside_and_pointlike_boxes_have_no_pixels(box):
    x1, y1, x2, y2 = expanded_windows(torch.tensor([box]), 1.2, (30, 40))[0].tolist()
    assert (x2 - x1) * (y2 - y1) == 0
    assert 0 <= x1 <= x2 <= 40 and 0 <= y1 <= y2 <= 30


def test_no_boxes_no_windows():
    assert expanded_windows(torch.zeros(0, 4), 1.2, (3, 4)).shape == (0, 4)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"boxes must have shape \(N, 4\), got \(3,\)"):
        expanded_windows(torch.zeros(3), 1.2, (3, 4))
    with pytest.raises(ValueError, match="expand must be positive, got 0"):
        expanded_windows(torch.zeros(1, 4), 0, (3, 4))


@pytest.mark.parametrize("expand", [1.0, 1.2, 1.5, 4 / 3])
def test_operator_and_definition_give_the_same_windows(expand):
    generator = torch.Generator().manual_seed(0)
    boxes = 120 * torch.rand(500, 4, generator=generator) - 20  # half of them reversed
    boxes[:200] = boxes[:200].mul(2).round().div(2)  # ties
    boxes[0, 1], boxes[1, 2] = float("nan"), float("inf")
    boxes[2:4] = 3e38
    image_index = torch.randint(3, (500,), generator=generator)
    sizes = [(90, 70), (1, 100), (33, 34)]
    mine = expanded_windows(boxes, expand, sizes, image_index)
    with compiled.definitions_only():
        definition = expanded_windows(boxes, expand, sizes, image_index)
    assert torch.equal(mine, definition)
    for i, size in enumerate(sizes):
        own = image_index == i
        assert torch.equal(mine[own], expanded_windows(boxes[own], expand, size))
