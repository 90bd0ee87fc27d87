"""Masks that cost as much memory as their outline.

A mask is kept as the run lengths of COCO's RLE (column by column over the whole image,
background first) beside what MBRM and evaluation ask of it: its area, and the maxima of its
foreground probability over the rows and columns. Dense masks are made only on demand.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rdsnet.ops import compiled


class CompactMasks:
    """Masks of N objects in one image of H x W pixels.

    Attributes:
        size: (H, W).
        windows: (N, 4) int64, x1, y1, x2, y2 in pixels, end exclusive: nothing is foreground
            outside.
        areas: (N,) int64, number of foreground pixels.
        row_maxima: (N, H) float, largest foreground probability of each row (0 outside the window).
        column_maxima: (N, W) float, largest foreground probability of each column.
        run_lengths: (sum of runs,) int64, COCO's uncompressed RLE counts of all objects.
        run_offsets: (N + 1,) int64, object n owns run_lengths[run_offsets[n]:run_offsets[n + 1]].
    """

    def __init__(
        self,
        size: tuple[int, int],
        windows: Tensor,
        areas: Tensor,
        row_maxima: Tensor,
        column_maxima: Tensor,
        run_lengths: Tensor,
        run_offsets: Tensor,
    ) -> None:
        self.size = (int(size[0]), int(size[1]))
        self.windows = windows
        self.areas = areas
        self.row_maxima = row_maxima
        self.column_maxima = column_maxima
        self.run_lengths = run_lengths
        self.run_offsets = run_offsets

    def __len__(self) -> int:
        return len(self.areas)

    def __repr__(self) -> str:
        return f"CompactMasks(num_instances={len(self)}, size={self.size}, device={self.device})"

    def __iter__(self) -> Iterator[CompactMasks]:
        """Yield every object as CompactMasks of length 1."""
        return (self[n] for n in range(len(self)))

    @property
    def device(self) -> torch.device:
        return self.areas.device

    def to(self, *args, **kwargs) -> CompactMasks:
        """Move to a device. Dtypes stay as they are."""
        device = torch.empty(0).to(*args, **kwargs).device
        tensors = (
            self.windows,
            self.areas,
            self.row_maxima,
            self.column_maxima,
            self.run_lengths,
            self.run_offsets,
        )
        return CompactMasks(self.size, *(tensor.to(device) for tensor in tensors))

    def __getitem__(self, item: int | slice | list[int] | Tensor) -> CompactMasks:
        """Select objects: an index (keeps the length-1 axis), slice, list, index or bool tensor."""
        if isinstance(item, int):
            if not -len(self) <= item < len(self):
                raise IndexError(f"mask index {item} is out of range for {len(self)} masks")
            item = [item % len(self)]
        chosen = torch.arange(len(self), device=self.device)[item]
        starts, ends = self.run_offsets[:-1][chosen], self.run_offsets[1:][chosen]
        runs = ends - starts
        offsets = torch.cat([runs.new_zeros(1), runs.cumsum(0)])
        # The k-th run of a chosen object lies at its start + k.
        source = torch.arange(int(offsets[-1]), device=self.device) + torch.repeat_interleave(
            starts - offsets[:-1], runs
        )
        return CompactMasks(
            self.size,
            self.windows[chosen],
            self.areas[chosen],
            self.row_maxima[chosen],
            self.column_maxima[chosen],
            self.run_lengths[source],
            offsets,
        )

    def dense(self) -> Tensor:
        """The masks as (N, H, W) bool."""
        height, width = self.size
        first = torch.repeat_interleave(self.run_offsets[:-1], self.run_offsets.diff())
        number = torch.arange(len(self.run_lengths), device=self.device) - first
        foreground = (number % 2).bool()
        columns = torch.repeat_interleave(foreground, self.run_lengths)
        return columns.view(len(self), width, height).transpose(1, 2).contiguous()

    def rle(self) -> list[dict]:
        """COCO's compressed RLE: per object ``{"size": [H, W], "counts": str}``."""
        lengths, offsets = self.run_lengths.cpu(), self.run_offsets.cpu()
        encode = torch.ops.rdsnet.encode_runs if compiled.usable(lengths) else encode_runs
        characters, bounds = encode(lengths, offsets)
        text, bounds = characters.numpy().tobytes().decode("ascii"), bounds.tolist()
        height, width = self.size
        return [
            {"size": [height, width], "counts": text[start:end]}
            for start, end in zip(bounds[:-1], bounds[1:])
        ]


def encode_runs(run_lengths: Tensor, run_offsets: Tensor) -> tuple[Tensor, Tensor]:
    """COCO's compressed form of run lengths, for all objects at once.

    From an object's fourth run on, the difference to the run before the last one is written. Five
    bits make a character, lowest first; 32 is added while more follow, and the fifth bit of the
    last character is the sign.

    Args:
        run_lengths, run_offsets: as in :class:`CompactMasks`.

    Returns:
        characters (sum of lengths,) uint8, and offsets (N + 1,) int64 into them.
    """
    first = torch.repeat_interleave(run_offsets[:-1], run_offsets.diff())
    number = torch.arange(len(run_lengths)) - first  # of a run within its object
    value = run_lengths.clone()
    value[2:] -= torch.where(number[2:] > 2, run_lengths[:-2], 0)
    digits, written = [], []
    going_on = torch.ones_like(value, dtype=torch.bool)
    while going_on.any():
        written.append(going_on)
        digit = value & 0x1F
        value = value >> 5
        going_on = going_on & torch.where(digit & 0x10 > 0, value != -1, value != 0)
        digits.append(digit + 48 + 32 * going_on)
    if not digits:
        return run_lengths.new_zeros(0, dtype=torch.uint8), torch.zeros_like(run_offsets)
    written = torch.stack(written, dim=1)
    characters = torch.stack(digits, dim=1)[written].to(torch.uint8)
    ends = torch.cat([run_offsets.new_zeros(1), written.sum(1).cumsum(0)])
    return characters, ends[run_offsets]


def run_lengths_from_window(
    bits: Tensor, window: tuple[int, int, int, int], size: tuple[int, int]
) -> Tensor:
    """COCO's uncompressed RLE counts of one object whose foreground lies in a window.

    Args:
        bits: (y2 - y1, x2 - x1) bool, the mask inside the window.
        window: x1, y1, x2, y2 in pixels, end exclusive, inside the image.
        size: (H, W) of the image.

    Returns:
        (runs,) int64 counts, background first, of all H * W pixels column by column.
    """
    height, width = size
    x1, y1 = window[:2]
    # Padding by one background row makes every foreground run begin and end inside its column.
    padded = torch.nn.functional.pad(bits.t(), (1, 1))
    column, row = (padded[:, 1:] != padded[:, :-1]).nonzero(as_tuple=True)
    position = (column + x1) * height + row + y1
    # A run that reaches the bottom goes on at the top of the next column: its end and the next
    # beginning are the same position and cancel.
    same = position[1:] == position[:-1]
    keep = torch.ones_like(position, dtype=torch.bool)
    keep[1:] &= ~same
    keep[:-1] &= ~same
    position = position[keep]
    total = height * width
    if len(position) and int(position[-1]) == total:
        position = position[:-1]
    edges = torch.cat([position.new_zeros(1), position, position.new_full((1,), total)])
    return edges.diff()
