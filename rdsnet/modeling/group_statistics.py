"""GroupNorm with the statistics of a whole image that the model sees in tiles.

GroupNorm subtracts the mean of its whole input and divides by its standard deviation, so what a
model finds at one end of an image depends, a little, on the other end, and a tile alone is not
normalised as the image is. Here the statistics are measured on the tiles first, every pixel counted
once, and then used in all of them.

The input of a GroupNorm that comes after another one depends on the statistics of that one. So
measuring goes in rounds: every round uses what the one before has measured, and is exact for one
more GroupNorm in a row. When all are, nothing changes any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rdsnet.modeling.precision import widened

Place = tuple[int, int]
"""A GroupNorm, and the number of its call in a run of the model: heads see every level."""

# A round that moves no mean and no standard deviation by more than this share of the latter is the
# last.
_TOLERANCE = 1e-4
# Rounds at most: in heads and pixel streams, fewer GroupNorms follow each other. In a backbone made
# of them the last ones come close.
_MOST_ROUNDS = 8


class Part(NamedTuple):
    """The part of a tile that no other tile counts, in pixels of the network's input.

    Attributes:
        x1, y1, x2, y2: end exclusive, multiples of the coarsest stride; x2 and y2 None: to the end.
        size: (H, W) of the tile with its padding.
    """

    x1: int
    y1: int
    x2: int | None
    y2: int | None
    size: tuple[int, int]

    def of(self, x: Tensor) -> Tensor:
        """The cells of a map (C, h, w) that belong to it."""
        rows, columns = (
            slice(start // stride, None if end is None else end // stride)
            for start, end, stride in zip(
                (self.y1, self.x1), (self.y2, self.x2), self._strides(x.shape[-2:])
            )
        )
        return x[:, rows, columns]

    def _strides(self, cells: tuple[int, int]) -> list[int]:
        # Strides are powers of two; the last cell may reach beyond the padding.
        return [2 ** round(math.log2(pixels / n)) for pixels, n in zip(self.size, cells)]


class GroupStatistics:
    """The GroupNorms of a model, and the statistics that they have inside :meth:`used`.

    Args:
        model: in evaluation mode. Inside :meth:`used` it sees one image at a time.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
        # Their calls are told apart by number, so that no level may be left out.
        self._lazy = [head for head in model.modules() if _leaves_out_norms(head)]
        self._calls = [0] * len(self._norms)
        self._measured: dict[Place, tuple[Tensor, Tensor]] = {}  # mean and variance, (groups,)
        self._sums: dict[Place, Tensor] = {}  # count, sum, sum of squares: (3, groups) float64
        self._part: Part | None = None  # of the tile that is being measured

    def __bool__(self) -> bool:
        """Whether the model has any GroupNorm."""
        return bool(self._norms)

    def measure(self, tiles: Callable[[], Iterable[tuple[Callable[[], object], Part]]]) -> None:
        """Measure the statistics of all tiles together.

        Args:
            tiles: gives, every time it is called, per tile a function that runs all GroupNorms
                of the model on it, and the part of it that counts.
        """
        self._measured = {}
        for _ in range(_MOST_ROUNDS):
            self._sums = {}
            with self.used():
                for run, self._part in tiles():
                    self._begin_run()
                    run()
            self._part = None
            before, self._measured = self._measured, {k: _moments(s) for k, s in self._sums.items()}
            if before and _largest_change(before, self._measured) < _TOLERANCE:
                break

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, the GroupNorms of the model have the measured statistics, if any."""
        start = self._model.register_forward_pre_hook(self._begin_run)
        for index, norm in enumerate(self._norms):
            norm.forward = partial(self._normalised, index, norm)
        for head in self._lazy:
            head.lazy_subnet = False
        try:
            yield
        finally:
            start.remove()
            for norm in self._norms:
                del norm.forward
            for head in self._lazy:
                head.lazy_subnet = True

    def _begin_run(self, *_: object) -> None:
        self._calls = [0] * len(self._norms)

    def _normalised(self, index: int, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        place = index, self._calls[index]
        self._calls[index] += 1
        if self._part is not None:
            self._sums[place] = self._sums.get(place, 0) + _sums(self._part.of(x[0]), norm)
        if place not in self._measured:
            return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        mean, variance = self._measured[place]
        scale = (variance + norm.eps).rsqrt()
        shift = -mean * scale
        of_group = norm.num_channels // norm.num_groups
        scale, shift = (v.repeat_interleave(of_group) for v in (scale, shift))
        if norm.affine:
            scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
        # In float32 at least, as PyTorch's own: in bfloat16 the factors would lose their digits.
        wide = widened(x)
        scale, shift = (v.to(wide.dtype)[:, None, None] for v in (scale, shift))
        result = torch.addcmul(shift, wide, scale)
        # Autocast on a GPU lets PyTorch's give float32.
        stays_wide = x.is_cuda and torch.is_autocast_enabled("cuda")
        return result if stays_wide else result.to(x.dtype)


def _leaves_out_norms(head: nn.Module) -> bool:
    """Whether it evaluates GroupNorms only where there is an object (:mod:`.lazy_conv`)."""
    return getattr(head, "lazy_subnet", False) and any(
        isinstance(module, nn.GroupNorm) for module in head.rep_subnet.modules()
    )


def _sums(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """(3, groups) float64 of a map (C, h, w), possibly without cells."""
    per_channel = x.flatten(1).double()
    # Sums per channel first: of a part of a map, groups are no view.
    sums = torch.stack(
        [torch.ones_like(per_channel).sum(1), per_channel.sum(1), per_channel.square().sum(1)]
    )
    return sums.view(3, norm.num_groups, -1).sum(2)


def _moments(sums: Tensor) -> tuple[Tensor, Tensor]:
    count, total, squares = sums
    mean = total / count
    return mean, (squares / count - mean.square()).clamp(min=0)


def _largest_change(
    before: dict[Place, tuple[Tensor, Tensor]], now: dict[Place, tuple[Tensor, Tensor]]
) -> float:
    """Of all means and standard deviations, in standard deviations."""
    changes = [0.0]
    for place, (mean, variance) in now.items():
        deviation = variance.sqrt()
        mean_before, deviation_before = before[place][0], before[place][1].sqrt()
        moved = torch.stack([mean - mean_before, deviation - deviation_before]).abs()
        changes.append((moved / (deviation + 1e-6)).max().item())
    return max(changes)
