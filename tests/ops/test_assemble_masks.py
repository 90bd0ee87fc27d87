"""rdsnet.ops.assemble_masks against dense interpolation, softmax, cropping and pycocotools."""

from __future__ import annotations

import pytest
import torch
from helpers.golden_data import golden, masks_from_bits, resized_limits, tensor
from helpers.rounding import assert_within
from ops import naive
from ops.scenes import random_windows, to_device
from torch.nn import functional as F

from rdsnet import ops
from rdsnet.ops import Taps, resize_taps

pytestmark = pytest.mark.numeric
STRIDE = 4


class Case:
    """Random representations and windows, with the expected probabilities."""

    def __init__(self, seed: int, dtype=torch.float64, threshold: float = 0.4) -> None:
        g = torch.Generator().manual_seed(seed)

        def pick(low: int, high: int) -> int:
            return int(torch.randint(low, high + 1, (), generator=g))

        self.threshold = threshold
        dims = (32, 1, 5, 8)[pick(0, 3)]
        self.grid = (pick(1, 12), (1, pick(2, 12), pick(20, 60))[pick(0, 2)])
        image = [cells * STRIDE - pick(0, STRIDE - 1) for cells in self.grid]
        # Enlarged, kept, or shrunk, each axis by itself.
        self.size = tuple(
            max(1, round(pixels * (0.2, 0.6, 1, 1.7, 3)[pick(0, 4)])) for pixels in image
        )
        count = (0, 1, pick(2, 8))[pick(0, 2)]
        self.psi = torch.randn(dims, *self.grid, generator=g).to(dtype)
        self.phi = torch.randn(count, 2, dims, generator=g).to(dtype)
        self.windows = random_windows(count, *self.size, g)
        self.taps = [
            resize_taps(output, pixels, cells, STRIDE, dtype=dtype)
            for output, pixels, cells in zip(self.size, image, self.grid)
        ]
        # Of the taps as they are: half precision cannot hold the geometry. That they are the
        # interpolation is tested in test_taps.py.
        matrices = [naive.tap_matrix(*taps, cells) for taps, cells in zip(self.taps, self.grid)]
        self.probabilities = naive.probabilities(self.psi, self.phi, self.windows, *matrices)
        self.limits = naive.probability_limits(self.psi, self.phi, *matrices)

    @property
    def arguments(self) -> tuple:
        return self.psi, self.phi, self.windows, *self.taps

    @property
    def doubtful(self) -> torch.Tensor:
        """Pixels so near the threshold that rounding may decide."""
        return (self.probabilities - self.threshold).abs() <= self.limits

    def assert_profiles(self, masks) -> None:
        """Largest probabilities of rows and columns; those of nothing are 0."""
        for found, axis in ((masks.row_maxima, 2), (masks.column_maxima, 1)):
            assert_within(found, self.probabilities.amax(axis), self.limits.amax(axis))


@pytest.mark.parametrize("block", range(10))
def test_masks_and_rle_equal_those_of_dense_masks(run, block):
    for seed in range(30 * block, 30 * block + 30):
        case = Case(seed, threshold=(0.4, 0.5, 0.05)[seed % 3])
        masks = run(ops.assemble_masks, *case.arguments, case.threshold)
        expected = case.probabilities > case.threshold
        assert not case.doubtful.any(), seed
        assert masks.rle() == naive.coco_rle(expected), seed
        assert torch.equal(masks.dense(), expected), seed
        assert masks.areas.tolist() == expected.sum((1, 2)).tolist(), seed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_single_and_half_precision(run, dtype):
    for seed in range(1000, 1040):
        case = Case(seed, dtype)
        masks = run(ops.assemble_masks, *case.arguments, case.threshold)
        expected = case.probabilities > case.threshold
        assert not ((masks.dense() != expected) & ~case.doubtful).any(), seed
        case.assert_profiles(masks)
        assert masks.row_maxima.dtype == torch.float32


@pytest.mark.parametrize("block", range(5))
def test_profiles_are_the_maxima_of_the_cropped_probabilities(run, block):
    for seed in range(30 * block, 30 * block + 30):
        case = Case(seed)
        masks = run(ops.assemble_masks, *case.arguments, case.threshold)
        case.assert_profiles(masks)


@pytest.mark.parametrize(
    "grid, size, windows",
    [
        # Many tiles, more columns than threads of a block, full height: runs wrap around.
        (
            (20, 170),
            (77, 650),
            [[0, 0, 650, 77], [3, 0, 640, 77], [0, 5, 650, 77], [9, 9, 400, 70]],
        ),
        # Strong reduction: neighbouring output pixels look at cells far apart.
        ((300, 500), (34, 70), [[0, 0, 70, 34], [1, 2, 69, 30]]),
    ],
)
def test_large_outputs(run, grid, size, windows):
    g = torch.Generator().manual_seed(3)
    psi = torch.randn(5, *grid, generator=g, dtype=torch.float64)
    phi = torch.randn(len(windows), 2, 5, generator=g, dtype=torch.float64)
    windows = torch.tensor(windows)
    image = [cells * STRIDE for cells in grid]
    taps = [resize_taps(*sizes, STRIDE, dtype=torch.float64) for sizes in zip(size, image, grid)]
    matrices = [naive.tap_matrix(*own, cells) for own, cells in zip(taps, grid)]
    probabilities = naive.probabilities(psi, phi, windows, *matrices)
    limits = naive.probability_limits(psi, phi, *matrices)
    masks = run(ops.assemble_masks, psi, phi, windows, *taps)
    assert masks.rle() == naive.coco_rle(probabilities > 0.4)
    assert_within(masks.row_maxima, probabilities.amax(2), limits.amax(2))
    assert_within(masks.column_maxima, probabilities.amax(1), limits.amax(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_repeat_bit_by_bit(run, dtype):
    case = Case(23, dtype)
    first, *others = (run(ops.assemble_masks, *case.arguments, 0.4) for _ in range(3))
    for masks in others:
        for name in ("areas", "row_maxima", "column_maxima", "run_lengths", "run_offsets"):
            assert torch.equal(getattr(masks, name), getattr(first, name))


@pytest.mark.parametrize("dims", [0, 6, 32])
def test_results_depend_on_neither_threads_nor_layout(path, dims):
    """Several objects share what is read of psi, and which they are depends on the threads."""
    g = torch.Generator().manual_seed(5)
    grid, size, count = (40, 70), (90, 170), 40
    psi, phi = torch.randn(dims, *grid, generator=g), torch.randn(count, 2, dims, generator=g)
    windows = random_windows(count, *size, g)
    taps = [resize_taps(*sides, STRIDE) for sides in zip(size, (160, 280), grid)]
    channels_last = psi.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    threads = torch.get_num_threads()
    results = []
    try:
        for number, layout in ((1, psi), (2, psi), (5, psi), (2, channels_last)):
            torch.set_num_threads(number)
            masks = ops.assemble_masks(layout, phi, windows, *taps)
            results.append((masks.row_maxima, masks.column_maxima, masks.run_lengths))
    finally:
        torch.set_num_threads(threads)
    if path == "compiled":
        for result in results[1:]:
            assert all(torch.equal(mine, first) for mine, first in zip(result, results[0]))
    matrices = [naive.tap_matrix(*own, cells) for own, cells in zip(taps, grid)]
    probabilities = naive.probabilities(psi, phi, windows, *matrices)
    limits = naive.probability_limits(psi, phi, *matrices)
    for rows, columns, _ in results:  # matrix products may be split by threads
        assert_within(rows, probabilities.amax(2), limits.amax(2))
        assert_within(columns, probabilities.amax(1), limits.amax(1))


def test_window_is_clamped_to_the_output(run):
    case = Case(1)
    count, (height, width) = 3, case.size
    phi = torch.randn(count, 2, case.psi.shape[0], dtype=torch.float64)
    windows = torch.tensor([[-9, -9, 9999, 9999], [3, 3, 3, 9], [0, 9999, 1, 99999]])
    masks = run(ops.assemble_masks, case.psi, phi, windows, *case.taps, 0.4)
    assert masks.windows[0].tolist() == [0, 0, width, height]
    assert masks.windows.dtype == torch.int64
    assert masks.areas[1:].tolist() == [0, 0]
    assert masks.rle()[1:] == naive.coco_rle(torch.zeros(2, height, width, dtype=torch.bool))


def test_mask_that_fills_the_image_begins_with_an_empty_run(run):
    psi, phi = torch.ones(1, 3, 5), torch.tensor([[[0.0], [9.0]]])
    taps = resize_taps(12, 12, 3, 4), resize_taps(20, 20, 5, 4)
    masks = run(ops.assemble_masks, psi, phi, torch.tensor([[0, 0, 20, 12]]), *taps)
    assert masks.run_lengths.tolist() == [0, 240]
    assert masks.rle() == naive.coco_rle(torch.ones(1, 12, 20, dtype=torch.bool))


def test_columns_that_meet_at_the_border_are_one_run(run):
    # Foreground from top to bottom in columns 4..11: one run that wraps from column to column.
    psi, phi = torch.ones(1, 3, 5), torch.tensor([[[0.0], [9.0]]])
    taps = resize_taps(12, 12, 3, 4), resize_taps(20, 20, 5, 4)
    masks = run(ops.assemble_masks, psi, phi, torch.tensor([[4, 0, 12, 12]]), *taps)
    assert masks.run_lengths.tolist() == [48, 96, 96]


@pytest.mark.parametrize("flip", ["rows", "columns"])
def test_taps_in_any_order(run, flip):
    """A mirrored output is other taps for the same operator."""
    case = Case(17)
    g = torch.Generator().manual_seed(0)
    phi = torch.randn(2, 2, case.psi.shape[0], dtype=torch.float64, generator=g)
    height, width = case.size
    windows = torch.tensor([[0, 0, width, height]] * 2)
    taps_y, taps_x = case.taps
    plain = run(ops.assemble_masks, case.psi, phi, windows, taps_y, taps_x).dense()
    if flip == "rows":
        taps_y = Taps(taps_y.first.flip(0), taps_y.weights.flip(0))
    else:
        taps_x = Taps(taps_x.first.flip(0), taps_x.weights.flip(0))
    mirrored = run(ops.assemble_masks, case.psi, phi, windows, taps_y, taps_x).dense()
    assert plain.any() and not plain.all()
    assert torch.equal(mirrored, plain.flip(1 if flip == "rows" else 2))


def two_resizes(grid: int, padded: int, cut: int, output: int) -> torch.Tensor:
    """(output, grid) matrix of the authors' resizes: to the padded image, cut, to the output."""
    identity = torch.eye(grid, dtype=torch.float64)[None]
    first = F.interpolate(identity, padded, mode="linear", align_corners=False)[..., :cut]
    return F.interpolate(first, output, mode="linear", align_corners=True)[0].t()


def taps_of(matrix: torch.Tensor) -> Taps:
    first = (matrix != 0).int().argmax(1).clamp(max=max(matrix.shape[1] - 3, 0))
    weights = torch.stack([row[f : f + 3] for row, f in zip(matrix, first.tolist())])
    assert torch.equal(weights.sum(1), matrix.sum(1)), "more than three taps"
    return Taps(first, weights.float())


@pytest.mark.parametrize("case", ["gm_up", "gm_down"])
def test_equals_the_authors_assembly(run, case):
    """Their two resizes are three taps per axis; their crop is 0.1 (width + 1) on each side."""
    data = golden("correlation")
    grid = [int(x) // STRIDE for x in data["pad_shape0"][:2]]
    psi = tensor(data["pixel_reps"])[0, :, : grid[0], : grid[1]]
    phi = tensor(data["obj_reps0"]).view(-1, 2, 32)[:3]
    cut, size = (
        [int(x) for x in data[f"{case}_{name}"][:2]] for name in ("img_shape", "ori_shape")
    )
    padded = [int(x) for x in data["pad_shape0"][:2]]
    rows, columns = map(two_resizes, grid, padded, cut, size)
    low, high = tensor(data[f"{case}_boxes"])[:, :4].split(2, dim=1)
    grown = ((high - low + 1) * 0.1).clamp(min=1)
    windows = torch.cat([low - grown, high + grown], dim=1).trunc().long()
    masks = run(ops.assemble_masks, psi, phi, windows, taps_of(rows), taps_of(columns), 0.4)
    theirs = masks_from_bits(data[f"{case}_prob_bits04"], *size)
    probabilities = naive.probabilities(psi, phi, windows, rows, columns)
    limits = resized_limits(psi, phi, rows, columns, padded)
    doubtful = (probabilities - 0.4).abs() <= limits
    assert not ((masks.dense() != theirs) & ~doubtful).any()
    assert doubtful.sum() < 1e-3 * doubtful.numel()
    assert theirs.flatten(1).any(1).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"psi": torch.zeros(1, 4, 3, 5)}, r"psi must have shape \(D, h, w\)"),
        ({"threshold": 0.0}, "threshold must lie between 0 and 1"),
        ({"taps_y": Taps(torch.zeros(12).long(), torch.zeros(12, 2))}, "taps_y must hold first"),
        ({"taps_x": resize_taps(20, 40, 10, 4)}, r"taps_x.first must lie .*0\.\.4"),
        ({"taps_y": resize_taps(12, 40, 10, 4)}, r"taps_y.first must lie .*0\.\.2"),
    ],
)
def test_wrong_arguments_are_named(path, device, change, message):
    if path == "pytorch" and device == "cuda":
        pytest.skip("the definition does not look at values on a GPU, which would stall it")
    arguments = {
        "psi": torch.zeros(4, 3, 5),
        "phi": torch.zeros(2, 2, 4),
        "windows": torch.zeros(2, 4, dtype=torch.int64),
        "taps_y": resize_taps(12, 12, 3, 4),
        "taps_x": resize_taps(20, 20, 5, 4),
    }
    with pytest.raises(ValueError, match=message):
        ops.assemble_masks(
            **{name: to_device(value, device) for name, value in {**arguments, **change}.items()}
        )
