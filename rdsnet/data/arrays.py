"""Images that are no photographs: files as arrays of any depth and number of channels.

TIFF with channels as samples, planes or pages, ``.npy``, and what Pillow reads. The numbers are
those of the file; :mod:`rdsnet.data.channels` says what becomes of them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO

import numpy as np
from tifffile import PHOTOMETRIC, TiffFile, TiffPageSeries

from rdsnet.data.image_formats import HEAD, is_numpy, is_tiff, pillow_formats
from rdsnet.data.images import check_is_file, check_pixels, explained
from rdsnet.data.pillow import PillowPages
from rdsnet.data.pixels import ORIENTATION, RefusedError
from rdsnet.data.tiff import COLOURS, check_data

MOST_CHANNELS = 8
"""An axis of at most so many entries may be channels where the file does not say what it is."""

_CHANNELS = "CS"  # the letters of tifffile: images of their own, samples of a pixel
_UNNAMED = "QI"  # an axis of an array, pages without a word
_ALPHA = (1, 2)  # kinds of ExtraSamples that are transparency


@dataclass
class _Array:
    """A file as one array.

    Attributes:
        axes: a letter per axis: Y, X, C and S (channels), others count images.
        shape: of the array.
        dtype: of its numbers.
        has_colours: whether it is a photograph, by its colours or as grey of 8 bits.
        has_alpha: whether the last channel is transparency.
        trouble: why it is not read; "": it is.
        plane: gives the numbers at an index of the leading axes, all but the last ``within``.
        within: how many axes a plane has.
    """

    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype
    plane: Callable[[tuple[int, ...]], np.ndarray]
    within: int
    has_colours: bool = False
    has_alpha: bool = False
    trouble: str = ""


@dataclass(frozen=True)
class Kind:
    """What a file holds.

    Attributes:
        channels: of an image; transparency does not count.
        is_deep: whether it has other numbers than 0 .. 255.
        is_whole: whether they are whole numbers.
        is_photograph: whether it is read as one, in 8 bits, where nobody asks for channels: colours
            of any depth, and grey of 8 bits.
    """

    channels: int
    is_deep: bool
    is_photograph: bool
    is_whole: bool = True


class ArrayFile:
    """An open file, a context manager: its images are read one at a time.

    Args:
        file_name: its path.
        channels: that an image is to have; None: as many as the file says.
        stream: its content, if it is no file of this machine; closed at the end.
        formats: what Pillow may open, and no ``.npy``; None: all that is read.

    Raises:
        FileNotFoundError, OSError: as :func:`rdsnet.data.images.read_image`.
        ValueError: the same, here and in all methods; an image has another number of channels.
    """

    def __init__(
        self,
        file_name: str,
        channels: int | None = None,
        stream: BinaryIO | None = None,
        formats: Sequence[str] | None = None,
    ) -> None:
        self.file_name = file_name
        self._wanted, self._stream = channels, stream
        with explained(file_name):
            if stream is None:
                check_is_file(file_name)
                self._stream = open(file_name, "rb")
            try:
                self._array = _opened(self._stream, file_name, channels, formats)
                self._channel_axes = self._axes_of_channels()
            except BaseException:
                self._stream.close()
                raise

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def __len__(self) -> int:
        """The number of images."""
        return math.prod(self._array.shape[axis] for axis in self._axes_of_images())

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image."""
        height, width = (self._array.shape[self._array.axes.index(axis)] for axis in "YX")
        return height, width

    @property
    def kind(self) -> Kind:
        """What the file holds."""
        array = self._array
        channels = math.prod(array.shape[axis] for axis in self._channel_axes) - array.has_alpha
        is_colour = array.has_colours and all(
            array.axes[axis] == "S" for axis in self._channel_axes if array.shape[axis] > 1
        )
        is_deep = array.dtype not in (np.uint8, np.bool_)
        return Kind(channels, is_deep, is_colour, array.dtype.kind not in "fc")

    def read(self, page: int = 0) -> np.ndarray:
        """An image (H, W, C) in the order and with the numbers of the file.

        C is as was asked for. Colours whose three channels are equal are grey where one is asked
        for, and transparency that hides nothing is left out.

        Raises:
            IndexError: there is no such image.
        """
        with explained(self.file_name):
            check_pixels(*self.size[::-1])
            if self._array.trouble:
                raise RefusedError(self._array.trouble)
            self._check_channels()
            image = self._image(page)
            if image.dtype == np.bool_:
                image = image * np.uint8(255)
            if image.dtype.kind not in "uif":
                raise RefusedError(f"has numbers of the kind {image.dtype}. Save it as float32.")
            return self._of_channels(image)

    def _image(self, page: int) -> np.ndarray:
        """(H, W, C) of all channels of the file."""
        array, images = self._array, self._axes_of_images()
        if not 0 <= page < len(self):
            raise IndexError(f"no page {page}")
        places = np.unravel_index(page, [array.shape[axis] for axis in images])
        chosen = dict(zip(images, map(int, places), strict=True))
        leading = len(array.shape) - array.within
        # Over all leading axes that are channels, one plane after the other.
        channels = [axis for axis in self._channel_axes if axis < leading]
        rest = tuple(chosen.get(axis, slice(None)) for axis in range(leading, len(array.shape)))
        letters = [
            array.axes[axis] for axis in range(leading, len(array.shape)) if axis not in chosen
        ]
        to_end = [letters.index("Y"), letters.index("X")]
        planes = []
        for place in np.ndindex(*(array.shape[axis] for axis in channels)):
            index = {**chosen, **dict(zip(channels, place, strict=True))}
            plane = array.plane(tuple(index[axis] for axis in range(leading)))[rest]
            plane = np.moveaxis(plane, to_end, (0, 1))
            planes.append(plane.reshape(*self.size, -1))
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)

    def _check_channels(self) -> None:
        """Refuse a file with other channels, without reading them."""
        wanted, found = self._wanted, self.kind.channels
        may_be = {found, found + self._array.has_alpha, 1 if found == 3 else found}
        if wanted is not None and wanted not in may_be:
            raise self._of_others(found)

    def _of_channels(self, image: np.ndarray) -> np.ndarray:
        """The image with as many channels as are asked for."""
        wanted = self._wanted
        if self._array.has_alpha and image.shape[2] != wanted:
            alpha, image = image[:, :, -1], image[:, :, :-1]
            most = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "ui" else 1
            if (alpha != most).any():
                raise RefusedError("has transparency. Save it without.")
        if wanted in (None, image.shape[2]):
            return image
        if (image == image[:, :, :1]).all():
            return image[:, :, :1]
        raise self._of_others(image.shape[2])

    def _of_others(self, found: int) -> RefusedError:
        wanted = self._wanted
        return RefusedError(
            f"has {found} channel{'s' * (found > 1)}, and the model expects {wanted} "
            "(INPUT.CHANNELS). Give it images with the channels that it was trained on."
        )

    def _axes_of_channels(self) -> list[int]:
        """Those of the array that are the channels of an image."""
        array, wanted = self._array, self._wanted
        if any(array.axes.count(axis) != 1 for axis in "YX"):
            raise RefusedError(f"is an array {array.shape} of which it is unknown what is an image")
        named = [n for n, axis in enumerate(array.axes) if axis in _CHANNELS]
        others = self._others(named)
        if math.prod(array.shape[n] for n in named) > 1:
            return named
        for n in others:
            said_by_array = array.axes[n] == "Q" and array.shape[n] <= MOST_CHANNELS
            if array.shape[n] == wanted or (wanted is None and said_by_array):
                return [n]
        return named

    def _axes_of_images(self) -> list[int]:
        return self._others(self._channel_axes)

    def _others(self, channels: Sequence[int]) -> list[int]:
        axes = self._array.axes
        return [n for n in range(len(axes)) if axes[n] not in "YX" and n not in channels]


def kind_of(file_name: str, channels: int | None = None) -> Kind:
    """What a file holds; photographs are not decoded for it.

    Args:
        channels: that an image is to have, as of :class:`ArrayFile`.

    Raises:
        FileNotFoundError, OSError, ValueError: as :class:`ArrayFile`.
    """
    with explained(file_name):
        check_is_file(file_name)
        with open(file_name, "rb") as stream:
            head = stream.read(HEAD)
            stream.seek(0)
            if head and not (is_tiff(head) or is_numpy(head)):
                pages = PillowPages(stream, pillow_formats())
                has_colours = pages.has_colours
                return Kind(pages.channels_of_a_pixel, not has_colours, has_colours, pages.is_whole)
    with ArrayFile(file_name, channels) as file:
        return file.kind


def _opened(
    stream: BinaryIO, file_name: str, wanted: int | None, formats: Sequence[str] | None
) -> _Array:
    head = stream.read(HEAD)
    stream.seek(0)
    if not head:
        raise ValueError("it is empty")
    if is_tiff(head):
        return _of_tiff(stream)
    if is_numpy(head) and formats is None:
        return _of_numpy(stream, file_name, wanted)
    pages = PillowPages(stream, formats or pillow_formats())
    check_pixels(*pages.size(0))
    samples = pages.samples(0)
    has_alpha = samples.shape[2] in (2, 4)
    return _Array(
        "YXS", samples.shape, samples.dtype, lambda _: samples, 3, pages.has_colours, has_alpha
    )


def _of_numpy(stream: BinaryIO, file_name: str, wanted: int | None) -> _Array:
    """An array (H, W), (H, W, C) or (C, H, W), without reading it."""
    if os.path.isfile(file_name):
        values = np.load(file_name, mmap_mode="r", allow_pickle=False)
    else:
        values = np.load(stream, allow_pickle=False)
    if values.ndim == 2:
        axes = "YX"
    elif values.ndim == 3:
        ends = {"YXC": values.shape[2], "CYX": values.shape[0]}
        fitting = [axes for axes, count in ends.items() if count == wanted]
        fitting += [axes for axes, count in ends.items() if count <= MOST_CHANNELS]
        axes = fitting[0] if fitting else ""
    else:
        axes = ""
    if not axes:
        raise RefusedError(
            f"is an array {values.shape}: (height, width), (height, width, channels) or (channels, "
            f"height, width) are read, with at most {MOST_CHANNELS} channels if nobody says how "
            "many."
        )
    return _Array(axes, values.shape, values.dtype, lambda _: values, values.ndim)


def _of_tiff(stream: BinaryIO) -> _Array:
    """The first series of a TIFF file; what follows are previews, labels and the like."""
    has_name = isinstance(getattr(stream, "name", ""), str)
    file = TiffFile(stream, name=None if has_name else "nameless.tif")
    if not file.series:
        raise ValueError("it is cut off before its first page")
    series = file.series[0]
    page = series.keyframe
    check_data(page)
    trouble = ""
    if page.photometric == PHOTOMETRIC.PALETTE:
        trouble = "has a palette, whose numbers are no values. Save its colours as RGB."
    elif page.tags.valueof(ORIENTATION, 1) != 1:
        trouble = "is turned by a tag. Save it upright."
    is_grey = page.photometric in (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK)
    extra = page.samplesperpixel - COLOURS.get(page.photometric, 1)
    has_alpha = extra == 1 and ("ExtraSamples" not in page.tags or page.extrasamples[0] in _ALPHA)
    is_of_cameras = not is_grey or page.bitspersample <= 8
    return _Array(
        series.axes,
        series.shape,
        page.dtype,
        *_planes(series),
        has_colours=page.dtype.kind in "ub" and is_of_cameras and extra == has_alpha,
        has_alpha=has_alpha,
        trouble=trouble,
    )


def _planes(series: TiffPageSeries) -> tuple[Callable[[tuple[int, ...]], np.ndarray], int]:
    """A function of the places along the leading axes of a series, and how many axes it leaves."""
    keyframe = series.keyframe
    leading = series.shape[: len(series.shape) - len(keyframe.shape)]
    if set(series.axes[: len(leading)]) & set("YX"):  # rows are pages
        whole = cache(series.asarray)
        return lambda _: whole(), len(series.shape)

    def plane(index: tuple[int, ...]) -> np.ndarray:
        number = int(np.ravel_multi_index(index, leading)) if leading else 0
        if series.dataoffset is None:
            page = series[number]
            if page is None:
                raise ValueError(f"it has no page {number}")
            page = page.aspage()  # others know less of themselves
            check_data(page)
            return page.asarray(maxworkers=1)
        # One piece: maybe without entries of their own for its pages.
        handle = keyframe.parent.filehandle
        start = series.dataoffset + number * keyframe.nbytes
        if start + keyframe.nbytes > handle.size:
            raise ValueError("it is cut off")
        handle.seek(start)
        code = keyframe.parent.byteorder + keyframe.dtype.char
        values = handle.read_array(code, keyframe.size).reshape(keyframe.shape)
        return values.astype(keyframe.dtype, copy=False)  # in this machine's byte order

    return plane, len(keyframe.shape)
