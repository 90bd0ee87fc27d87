"""TIFF files, read by tifffile: which of their pages are images, and what their pixels mean.

TIFF is a container of many layouts. Those that were compared with a second reader are read, all
others are refused with the reason: a wrong image would be worse than none. tifffile undoes
tiles, planes, compression and byte order; here samples become colours.
"""

from __future__ import annotations

import io
import logging
import struct
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from tifffile import COMPRESSION, PHOTOMETRIC, TIFF, TiffFile, TiffPage, xml2dict

from rdsnet.data.pixels import (
    ORIENTATION,
    RefusedError,
    eight_bit,
    is_floating,
    opaque_image,
    upright,
)

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the latter two: BigTIFF

# Compressions of plain bytes, and those whose strips and tiles are image files of their own.
_BYTES = frozenset(
    COMPRESSION[name]
    for name in (
        "NONE CCITTRLE CCITT_T4 CCITT_T6 LZW DEFLATE ADOBE_DEFLATE PACKBITS LZMA ZSTD".split()
    )
)
_PREDICTED = frozenset(
    COMPRESSION[name] for name in ("LZW", "DEFLATE", "ADOBE_DEFLATE", "LZMA", "ZSTD")
)
_EMBEDDED = {
    COMPRESSION.JPEG: "JPEG",
    COMPRESSION.JPEG2000: "JPEG2000",
    COMPRESSION.APERIO_JP2000_RGB: "JPEG2000",
    COMPRESSION.WEBP: "WEBP",
}
COLOURS = {
    PHOTOMETRIC.MINISWHITE: 1,
    PHOTOMETRIC.MINISBLACK: 1,
    PHOTOMETRIC.RGB: 3,
    PHOTOMETRIC.PALETTE: 1,
    PHOTOMETRIC.SEPARATED: 4,
    PHOTOMETRIC.YCBCR: 3,
    PHOTOMETRIC.CIELAB: 3,
}
"""Samples per pixel that are colours; what more there is may be transparency."""

_CAMERA_RAW = (
    "is a camera's raw file: develop it to a TIFF or JPEG first, as the camera's software does."
)
_REWRITE = "Save it as RGB or grey with LZW or Deflate compression, or as PNG."
_MOST_CHANNELS = 16  # with those that are no colours: all are unpacked
# A tile may be so much larger than its image; beyond, it is meant to fill memory.
_LARGE_TILE = 2**24
_PREMULTIPLIED, _STRAIGHT = 1, 2  # kinds of ExtraSamples that are transparency
# Formats of whole slides: the pages after the first are smaller copies, labels, overviews.
_SLIDES = frozenset(("bif", "ndpi", "philips", "scn", "svs"))

# tifffile logs what it finds odd about a file, without its name; errors are raised all the same.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class TiffPages:
    """The pages of an open TIFF file.

    Thumbnails and other reduced copies, transparency masks and sub-images are no pages. Pages are
    read one at a time, so memory does not depend on their number.
    """

    # Whether further pages belong to the first, such as previews.
    has_side_images = False

    def __init__(self, stream: BinaryIO) -> None:
        # A temporary file's name is a number, which tifffile cannot take.
        has_name = isinstance(getattr(stream, "name", ""), str)
        self._file = TiffFile(stream, name=None if has_name else "nameless.tif")
        self._places: list[int] = []  # of the pages found so far, in the file's chain
        self._next = 0  # place in the chain to look at next

    def __len__(self) -> int:
        """The number of pages that are in the file."""
        self._page(0)
        while self._find_next():
            pass
        return max(len(self._places), self._planes())

    def check_whole(self) -> None:
        """Raise ValueError where the last page points to another that is not in the file."""
        tiff, handle = self._file.tiff, self._file.filehandle
        handle.seek(self._file.pages.next_page_offset)
        try:
            (following,) = struct.unpack(tiff.offsetformat, handle.read(tiff.offsetsize))
        except struct.error:
            following = -1
        if following != 0:
            raise ValueError(f"it is cut off after page {len(self) - 1}")

    def size(self, number: int) -> tuple[int, int]:
        """Width and height of a page."""
        page = self._page(number)
        return page.imagewidth, page.imagelength

    def image(self, number: int) -> Image.Image:
        """A page, opaque, upright and of 8 bits per channel."""
        page = self._page(number)
        _check_layout(page)
        if number < len(self._places):
            samples = page.asarray(maxworkers=1)
        else:
            samples = self._plane(page, number)
        if page.axes == "SYX":
            samples = np.moveaxis(samples, 0, -1)
        image = _colours(page, samples.reshape(page.imagelength, page.imagewidth, -1))
        return upright(image, page.tags.valueof(ORIENTATION, 1))

    def checked_page(self, number: int) -> TiffPage:
        """A page whose meaning is certain, to be read in parts.

        Raises:
            RefusedError, ValueError: as :meth:`image`; for a page that has no entry of its own.
        """
        page = self._page(number)
        _check_layout(page)
        if number >= len(self._places):
            raise RefusedError("has pages without entries of their own. Save them as pages.")
        return page

    def colours(self, page: TiffPage, samples: np.ndarray) -> Image.Image:
        """The opaque image that samples (H, W, S) of a part of a page mean."""
        return _colours(page, samples)

    def colour_count(self, page: TiffPage) -> int:
        """How many samples of a pixel are colours; those behind them may be transparency."""
        return COLOURS[page.photometric]

    @property
    def channels(self) -> int:
        """How many channels the pages are, each an image of its own; 1: pages are no channels."""
        try:
            if self._file.is_imagej:
                return int(self._file.imagej_metadata.get("channels", 1))
            if self._file.is_ome:
                image = xml2dict(self._file.ome_metadata)["OME"]["Image"]
                pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
                return int(pixels["SizeC"]) // self._file.pages.first.samplesperpixel
        except Exception:  # a description that is damaged, beside pixels that are not
            pass
        return 1

    def _page(self, number: int) -> TiffPage:
        while number >= len(self._places) and self._find_next():
            pass
        if self._next == 0:
            raise ValueError("it is cut off before its first page")
        if not self._places:
            raise RefusedError(
                "holds nothing but a reduced copy of its picture, as raw files of cameras do. "
                "Develop it to a TIFF or JPEG first."
            )
        if number < len(self._places):
            return self._file.pages.get(self._places[number])
        if number < self._planes():
            return self._file.pages.first
        raise IndexError(f"no page {number}")

    def _find_next(self) -> bool:
        """Look at one more page of the chain; False at its end."""
        if self._places and self._file.flags & _SLIDES:
            return False
        try:
            page = self._file.pages.get(self._next)
        except IndexError:
            return False
        if not (page.is_reduced or page.is_mask):
            self._places.append(self._next)
        self._next += 1
        return True

    def _planes(self) -> int:
        """Pages that programs have written as one long page, without entries in the chain.

        ImageJ does so above 4 GB, MetaMorph always, tifffile on demand.
        """
        file, page = self._file, self._file.pages.first
        announced = 1
        if file.is_stk:
            announced = file.stk_metadata["NumberPlanes"]
        elif file.is_imagej:
            announced = int(file.imagej_metadata.get("images", 1))
        elif file.is_shaped and file.shaped_metadata[0].get("truncated"):
            announced = int(np.prod(file.shaped_metadata[0]["shape"])) // page.size
        return announced if len(self._places) == 1 and page.is_contiguous else 1

    def _plane(self, page: TiffPage, number: int) -> np.ndarray:
        handle = self._file.filehandle
        handle.seek(page.dataoffsets[0] + number * page.nbytes)
        samples = handle.read_array(self._file.byteorder + page.dtype.char, page.size)
        return samples.reshape(page.shape)


def _check_layout(page: TiffPage) -> None:
    """Check that the pixels of a page are certain, and that its data are there.

    Raises:
        RefusedError: for a layout that is not read.
        ValueError: for damages.
    """
    kind = {"f": "floating-point", "c": "complex"}.get(page.dtype.kind if page.dtype else "")
    if kind:
        raise is_floating(kind)
    if "DNGVersion" in page.tags or page.photometric in (PHOTOMETRIC.CFA, PHOTOMETRIC.LINEAR_RAW):
        raise RefusedError(_CAMERA_RAW)
    if page.axes not in ("YX", "YXS", "SYX"):
        raise RefusedError("holds a volume in one page. Save its slices as pages of their own.")
    if trouble := _unknown_colours(page):
        raise RefusedError(f"{trouble}. {_REWRITE}")
    check_data(page)


def check_data(page: TiffPage) -> None:
    """Check that it is certain what the data of a page unpack to, and that they are there.

    Raises:
        RefusedError, ValueError: as :meth:`TiffPages.image`.
    """
    if trouble := _unknown_compression(page):
        raise RefusedError(f"{trouble}. {_REWRITE}")
    ends = np.add(page.dataoffsets, page.databytecounts)
    if len(ends) < np.prod(page.chunked) or ends.max() > page.parent.filehandle.size:
        raise ValueError("it is cut off")
    if np.prod(page.chunks) > max(_LARGE_TILE, 4 * page.size):
        raise ValueError(f"its tiles of {page.chunks} are larger than the picture of {page.shape}")
    if page.compression in _EMBEDDED:
        _check_embedded(page)


def _unknown_colours(page: TiffPage) -> str | None:
    """Why the colours that the samples stand for are not certain."""
    photometric, bits = page.photometric, page.bitspersample
    if "PhotometricInterpretation" not in page.tags:
        return "does not say what its numbers mean (PhotometricInterpretation)"
    if photometric not in COLOURS:
        return f"has colours of the kind {_name(photometric)}"
    if page.dtype is None or isinstance(bits, tuple):
        return f"has samples of {bits} bits"
    extra = page.samplesperpixel - COLOURS[photometric]
    most = 1 if COLOURS[photometric] == 1 else _MOST_CHANNELS - COLOURS[photometric]
    if not 0 <= extra <= most:
        return f"has {page.samplesperpixel} channels that are called {_name(photometric)}"
    if photometric == PHOTOMETRIC.YCBCR and (
        page.compression != COMPRESSION.JPEG or page.planarconfig != 1 or extra
    ):
        return "has YCbCr colours outside of JPEG"
    if photometric == PHOTOMETRIC.CIELAB and bits != 8:
        return f"has Lab colours of {bits} bits"
    if photometric == PHOTOMETRIC.SEPARATED and page.tags.valueof("InkSet", 1) != 1:
        return "has inks other than CMYK"
    kind, _ = _transparency(page)
    if kind == _PREMULTIPLIED and photometric not in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB):
        return f"has {_name(photometric)} colours that are multiplied by their transparency"
    return None


def _unknown_compression(page: TiffPage) -> str | None:
    """Why it is not certain what the data unpack to."""
    compression = page.compression
    if compression not in _BYTES and compression not in _EMBEDDED:
        return f"has the compression {_name(compression)}"
    if compression != COMPRESSION.NONE and compression not in TIFF.DECOMPRESSORS:
        return f"has the compression {_name(compression)}, for which this tifffile is too old"
    if compression in _EMBEDDED and page.photometric == PHOTOMETRIC.PALETTE:
        return f"has a palette and the compression {_name(compression)}"
    if page.predictor != 1 and compression not in _PREDICTED:
        return f"has a predictor with the compression {_name(compression)}"
    if _EMBEDDED.get(compression) == "JPEG2000" and page.bitspersample > 8 and not _is_little(page):
        # Encoders are handed swapped bytes by some programs, and swapped back by others.
        return "is big-endian with JPEG 2000 of more than 8 bits, which programs write in two ways"
    return None


def _check_embedded(page: TiffPage) -> None:
    """Refuse image files in strips or tiles that are larger than these: they would fill memory."""
    rows, columns = page.chunks[-2:] if page.axes != "YXS" else page.chunks[-3:-1]
    format = _EMBEDDED[page.compression]
    handle = page.parent.filehandle
    for data, _ in handle.read_segments(page.dataoffsets, page.databytecounts):
        if data is None:
            continue
        try:
            width, height = Image.open(io.BytesIO(data), formats=[format]).size
        except UnidentifiedImageError:
            raise RefusedError(f"has {format} data of an uncommon kind. {_REWRITE}") from None
        if width > columns or height > rows:
            raise ValueError(f"a tile of {columns} x {rows} pixels holds {width} x {height}")


def _colours(page: TiffPage, samples: np.ndarray) -> Image.Image:
    """The opaque image that the samples (H, W, S) of a page mean, not yet turned."""
    count = COLOURS[page.photometric]
    kind, place = _transparency(page)
    if kind == _PREMULTIPLIED:
        levels = _eight_bit(page, np.dstack((samples[..., :count], samples[..., place])))
        alpha = levels[..., -1:]
        return opaque_image(np.minimum(levels[..., :-1], alpha) + (255 - alpha))
    alpha = _eight_bit(page, samples[..., place]) if kind == _STRAIGHT else None
    return opaque_image(_shown(page, samples[..., :count]), alpha)


def _transparency(page: TiffPage) -> tuple[int, int]:
    """The kind of transparency, 0: none, and the sample that has it."""
    count = COLOURS[page.photometric]
    if "ExtraSamples" not in page.tags:  # a fourth channel without a word: alpha, as Pillow has it
        return (_STRAIGHT if page.samplesperpixel == count + 1 else 0), count
    for place, kind in enumerate(page.extrasamples, count):
        if kind in (_PREMULTIPLIED, _STRAIGHT):
            return int(kind), place
    return 0, count


def _shown(page: TiffPage, samples: np.ndarray) -> np.ndarray:
    """(H, W, 1) grey or (H, W, 3) RGB, uint8."""
    if page.photometric == PHOTOMETRIC.PALETTE:
        table = page.colormap.T  # 16 bits, except in files of some old programs
        table = (table >> 8 if table.max() > 255 else table).astype(np.uint8)
        return table[samples[..., 0].astype(np.intp)]  # bits would be taken for a mask
    levels = _eight_bit(page, samples)
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        return 255 - levels
    mode = {PHOTOMETRIC.SEPARATED: "CMYK", PHOTOMETRIC.CIELAB: "LAB"}.get(page.photometric)
    if mode:
        size = levels.shape[1], levels.shape[0]
        return np.asarray(Image.frombytes(mode, size, levels.tobytes()).convert("RGB"))
    return levels


def _eight_bit(page: TiffPage, samples: np.ndarray) -> np.ndarray:
    """As :func:`rdsnet.data.pixels.eight_bit`; fewer than 8 bits are spread over 0 .. 255."""
    if page.bitspersample >= 8:
        return eight_bit(samples)
    most = 2**page.bitspersample - 1
    return ((samples.astype(np.uint16) * 255 + most // 2) // most).astype(np.uint8)


def _is_little(page: TiffPage) -> bool:
    return page.parent.byteorder == "<"


def _name(value: int) -> str:
    """How TIFF calls a value, where it has a name."""
    return getattr(value, "name", str(value))
