"""Run-length coded masks of COCO, looked at without drawing them.

A mask of H x W pixels is read column by column as runs of background and foreground in turn, the
first one background (possibly 0 pixels long). ``counts`` holds the lengths of the runs: as a list,
or compressed into a string. There a number is written with 5 bits per character, lowest bits
first, as ``chr(48 + bits)``; 32 is added to a character that more follow, and bit 16 of the last
one is the sign. From the fourth number on, what is written is the difference from the last but
one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pycocotools.mask as mask_util

# Numbers of at most 7 characters (35 bits): more than the pixels of any image.
_COMPRESSED = re.compile(r"(?:[P-o]{0,6}[0-O])+")
_BATCH = 1 << 20  # characters decoded at once, to bound memory


class RunSums(NamedTuple):
    """What the runs of a mask say about it: a valid one has ``total`` H x W, ``shortest`` >= 0."""

    total: int
    foreground: int
    shortest: int


def run_sums(counts: Sequence[object]) -> list[RunSums | None]:
    """Sums over the runs of many masks at once.

    Args:
        counts: per mask a list of integers or a compressed string; may be malformed.

    Returns:
        Per mask its sums, or None where ``counts`` is not a run-length code at all.
    """
    sums: list[RunSums | None] = [None] * len(counts)
    batches: list[list[int]] = [[]]
    characters = 0
    for i, value in enumerate(counts):
        if isinstance(value, str) and _COMPRESSED.fullmatch(value):
            characters += len(value)
            if characters > _BATCH and batches[-1]:
                batches.append([])
                characters = len(value)
            batches[-1].append(i)
        elif isinstance(value, list) and value and all(type(run) is int for run in value):
            sums[i] = RunSums(sum(value), sum(value[1::2]), min(value))
    for batch in filter(None, batches):
        for i, value in zip(batch, _compressed_sums([counts[i] for i in batch]), strict=True):
            sums[i] = value
    return sums


def compressed_rle(rle: dict) -> dict:
    """RLE with compressed counts, from RLE with either kind of counts."""
    if isinstance(rle["counts"], list):
        return mask_util.frPyObjects(rle, *rle["size"])
    return rle


def segmentation_rle(segmentation: list | dict, size: tuple[int, int]) -> dict:
    """Compressed RLE of a usable segmentation: polygons, or RLE with either kind of counts.

    Args:
        size: height and width of the image.
    """
    if isinstance(segmentation, dict):
        return compressed_rle(segmentation)
    return mask_util.merge(mask_util.frPyObjects(segmentation, *size))


def decoded_runs(counts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Run lengths of compressed masks, one mask after the other.

    Args:
        counts: valid compressed strings.

    Returns:
        ``run_lengths`` (sum of runs,) int64 and ``run_offsets`` (N + 1,) int64, as
        :class:`rdsnet.ops.CompactMasks` has them.
    """
    if not counts:
        return np.zeros(0, np.int64), np.zeros(1, np.int64)
    runs, start = _compressed_runs(counts)
    return runs, np.append(start, runs.size)


def _compressed_sums(strings: Sequence[str]) -> list[RunSums]:
    runs, start = _compressed_runs(strings)
    position = np.arange(runs.size) - np.repeat(start, np.diff(start, append=runs.size))
    total = np.add.reduceat(runs, start)
    foreground = np.add.reduceat(np.where(position % 2 == 1, runs, 0), start)
    shortest = np.minimum.reduceat(runs, start)
    return list(map(RunSums, total.tolist(), foreground.tolist(), shortest.tolist()))


def _compressed_runs(strings: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """All run lengths in a row, and where those of every string begin."""
    codes = np.frombuffer("".join(strings).encode("ascii"), np.uint8).astype(np.int64) - 48
    string_of_code = np.repeat(np.arange(len(strings)), [len(s) for s in strings])

    # Characters to numbers: bits of one number are added up at its first character.
    last = np.flatnonzero(codes & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(codes.size) - np.repeat(first, last - first + 1)
    runs = np.add.reduceat((codes & 31) << (5 * place), first)
    runs -= np.where(codes[last] & 16, 32 << (5 * place[last]), 0)

    # Differences to lengths: background from the third number on, foreground from the second.
    string = string_of_code[last]
    start = np.searchsorted(string, np.arange(len(strings)))
    position = np.arange(runs.size) - start[string]
    is_foreground = position % 2 == 1
    for part in (is_foreground, ~is_foreground & (position > 0)):
        runs[part] = _sums_so_far(runs[part], string[part])

    return runs, start


def _sums_so_far(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Cumulative sum that starts again with every group (``group`` is sorted)."""
    sums = np.cumsum(values)
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    lengths = np.diff(starts, append=group.size)
    return sums - np.repeat(sums[starts] - values[starts], lengths)
