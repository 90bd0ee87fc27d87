"""rdsnet.ops.resize_taps against PyTorch's bilinear resize and a written-out matrix."""

from __future__ import annotations

import pytest
import torch
from helpers.rounding import assert_within, gamma
from ops import naive
from torch.nn import functional as F

from rdsnet.ops import compiled, resize_taps

pytestmark = pytest.mark.numeric


def limit(grid: int) -> float:
    """A weight is off by as much as the place on the grid that it was made from, on both sides."""
    return 2 * gamma(8, torch.float64) * grid


@pytest.mark.parametrize("output", [1, 3, 10, 25, 97, 160])
@pytest.mark.parametrize("grid", [1, 2, 10, 33])
def test_equals_half_pixel_interpolation_of_an_unpadded_image(output, grid):
    # Where the image is exactly the grid times the stride, this is F.interpolate.
    taps = resize_taps(output, 4 * grid, grid, 4, dtype=torch.float64)
    identity = torch.eye(grid, dtype=torch.float64)[None]
    expected = F.interpolate(identity, output, mode="linear", align_corners=False)[0].t()
    assert_within(naive.tap_matrix(*taps, grid), expected, limit(grid))


@pytest.mark.parametrize(
    "output, image, grid", [(480, 800, 208), (7, 30, 8), (50, 29, 8), (1, 1, 1)]
)
def test_padding_takes_no_part_in_the_geometry(output, image, grid):
    taps = resize_taps(output, image, grid, 4, dtype=torch.float64)
    expected = naive.resize_matrix(output, image, grid, 4)
    assert_within(naive.tap_matrix(*taps, grid), expected, limit(grid))


def test_an_output_of_the_size_of_the_grid_is_the_grid():
    first, weights = resize_taps(6, 24, 6, 4)
    assert first.tolist() == list(range(6))
    assert torch.equal(weights, torch.tensor([[1.0, 0.0, 0.0]] * 6))


@pytest.mark.parametrize("name", ["output", "image", "grid", "stride"])
def test_sizes_must_be_positive(name):
    sizes = {"output": 5, "image": 8, "grid": 2, "stride": 4, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        resize_taps(**sizes)


def test_dtype_is_that_of_the_weights_alone():
    taps = resize_taps(5, 8, 2, 4, dtype=torch.float64)
    assert (taps.first.dtype, taps.weights.dtype) == (torch.int64, torch.float64)
    taps = taps.to(torch.float32)
    assert (taps.first.dtype, taps.weights.dtype) == (torch.int64, torch.float32)


@pytest.mark.parametrize(
    "sizes", [(480, 800, 200, 4), (427, 800, 208, 4), (1, 7, 2, 4), (9, 3, 1, 8)]
)
def test_operator_and_definition_give_the_same_taps(sizes):
    mine = resize_taps(*sizes)
    with compiled.definitions_only():
        definition = resize_taps(*sizes)
    assert torch.equal(mine.first, definition.first)
    assert torch.equal(mine.weights, definition.weights)
