"""Masks that cost as much memory as their outline.

A mask is kept as the run lengths of COCO's RLE (column by column over the whole image,
background first) beside what MBRM and evaluation ask of it: its area, and the maxima of its
foreground probability over the rows and columns. Dense masks are made only on demand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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

    @staticmethod
    def cat(parts: Sequence[CompactMasks]) -> CompactMasks:
        """The masks of all parts, which are of one size, in a row.

        Raises:
            ValueError: there is no part, or they are of several sizes.
        """
        sizes = {part.size for part in parts}
        if len(sizes) != 1:
            raise ValueError(f"masks of one size can be joined; got the sizes {sorted(sizes)}")
        runs = torch.cat([part.run_offsets.diff() for part in parts])
        return CompactMasks(
            parts[0].size,
            torch.cat([part.windows for part in parts]),
            torch.cat([part.areas for part in parts]),
            torch.cat([part.row_maxima for part in parts]),
            torch.cat([part.column_maxima for part in parts]),
            torch.cat([part.run_lengths for part in parts]),
            torch.cat([runs.new_zeros(1), runs.cumsum(0)]),
        )

    def placed(self, size: tuple[int, int], x: int, y: int) -> CompactMasks:
        """The masks of a part of an image as masks of the whole.

        Args:
            size: (H, W) of the whole.
            x, y: where the upper left corner of the part is.

        Returns:
            Masks without maxima: ``row_maxima`` and ``column_maxima`` are (N, 0), since they would
            be as long as the whole is high and wide.
        """
        height, width = self.size
        index = torch.repeat_interleave(
            torch.arange(len(self), device=self.device), self.run_offsets.diff()
        )
        number = torch.arange(len(index), device=self.device) - self.run_offsets[index]
        ends = self.run_lengths.cumsum(0) - index * (height * width)
        foreground = (number % 2 == 1) & (self.run_lengths > 0)
        index, ends = index[foreground], ends[foreground]
        starts = ends - self.run_lengths[foreground]
        # A run that goes on in the next column is cut there: the columns of the whole are longer.
        first, last = starts // height, (ends - 1) // height
        pieces = last - first + 1
        run = torch.repeat_interleave(torch.arange(len(pieces), device=self.device), pieces)
        column = torch.arange(len(run), device=self.device) - (pieces.cumsum(0) - pieces)[run]
        column += first[run]
        top = torch.where(column == first[run], starts[run] % height, 0)
        bottom = torch.where(column == last[run], (ends[run] - 1) % height + 1, height)
        corner = (column + x) * size[0] + y
        lengths, offsets = _run_lengths(index[run], corner + top, corner + bottom, len(self), size)
        shift = torch.tensor([x, y, x, y], device=self.device)
        nothing = self.row_maxima[:, :0]
        return CompactMasks(
            size, self.windows + shift, self.areas, nothing, nothing, lengths, offsets
        )

    def crop(self, index: int) -> Tensor:
        """One mask inside its window, (y2 - y1, x2 - x1) bool, whatever the size of the image."""
        x1, y1, x2, y2 = self.windows[index].tolist()
        runs = self.run_lengths[self.run_offsets[index] : self.run_offsets[index + 1]]
        ends = runs.cumsum(0)
        starts, ends, runs = (ends - runs)[1::2], ends[1::2], runs[1::2]
        inside = torch.arange(int(runs.sum()), device=self.device)
        inside -= (runs.cumsum(0) - runs).repeat_interleave(runs)
        pixels = starts.repeat_interleave(runs) + inside
        bits = torch.zeros(x2 - x1, y2 - y1, dtype=torch.bool, device=self.device)
        bits[pixels // self.size[0] - x1, pixels % self.size[0] - y1] = True
        return bits.t()

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


def _run_lengths(
    index: Tensor, starts: Tensor, ends: Tensor, count: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """``run_lengths`` and ``run_offsets`` of masks whose foreground is known.

    Args:
        index: (P,) the mask that a piece of foreground belongs to, ascending.
        starts, ends: (P,) int64 of the pieces, as pixels of their image column by column; ascending
            within a mask. Pieces may touch.
        count: N, the number of masks.
        size: (H, W).
    """
    total = size[0] * size[1]
    goes_on = (index[1:] == index[:-1]) & (starts[1:] == ends[:-1])
    no = goes_on.new_zeros(min(len(index), 1))
    starts, ends = starts[~torch.cat([no, goes_on])], ends[~torch.cat([goes_on, no])]
    index = index[~torch.cat([no, goes_on])]
    # All images in a row: every mask has its beginning, the edges of its runs, and its end.
    own = torch.arange(count, device=index.device) * total
    edges = torch.stack([starts, ends], dim=1) + own[index, None]
    edges = torch.cat([own, edges.flatten(), own + total])
    kinds = torch.tensor([0, 1, 2], device=index.device)  # beginnings first, ends last
    kinds = kinds.repeat_interleave(torch.tensor([count, 2 * len(index), count]).to(kinds))
    masks = torch.cat([own // total, index.repeat_interleave(2), own // total])
    order = (masks * 3 + kinds).argsort(stable=True)
    edges, kinds, masks = edges[order], kinds[order], masks[order]
    lengths, is_run = edges[1:] - edges[:-1], kinds[1:] > 0
    # A last run of no length is not written, except of a mask without pixels.
    is_run &= ~((kinds[1:] == 2) & (lengths == 0) & (kinds[:-1] == 1))
    runs = torch.bincount(masks[1:][is_run], minlength=count)
    return lengths[is_run], torch.cat([runs.new_zeros(1), runs.cumsum(0)])


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
