"""The same work on many files: on several threads, with a progress bar for what takes long."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

# Reading files, decoding images and hashing let other threads run at the same time.
_THREADS = min(8, os.cpu_count() or 1)
_PROGRESS_AFTER = 2.0  # seconds

_T = TypeVar("T")


def for_each_file(work: Callable[[str], _T], paths: Collection[str], description: str) -> list[_T]:
    """``[work(path) for path in paths]``; the progress bar is called ``description``."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(
            tqdm(
                pool.map(work, paths),
                total=len(paths),
                desc=description,
                unit="image",
                delay=_PROGRESS_AFTER,
                disable=None,
                leave=False,
            )
        )
