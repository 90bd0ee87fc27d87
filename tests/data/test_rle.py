"""rdsnet.data.rle against masks that pycocotools has encoded."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from rdsnet.data.rle import compressed_rle, run_sums


def random_masks(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    masks = []
    for _ in range(count):
        height, width = rng.integers(1, 300, 2)
        mask = np.zeros((height, width), dtype=np.uint8)
        for _ in range(rng.integers(0, 4)):
            y, x = rng.integers(0, height), rng.integers(0, width)
            mask[y : y + rng.integers(1, 200), x : x + rng.integers(1, 200)] ^= 1
        masks.append(
            mask if rng.random() < 0.7 else mask & rng.integers(0, 2, mask.shape, np.uint8)
        )
    return masks


def test_sums_of_compressed_masks_are_their_pixel_counts():
    masks = random_masks(300)
    counts = [mask_util.encode(np.asfortranarray(m))["counts"].decode() for m in masks]
    for mask, sums in zip(masks, run_sums(counts), strict=True):
        assert sums.total == mask.size
        assert sums.foreground == int(mask.sum())
        assert sums.shortest >= 0


def test_many_masks_are_decoded_in_batches(monkeypatch):
    counts = [mask_util.encode(np.asfortranarray(m))["counts"].decode() for m in random_masks(50)]
    at_once = run_sums(counts)
    monkeypatch.setattr("rdsnet.data.rle._BATCH", 100)
    assert run_sums(counts) == at_once


def test_sums_of_uncompressed_counts():
    assert run_sums([[3, 4, 5, 6]])[0] == (18, 10, 3)
    assert run_sums([[3, -4]])[0].shortest == -4


def test_a_difference_that_makes_a_run_negative_is_seen():
    # Four numbers 1, 1, 1, -2; the fourth is a difference from the second: 1 - 2 = -1.
    assert run_sums(["111N"])[0] == (1 + 1 + 1 - 1, 1 - 1, -1)


@pytest.mark.parametrize(
    "counts", ["", "~~~", "12P", "ä1", b"11", None, 5, [], [1.5, 2], ["1"], "P" * 20 + "1"]
)
def test_what_is_no_run_length_code_is_none_and_leaves_its_neighbours_alone(counts):
    assert run_sums(["44", counts, [2, 6]]) == [(8, 4, 4), None, (8, 6, 2)]


def test_uncompressed_rle_decodes_to_the_same_mask_after_compression():
    rle = compressed_rle({"size": [2, 3], "counts": [1, 2, 3]})
    assert mask_util.decode(rle).tolist() == [[0, 1, 0], [1, 0, 0]]
