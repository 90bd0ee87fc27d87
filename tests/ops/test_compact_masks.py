"""CompactMasks: selection, moving, dense masks and RLE."""

from __future__ import annotations

import pytest
import torch
from pycocotools import mask as coco_mask

from rdsnet import ops
from rdsnet.ops import CompactMasks, resize_taps
from rdsnet.ops.masks import run_lengths_from_window


@pytest.fixture
def masks(device) -> CompactMasks:
    """Five masks of 24 x 40 pixels; the fourth is empty."""
    g = torch.Generator().manual_seed(0)
    psi, phi = torch.randn(8, 6, 10, generator=g), torch.randn(5, 2, 8, generator=g)
    windows = torch.tensor(
        [[0, 0, 40, 24], [3, 4, 17, 20], [20, 0, 40, 9], [7, 7, 7, 9], [0, 0, 40, 24]]
    )
    taps = resize_taps(24, 24, 6, 4), resize_taps(40, 40, 10, 4)
    arguments = (psi, phi, windows, *taps)
    return ops.assemble_masks(*(argument.to(device) for argument in arguments))


@pytest.mark.parametrize(
    "item, chosen",
    [
        (2, [2]),
        (-1, [4]),
        (slice(1, 4), [1, 2, 3]),
        (slice(None, None, 2), [0, 2, 4]),
        ([3, 0], [3, 0]),
        (torch.tensor([4, 4, 1]), [4, 4, 1]),
        (torch.tensor([True, False, True, True, False]), [0, 2, 3]),
        ([], []),
    ],
)
def test_selection_is_the_selection_of_the_dense_masks(masks, item, chosen):
    index = torch.tensor(item, dtype=torch.int64) if item == [] else item
    part, dense = masks[index], masks.dense()
    assert len(part) == len(chosen)
    assert torch.equal(part.dense(), dense[chosen])
    assert part.rle() == [masks.rle()[n] for n in chosen]
    assert torch.equal(part.areas, masks.areas[chosen])
    assert torch.equal(part.windows, masks.windows[chosen])
    assert torch.equal(part.row_maxima, masks.row_maxima[chosen])
    assert torch.equal(part.column_maxima, masks.column_maxima[chosen])


def test_iteration_yields_every_mask_once(masks):
    assert torch.equal(torch.cat([mask.dense() for mask in masks]), masks.dense())


@pytest.mark.parametrize("item", [5, -6])
def test_index_out_of_range(masks, item):
    with pytest.raises(IndexError, match="out of range for 5 masks"):
        masks[item]


def test_rle_is_read_by_pycocotools(masks):
    decoded = coco_mask.decode(masks.rle())
    assert torch.equal(torch.from_numpy(decoded).permute(2, 0, 1).bool(), masks.dense().cpu())
    assert coco_mask.area(masks.rle()).tolist() == masks.areas.tolist()
    assert masks.areas[3] == 0 and masks.areas.max() > 0


def test_no_masks(run):
    masks = run(
        ops.assemble_masks,
        torch.zeros(8, 6, 10),
        torch.zeros(0, 2, 8),
        torch.zeros(0, 4, dtype=torch.int64),
        resize_taps(24, 24, 6, 4),
        resize_taps(40, 40, 10, 4),
    )
    assert len(masks) == 0 and masks.rle() == [] and list(masks) == []
    assert masks.dense().shape == (0, 24, 40) and masks.dense().dtype == torch.bool
    assert masks.row_maxima.shape == (0, 24) and masks.column_maxima.shape == (0, 40)


def test_to_moves_everything_and_keeps_dtypes(masks):
    moved = masks.to("cpu")
    assert moved.device == torch.device("cpu")
    assert torch.equal(moved.dense(), masks.dense().cpu())
    half = masks.to(torch.float16)
    assert half.row_maxima.dtype == masks.row_maxima.dtype
    assert "num_instances=5, size=(24, 40)" in repr(moved)


def test_large_runs_are_encoded_as_pycocotools_does(path):
    # Runs around the borders of 5, 10, 15 and 20 bits, and differences of both signs.
    lengths = [0, 1, 15, 16, 31, 32, 511, 512, 1023, 1024, 16383, 16384, 32767, 32768, 1 << 20]
    lengths += lengths[::-1]
    lengths += [1] * (sum(lengths) % 2)
    height, width = sum(lengths) // 2, 2
    masks = CompactMasks(
        (height, width),
        torch.tensor([[0, 0, width, height]]),
        torch.tensor([sum(lengths[1::2])]),
        torch.zeros(1, height),
        torch.zeros(1, width),
        torch.tensor(lengths),
        torch.tensor([0, len(lengths)]),
    )
    uncompressed = {"size": [height, width], "counts": lengths}
    expected = coco_mask.frPyObjects(uncompressed, height, width)["counts"].decode()
    assert masks.rle() == [{"size": [height, width], "counts": expected}]


def test_run_lengths_of_a_window_equal_those_of_the_whole_mask():
    g = torch.Generator().manual_seed(1)
    for _ in range(50):
        bits = torch.rand(5, 7, generator=g) > 0.4
        whole = torch.zeros(1, 9, 12, dtype=torch.bool)
        whole[0, 4:9, 3:10] = bits
        runs = run_lengths_from_window(bits, (3, 4, 10, 9), (9, 12))
        flat, expected, value = whole[0].t().flatten().tolist(), [0], False
        for pixel in flat:
            if pixel != value:
                expected.append(0)
                value = pixel
            expected[-1] += 1
        assert runs.tolist() == expected
