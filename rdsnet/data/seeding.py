"""Random numbers that depend on where in a training one is, not on how one got there.

Every sample and every iteration gets a random state of its own, derived from the seed and its
number. So a resumed training draws what an uninterrupted one would have drawn, whatever the number
of data-loader workers, and a checkpoint needs no more than the seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# What a state is for, so that sample 7 and iteration 7 do not draw the same numbers.
SAMPLE, ITERATION = 0, 1


def seed_everything(*numbers: int) -> None:
    """Seed Python, numpy and torch (on all devices) from non-negative integers."""
    words = _words(numbers)
    torch.manual_seed(int(words[2]))
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """:func:`seed_everything` on the CPU for the time of a ``with`` block.

    Nobody notices afterwards: the states before it come back.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = _words(numbers)
    try:
        random.seed(int(words[0]))
        np.random.seed(int(words[1]))
        torch.default_generator.manual_seed(int(words[2]))
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _words(numbers: tuple[int, ...]) -> np.ndarray:
    return np.random.SeedSequence(numbers).generate_state(3)
