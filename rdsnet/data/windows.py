"""Large images, read a window at a time: arrays, ``.npy`` files, TIFF, slides.

A reader has the ``shape`` of an image and reads windows of it. Of TIFF, only the tiles or strips
that a window touches are unpacked; images of other formats are decoded as a whole first, but for
slides (:mod:`rdsnet.data.slides`).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import BinaryIO, Protocol

import numpy as np
from tifffile import PHOTOMETRIC, TiffPage

from rdsnet.data.arrays import ArrayFile
from rdsnet.data.channels import PHOTOGRAPHS, Channels, ranges_of, sample
from rdsnet.data.findings import printable
from rdsnet.data.image_formats import HEAD, is_numpy, is_tiff
from rdsnet.data.images import check_is_file, explained, read_image
from rdsnet.data.pixels import ORIENTATION, RefusedError, level_bits
from rdsnet.data.slides import SlideReader, open_slide
from rdsnet.data.tiff import TiffPages

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels, end exclusive."""

# Bytes of unpacked tiles and strips of a TIFF that are kept, since windows overlap.
_KEPT_BYTES = 2**28
# Bytes that are read at once to be reduced.
_REDUCED_BYTES = 2**25
# A strip or tile may be so many pixels: it is unpacked as a whole.
_LARGEST_SEGMENT = 2**28


class WindowReader(Protocol):
    """An image that is read in windows; whatever has these two is one."""

    shape: tuple[int, int, int]
    """(H, W, 3), or (H, W, C) of what is no photograph."""

    def read(self, window: Box) -> np.ndarray:
        """The pixels (y2 - y1, x2 - x1, 3) uint8 BGR of a window inside the image.

        Of what is no photograph, (..., C) as :meth:`rdsnet.data.channels.Channels.read` gives them.
        """


class ArrayReader:
    """An array (H, W, 3) BGR or (H, W) grey, uint8, which may be a ``numpy.memmap``.

    Raises:
        ValueError: for an array of another kind.
    """

    def __init__(self, image: np.ndarray) -> None:
        if image.dtype != np.uint8 or image.ndim < 2 or image.shape[2:] not in ((3,), ()):
            raise ValueError(
                "a large image is an array (height, width, 3) or (height, width) of uint8; got "
                f"{image.shape} of {image.dtype}"
            )
        self._image = image
        self.shape = (*image.shape[:2], 3)

    def read(self, window: Box) -> np.ndarray:
        x1, y1, x2, y2 = window
        pixels = np.asarray(self._image[y1:y2, x1:x2])
        return np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels


class NpyReader:
    """An ``.npy`` file of what :class:`ArrayReader` takes, opened anew for every window.

    So memory never holds more of it than that: of an open one, what has been read stays.
    """

    def __init__(self, file_name: str) -> None:
        self._file_name = file_name
        self.shape = self._opened().shape

    def read(self, window: Box) -> np.ndarray:
        return np.array(self._opened().read(window))

    def _opened(self) -> ArrayReader:
        return ArrayReader(np.load(self._file_name, mmap_mode="r", allow_pickle=False))


class ScaledReader:
    """An array (H, W, C) of any type, which may be a ``numpy.memmap``, scaled window by window.

    Args:
        values: as the file has them.
        channels: what becomes of them.
        file_name: for messages.

    Raises:
        ValueError: as :meth:`rdsnet.data.channels.Channels.scaled`.
    """

    def __init__(self, values: np.ndarray, channels: Channels, file_name: str) -> None:
        if channels.scaling == "image":  # by the whole image, not by its windows
            ranges = ranges_of(sample(values), channels.percentiles)
            channels = replace(channels, ranges=ranges)
        self._values, self._channels, self._file_name = values, channels, file_name
        self.shape = values.shape
        self.read((0, 0, 1, 1))

    def read(self, window: Box) -> np.ndarray:
        x1, y1, x2, y2 = window
        return self._channels.scaled(np.asarray(self._values[y1:y2, x1:x2]), self._file_name)


class TiffReader:
    """A page of a TIFF file, in 8 bits as :func:`rdsnet.data.images.read_image` has them.

    Of more than 8 bits, the range in use is shown: it is found by reading the file once.

    Args:
        stream: the open file.
        page: from 0.

    Raises:
        RefusedError, ValueError: as :class:`~rdsnet.data.tiff.TiffPages`; for turned images.
    """

    def __init__(self, stream: BinaryIO, page: int = 0) -> None:
        self._pages = TiffPages(stream)
        self._page = self._pages.checked_page(page)
        if self._page.tags.valueof(ORIENTATION, 1) != 1:
            raise RefusedError("is turned by a tag, and too large for that. Save it upright.")
        if np.prod(self._page.chunks) > _LARGEST_SEGMENT:
            raise RefusedError(
                "is compressed as one piece, which cannot be read in parts. Save it in tiles: "
                "tifffile.imwrite(..., tile=(512, 512))."
            )
        self.shape = (self._page.imagelength, self._page.imagewidth, 3)
        self._segments: OrderedDict[int, np.ndarray | None] = OrderedDict()
        self._shifts = self._depth_shifts()

    def read(self, window: Box) -> np.ndarray:
        samples = self._samples(window)
        if self._shifts is not None:
            samples = (samples >> self._shifts).astype(np.uint8)
        rgb = np.asarray(self._pages.colours(self._page, samples).convert("RGB"))
        return rgb[:, :, ::-1]

    def _samples(self, window: Box) -> np.ndarray:
        """The numbers (h, w, S) of a window as the file has them; 0 where it has none."""
        page = self._page
        x1, y1, x2, y2 = window
        planes = page.samplesperpixel if page.axes == "SYX" else 1
        depth = page.samplesperpixel // planes
        result = np.zeros((planes, y2 - y1, x2 - x1, depth), page.dtype)
        rows, columns = _segment_size(page)
        across, down = -(-self.shape[1] // columns), -(-self.shape[0] // rows)
        for plane in range(planes):
            for row in range(y1 // rows, -(-y2 // rows)):
                for column in range(x1 // columns, -(-x2 // columns)):
                    segment = self._segment((plane * down + row) * across + column)
                    if segment is None:
                        continue
                    top, left = row * rows, column * columns
                    inside = segment[max(y1 - top, 0) : y2 - top, max(x1 - left, 0) : x2 - left]
                    y, x = max(top - y1, 0), max(left - x1, 0)
                    height, width = inside.shape[:2]
                    result[plane, y : y + height, x : x + width] = inside
        return np.concatenate(result, axis=-1)

    def _segment(self, number: int) -> np.ndarray | None:
        """An unpacked tile or strip (h, w, S), without what lies beyond the image."""
        if number in self._segments:
            self._segments.move_to_end(number)
            return self._segments[number]
        page, handle = self._page, self._page.parent.filehandle
        offset, count = page.dataoffsets[number], page.databytecounts[number]
        data = None
        if count:
            handle.seek(offset)
            data = handle.read(count)
        tables = {} if page.jpegtables is None else {"jpegtables": page.jpegtables}
        segment, _, shape = page.decode(data, number, **tables)
        if segment is not None:
            _, height, width, _ = shape
            segment = segment[0, :height, :width]
        self._segments[number] = segment
        size = np.prod(page.chunks) * page.dtype.itemsize
        while len(self._segments) > max(_KEPT_BYTES // size, 1):
            self._segments.popitem(last=False)
        return segment

    def _depth_shifts(self) -> np.ndarray | None:
        """Bits (S,) by which every sample is too long for 8 bits; None: none is."""
        page = self._page
        if page.bitspersample <= 8 or page.photometric == PHOTOMETRIC.PALETTE:
            return None
        rows, _ = _segment_size(page)
        most = np.zeros(page.samplesperpixel, np.int64)
        least = 0
        for y in range(0, self.shape[0], rows):
            samples = self._samples((0, y, self.shape[1], min(y + rows, self.shape[0])))
            most = np.maximum(most, samples.max((0, 1)))
            least = min(least, int(samples.min()))
        colours = self._pages.colour_count(page)
        shifts = np.zeros(page.samplesperpixel, np.int64)
        for part in (slice(0, colours), slice(colours, None)):
            if most[part].size:
                shifts[part] = level_bits(least, int(most[part].max())) - 8
        return shifts.astype(page.dtype)


def _segment_size(page: TiffPage) -> tuple[int, int]:
    """Rows and columns of a tile or strip."""
    rows, columns = page.chunks[:2] if page.axes == "YXS" else page.chunks[-2:]
    return int(rows), int(columns)


class LargeImage:
    """An image file that is read in windows; a context manager and a :class:`WindowReader`.

    Args:
        file_name: an ``.npy`` file (H, W, 3) BGR or (H, W) grey, uint8, or a slide, which are
            never read as a whole; a TIFF; or another image, which is.
        page: of a TIFF, from 0.
        channels: what the image is. What is no photograph is read as a whole before it is scaled in
            windows, but for ``.npy`` files.

    Raises:
        FileNotFoundError, OSError, ValueError: as :func:`rdsnet.data.images.read_image`, here and
            in :meth:`read`.
    """

    def __init__(self, file_name: str, page: int = 0, channels: Channels = PHOTOGRAPHS) -> None:
        self.file_name, self._page, self._channels = file_name, page, channels
        self._stream: BinaryIO | SlideReader | None = None  # closed at the end
        if not channels.are_photographs:
            with ArrayFile(file_name, channels.count) as file:
                self._reader = ScaledReader(file.read(page), channels, file_name)
            self.shape = self._reader.shape
            return
        with explained(file_name):
            check_is_file(file_name)
            self._stream = open(file_name, "rb")
            try:
                head = self._stream.read(HEAD)
                self._stream.seek(0)
                self._reader = self._opened(head, page)
            except BaseException:
                self._stream.close()
                raise
        self.shape = self._reader.shape

    def _opened(self, head: bytes, page: int) -> WindowReader:
        if slide := open_slide(self.file_name):
            return self._instead(slide)
        if is_tiff(head):
            try:
                return TiffReader(self._stream, page)
            except RefusedError:
                if slide := open_slide(self.file_name, is_last_resort=True):
                    return self._instead(slide)
                raise
        if is_numpy(head):
            try:
                return NpyReader(self.file_name)
            except ValueError as error:
                raise RefusedError(f"cannot be read: {error}") from error
        return ArrayReader(read_image(self.file_name, "BGR", page))

    def _instead(self, slide: SlideReader) -> SlideReader:
        self._stream.close()
        self._stream = slide
        return slide

    def reopened(self) -> LargeImage:
        """The same image, open once more."""
        return LargeImage(self.file_name, self._page, self._channels)

    def __enter__(self) -> LargeImage:
        return self

    def __exit__(self, *error: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def __repr__(self) -> str:
        return f"LargeImage({printable(self.file_name)}, shape={self.shape})"

    def read(self, window: Box) -> np.ndarray:
        """As of :class:`WindowReader`."""
        with explained(self.file_name):
            return self._reader.read(window)


def as_reader(image: WindowReader | np.ndarray) -> WindowReader:
    """A reader of an image that is one already, or an array."""
    return ArrayReader(image) if isinstance(image, np.ndarray) else image


def read_reduced(reader: WindowReader, window: Box, factor: int) -> np.ndarray:
    """A window at a fraction of the resolution: means of ``factor`` x ``factor`` pixels.

    It is read in strips, so that memory depends on what is returned.

    Args:
        window: cells of pixels are counted from its upper left corner; the last ones of a row or
            column may have fewer pixels.

    Returns:
        As :meth:`WindowReader.read`, ceil((y2 - y1) / factor) high, likewise wide.
    """
    if factor == 1:
        return reader.read(window)
    x1, y1, x2, y2 = window
    starts = np.arange(0, x2 - x1, factor)
    columns = np.diff(starts, append=x2 - x1)[:, None]
    rows = max(_REDUCED_BYTES // (factor * (x2 - x1) * reader.shape[2]), 1) * factor
    strips = []
    for top in range(y1, y2, rows):
        strip = reader.read((x1, top, x2, min(top + rows, y2)))
        tops = np.arange(0, len(strip), factor)
        heights = np.diff(tops, append=len(strip))[:, None, None]
        kind = np.float64 if strip.dtype.kind == "f" else np.uint32
        sums = np.add.reduceat(strip, tops, axis=0, dtype=kind)
        sums = np.add.reduceat(sums, starts, axis=1)
        means = sums / (heights * columns)
        strips.append((means + 0.5 * (kind == np.uint32)).astype(strip.dtype))
    return np.concatenate(strips)
