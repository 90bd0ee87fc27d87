"""Sizes as tensors: while a graph is exported, sizes are symbols that stand for those of any image.

``torch.tensor`` would write the sizes of the traced image into the graph, as constants.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def as_vector(
    numbers: Sequence[int | float], dtype: torch.dtype, device: torch.device | str | None = None
) -> Tensor:
    """(len(numbers),), as ``torch.tensor`` makes it, of sizes that may be symbols."""
    if any(isinstance(number, torch.SymInt) for number in numbers):
        return torch.stack([torch.full((), n, dtype=dtype, device=device) for n in numbers])
    return torch.tensor(numbers, dtype=dtype, device=device)
