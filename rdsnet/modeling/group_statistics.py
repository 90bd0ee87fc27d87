"""GroupNorm with the statistics of a whole image that the model sees in tiles.

GroupNorm subtracts the mean of its whole input and divides by its standard deviation, so what a
model finds at one end of an image depends, a little, on the other end, and a tile alone is not
normalised as the image is. Here the statistics are those of all tiles, every pixel counted once.

The input of a GroupNorm that comes after another one depends on the statistics of that one. There
are three ways to have them all, and the shorter ones take more memory:

- :meth:`GroupStatistics.together`: all tiles go on from one GroupNorm to the next together. One run
  of the model, exact; what every tile needs to go on is kept.
- :meth:`GroupStatistics.measure`: in rounds, one tile after the other. Every round uses what the
  one before has measured, and is exact for one more GroupNorm in a row. When all are, nothing
  changes any more. Several runs of the model, exact; nothing is kept.
- :meth:`GroupStatistics.estimate`: on windows here and there, as one batch.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rdsnet.modeling.precision import widened

T = TypeVar("T")
Place = tuple[int, int]
"""A GroupNorm, and the number of its call in a run of the model: heads see every level."""

# A round that moves no mean and no standard deviation by more than this share of the latter is the
# last.
_TOLERANCE = 1e-4
# Rounds at most: in heads and pixel streams, fewer GroupNorms follow each other. In a backbone made
# of them the last ones come close.
_MOST_ROUNDS = 8
# Of an estimate's windows, this share of the cells on every side is not counted, as they do not see
# what goes on beyond.
_RIM = 1 / 6


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
        model: in evaluation mode. It sees one image at a time, but for :meth:`estimate`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
        # Their calls are told apart by number, so that no level may be left out.
        self._lazy = [head for head in model.modules() if _leaves_out_norms(head)]
        self._measured: dict[Place, tuple[Tensor, Tensor]] = {}  # mean and variance, (groups,)
        # Of every tile by its number: count, sum, sum of squares: (3, groups) float64.
        self._sums: dict[Place, dict[int, Tensor]] = {}
        self._gather: Callable[[Place, nn.GroupNorm, Tensor], None] | None = None
        self._turns: _Turns | None = None
        self._run = _Run()

    def __bool__(self) -> bool:
        """Whether the model has any GroupNorm."""
        return bool(self._norms)

    def together(self, tiles: Sequence[tuple[Callable[[], T], Part]]) -> list[T]:
        """What every tile gives with the statistics of all, which :meth:`used` has from then on.

        Args:
            tiles: per tile a function that runs all GroupNorms of the model on it, the same ones in
                the same order, and the part of it that counts. Each is called in a thread of its
                own; one computes at a time.
        """
        self._measured, self._sums = {}, {}
        self._turns = _Turns(len(tiles))
        with self._gathering(self._add_and_wait), ThreadPoolExecutor(len(tiles)) as threads:
            found = [
                threads.submit(self._turns.take, partial(self._on_tile, number, *tile))
                for number, tile in enumerate(tiles)
            ]
            errors = [one.exception() for one in found]
        self._sums, self._turns = {}, None
        # Those that have waited for one that failed have failed of that alone.
        failed = [error for error in errors if error is not None]
        for error in sorted(failed, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
            raise error
        return [one.result() for one in found]

    def measure(self, tiles: Callable[[], Iterable[tuple[Callable[[], object], Part]]]) -> None:
        """Measure the statistics of all tiles together, one after the other, in rounds.

        Args:
            tiles: gives, every time it is called, what :meth:`together` takes.
        """
        self._measured = {}
        for _ in range(_MOST_ROUNDS):
            self._sums = {}
            with self._gathering(self._add):
                for tile in tiles():
                    self._on_tile(0, *tile)
            before, self._measured = self._measured, _all_moments(self._sums)
            self._sums = {}
            if before and _largest_change(before, self._measured) < _TOLERANCE:
                break

    def estimate(self, run: Callable[[], object], is_whole: bool = False) -> None:
        """Measure the statistics on windows of an image.

        Args:
            run: runs all GroupNorms of the model on a batch of them.
            is_whole: it is a batch of one, the image itself, which goes on nowhere: then this is
                exact.
        """
        self._measured = {}
        with self._gathering(partial(self._take_batch, 0.0 if is_whole else _RIM)):
            self._begin_run()
            run()

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

    @contextmanager
    def _gathering(self, how: Callable[[Place, nn.GroupNorm, Tensor], None]) -> Iterator[None]:
        """Inside :meth:`used`, and every GroupNorm shows its input first."""
        self._gather = how
        try:
            with self.used():
                yield
        finally:
            self._gather = None

    def _on_tile(self, number: int, run: Callable[[], T], part: Part) -> T:
        self._begin_run()
        self._run.number, self._run.part = number, part
        return run()

    def _begin_run(self, *_: object) -> None:
        self._run.calls = [0] * len(self._norms)

    def _add(self, place: Place, norm: nn.GroupNorm, x: Tensor) -> None:
        of_tiles, number = self._sums.setdefault(place, {}), self._run.number
        of_tiles[number] = of_tiles.get(number, 0) + _sums(self._run.part.of(x[0]), norm)

    def _add_and_wait(self, place: Place, norm: nn.GroupNorm, x: Tensor) -> None:
        self._add(place, norm, x)
        self._turns.wait()
        if place not in self._measured:
            self._measured[place] = _moments(self._sums[place])

    def _take_batch(self, rim: float, place: Place, norm: nn.GroupNorm, x: Tensor) -> None:
        inside = _without_rim(x, rim)
        self._measured[place] = _moments({n: _sums(one, norm) for n, one in enumerate(inside)})

    def _normalised(self, index: int, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        place = index, self._run.calls[index]
        self._run.calls[index] += 1
        if self._gather is not None:
            self._gather(place, norm, x)
        if place not in self._measured:
            return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        of_group = norm.num_channels // norm.num_groups
        # The factors in float32 at least, as PyTorch's own: in bfloat16 they would lose their
        # digits.
        wide = widened(x)
        mean, variance = (
            v.repeat_interleave(of_group).to(wide.dtype) for v in self._measured[place]
        )
        # Autocast on a GPU lets PyTorch's GroupNorm give float32.
        stays_wide = x.is_cuda and torch.is_autocast_enabled("cuda")
        # With given statistics, this is what normalises in one go.
        return F.batch_norm(
            wide if stays_wide else x, mean, variance, norm.weight, norm.bias, eps=norm.eps
        )


class _Run(threading.local):
    """What a thread is at: the calls of every GroupNorm so far, the tile, and what of it counts."""

    calls: list[int]
    number: int = 0
    part: Part


class _Turns:
    """Lets threads compute in turn, and wait for each other."""

    def __init__(self, count: int) -> None:
        self._turn, self._all = threading.Lock(), threading.Barrier(count)

    def take(self, run: Callable[[], T]) -> T:
        """Run when it is one's turn. Should it fail, those that wait for it fail, too."""
        try:
            with self._turn:
                return run()
        except BaseException:
            self._all.abort()
            raise

    def wait(self) -> None:
        """Inside :meth:`take`: let the others go on to the same place."""
        self._turn.release()
        try:
            self._all.wait()
        finally:
            self._turn.acquire()


def _without_rim(x: Tensor, share: float) -> Tensor:
    """The inner cells of maps (B, C, h, w), at least one; all where the share is 0."""

    def inner(cells: int) -> slice:
        rim = max(round(cells * share), 1) if share else 0
        rim = min(rim, (cells - 1) // 2)
        return slice(rim, cells - rim)

    return x[:, :, inner(x.shape[2]), inner(x.shape[3])]


def _leaves_out_norms(head: nn.Module) -> bool:
    """Whether it evaluates GroupNorms only where there is an object (:mod:`.lazy_conv`)."""
    return getattr(head, "lazy_subnet", False) and any(
        isinstance(module, nn.GroupNorm) for module in head.rep_subnet.modules()
    )


def _sums(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """(3, groups) float64 of a map (C, h, w), possibly without cells."""
    _, height, width = x.shape
    # Rows in the precision of the map, and only their sums in float64: a copy of the map would take
    # as long as a convolution. Channels last, as prepared models on a CPU have them.
    rows = widened(x).permute(1, 2, 0)
    sums, squares = (v.sum(1).double().sum(0) for v in (rows, rows.square()))
    per_channel = torch.stack([torch.full_like(sums, height * width), sums, squares])
    return per_channel.view(3, norm.num_groups, -1).sum(2)


def _all_moments(sums: dict[Place, dict[int, Tensor]]) -> dict[Place, tuple[Tensor, Tensor]]:
    return {place: _moments(of_tiles) for place, of_tiles in sums.items()}


def _moments(of_tiles: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    # In the order of the tiles, whichever came first.
    count, total, squares = sum(of_tiles[number] for number in sorted(of_tiles))
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
