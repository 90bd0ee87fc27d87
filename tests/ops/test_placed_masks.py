"""Masks of a part of an image, moved into the whole."""

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch

from rdsnet.ops import CompactMasks
from rdsnet.ops.masks import run_lengths_from_window


def compact(dense):
    """CompactMasks of (N, H, W) bool masks, whose window is all of the image."""
    count, height, width = dense.shape
    window = (0, 0, width, height)
    runs = [run_lengths_from_window(mask, window, (height, width)) for mask in dense]
    offsets = torch.tensor([0, *np.cumsum([len(r) for r in runs])])
    return CompactMasks(
        (height, width),
        torch.tensor([window] * count),
        dense.sum((1, 2)),
        torch.zeros(count, height),
        torch.zeros(count, width),
        torch.cat(runs),
        offsets,
    )


def some_masks(height, width):
    generator = torch.Generator().manual_seed(7)
    masks = torch.rand(6, height, width, generator=generator) > 0.6
    masks[1] = False
    masks[2] = True
    masks[3] = False
    masks[3, :, 2:5] = True  # full columns: one run
    masks[4] = False
    masks[4, -1, -1] = True
    return masks


@pytest.mark.parametrize("size, x, y", [((9, 7), 0, 0), ((20, 30), 11, 6), ((9, 30), 23, 0)])
def test_masks_move_to_their_place_in_the_whole(size, x, y):
    part = some_masks(9, 7)
    whole = torch.zeros(len(part), *size, dtype=torch.bool)
    whole[:, y : y + 9, x : x + 7] = part
    placed = compact(part).placed(size, x, y)
    assert torch.equal(placed.dense(), whole)
    expected = coco_mask.encode(np.asfortranarray(whole.permute(1, 2, 0).numpy().astype(np.uint8)))
    assert [r["counts"] for r in placed.rle()] == [r["counts"].decode() for r in expected]
    assert placed.areas.tolist() == whole.sum((1, 2)).tolist()


def test_masks_are_joined_in_their_order_and_cropped_to_their_windows():
    masks = some_masks(9, 7)
    parts = [compact(masks)[part] for part in (slice(2), slice(2, 2), slice(2, None))]
    joined = CompactMasks.cat(parts).placed((40, 50), 12, 20)
    assert torch.equal(joined.dense()[:, 20:29, 12:19], masks)
    assert all(torch.equal(joined.crop(n), masks[n]) for n in range(len(masks)))
    with pytest.raises(ValueError, match="sizes"):
        CompactMasks.cat([compact(some_masks(9, 7)), compact(some_masks(7, 9))])
