"""Reading an image: one reader for training, checks, prediction and the page.

TIFF is read by tifffile (:mod:`rdsnet.data.tiff`), all else by Pillow (:mod:`rdsnet.data.pillow`).
A file is recognised by its content; its name may be any.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from rdsnet.data.findings import printable
from rdsnet.data.image_formats import HEAD, is_heif, is_tiff, pillow_formats, why_refused
from rdsnet.data.pillow import PillowPages
from rdsnet.data.pixels import RefusedError
from rdsnet.data.slides import has_another_picture, has_slide_ending
from rdsnet.data.tiff import TiffPages

_IS_SLIDE = (
    "is called like a slide. Slides are read in tiles alone, by rdsnet predict --tile auto; for "
    "all else convert it, or a part of it, to PNG or TIFF."
)


def limit_pixels(pixels: int) -> None:
    """Refuse to read images with more pixels, in this process and those it starts by fork.

    Raises:
        ValueError: for a limit below 1.
    """
    if pixels < 1:
        raise ValueError(f"INPUT.MAX_PIXELS must be at least 1, got {pixels}")
    Image.MAX_IMAGE_PIXELS = -(-pixels // 2)  # Pillow warns from there on and refuses twice as many


def read_image(file_name: str, format: str, page: int = 0) -> np.ndarray:
    """Read an image as Detectron2 does, but as a person expects it where Pillow does not.

    - More than 8 bits per channel, grey or colour: 0 .. 2^n - 1 becomes 0 .. 255, where n is the
      smallest of 8, 10, 12, 14 and 16 bits (24, 32) that hold the image. (Pillow makes grey above
      255 white and keeps the upper 8 of 16 bits of colours; and cameras put 12 bits into 16.)
    - Transparency: what is transparent is white. (Pillow shows colours that nobody has seen.)

    Grey, palette and CMYK images are converted to ``format``, EXIF rotation is applied.

    Args:
        file_name: path of the image.
        format: "RGB", "BGR" or another format of Detectron2's ``read_image``.
        page: of a file with several pages, from 0.

    Returns:
        (H, W, C) uint8.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is a folder, or may not be read.
        ValueError: the file is not an image, is cut off, or has pixels whose meaning is not known.
    """
    with ImageFile(file_name) as file:
        return file.read(format, page)


class ImageFile:
    """An open image file, a context manager: its pages are read one at a time.

    Args:
        file_name: its path.
        formats: what Pillow may open; None: all that it reads safely.
        stream: its content, if it is no file of this machine: the name then stands in messages
            alone. Closed at the end.

    Raises:
        FileNotFoundError, OSError, ValueError: as :func:`read_image`, here and in all methods.
    """

    def __init__(
        self,
        file_name: str,
        formats: Sequence[str] | None = None,
        stream: BinaryIO | None = None,
    ) -> None:
        self.file_name = file_name
        self._stream = stream
        with explained(self.file_name):
            if stream is None:
                check_is_file(file_name)
                self._stream = PathManager.open(file_name, "rb")
            self._pages = _open_pages(self._stream, formats or pillow_formats(), file_name)

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def __len__(self) -> int:
        """The number of pages; not known without looking through the file."""
        with explained(self.file_name):
            return len(self._pages)

    def check_whole(self) -> None:
        """Raise ValueError for a file that is cut off after one of its pages."""
        with explained(self.file_name):
            self._pages.check_whole()

    @property
    def has_side_images(self) -> bool:
        """Whether pages after the first are previews, depth maps or layers of it."""
        return self._pages.has_side_images

    @property
    def channels(self) -> int:
        """How many channels of one image the pages are, as far as the file says; 1: none are."""
        with explained(self.file_name):
            return self._pages.channels

    def pixels(self, page: int = 0) -> int:
        """The number of pixels of a page, from its header."""
        with explained(self.file_name):
            width, height = self._pages.size(page)
            return width * height

    def read(self, format: str, page: int = 0) -> np.ndarray:
        """As :func:`read_image`."""
        with explained(self.file_name):
            check_pixels(*self._pages.size(page))
            return detection_utils.convert_PIL_to_numpy(self._pages.image(page), format)


@contextmanager
def explained(file_name: str, what: str = "image") -> Iterator[None]:
    """Inside, errors of reading a file become those of :func:`read_image`, in words.

    Args:
        file_name: of the file.
        what: it is, as the message calls it.
    """
    name = f"{what} {printable(file_name)}"
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name} does not exist{_why_missing(file_name)}") from error
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{name} is a folder, not a file.") from error
    except PermissionError as error:
        raise PermissionError(
            f"{name} may not be read: you lack the permission for the file or its folder."
        ) from error
    except RefusedError as error:
        raise RefusedError(f"{name} {error}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} is refused: {error} If you trust it, set INPUT.MAX_PIXELS in the config to a "
            "larger number."
        ) from error
    except Exception as error:  # the libraries have no error of their own for damaged files
        raise ValueError(
            f"{name} cannot be read: {str(error) or type(error).__name__}. The file is damaged or "
            "not an image: replace it, or remove it from the dataset."
        ) from error


def check_is_file(file_name: str) -> None:
    """Refuse what is neither file nor folder, such as a pipe: reading it might never end."""
    if os.path.exists(file_name) and not os.path.isdir(file_name):
        if not stat.S_ISREG(os.stat(file_name).st_mode):
            raise RefusedError("is no regular file. Copy its content into one.")


def _why_missing(file_name: str) -> str:
    if os.path.islink(file_name):
        return (
            f": it is a link to {printable(os.readlink(file_name))}, which is not there. Fetch the "
            "files that the links stand for, or mount their folder."
        )
    return ". Check the image folder of the dataset."


def check_pixels(width: int, height: int) -> None:
    """As Pillow does when it opens a file, for readers and pages that it has not seen.

    Raises:
        PIL.Image.DecompressionBombError: there are more than :func:`limit_pixels` allows.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > 2 * limit:
        raise Image.DecompressionBombError(
            f"it has {width} x {height} pixels, at most {2 * limit} are taken."
        )


def _open_pages(
    stream: BinaryIO, formats: Sequence[str], file_name: str
) -> TiffPages | PillowPages:
    head = stream.read(HEAD)
    stream.seek(0)
    if not head:
        raise ValueError("it is empty")
    if has_another_picture(file_name):
        raise RefusedError(_IS_SLIDE)
    if is_tiff(head):
        return TiffPages(stream)
    try:
        return PillowPages(stream, formats)
    except UnidentifiedImageError:
        if is_heif(head):
            raise RefusedError(
                "is a HEIC photo, which takes one more package: pip install pillow-heif"
            ) from None
        if reason := why_refused(head):
            raise RefusedError(reason) from None
        if has_slide_ending(file_name):
            raise RefusedError(_IS_SLIDE) from None
        raise ValueError("its content is of no known format") from None
