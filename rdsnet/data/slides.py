"""Whole slides that OpenSlide reads: MIRAX, DICOM, Hamamatsu, Leica, Sakura, Ventana, Zeiss, ...

OpenSlide is two packages more, ``openslide-python`` and ``openslide-bin`` (LGPL-2.1). Without them
everything else is read as ever. Plain TIFF is left to tifffile, unless it cannot.
"""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType

import numpy as np
from PIL import Image

from rdsnet.data.pixels import RefusedError

INSTALL = "pip install openslide-python openslide-bin"
ENDINGS = frozenset((".mrxs", ".svslide", ".czi"))
"""Of slides that are no TIFF and a file each, beside which no part of them looks like an image."""

# Of which several files are a slide: images or resolutions. Any of them is named, not the folder.
_ENDINGS_OF_PARTS = (".dcm", ".vms", ".vmu")
# TIFF whose first page is not the slide, or holds it in tiles that overlap.
_ENDINGS_OF_TIFF = (".scn", ".bif")
# Of files that are images, but not of the slide: MIRAX's is a small picture in JPEG.
_NOT_THE_SLIDE = (".mrxs", *_ENDINGS_OF_TIFF)
# Formats, as OpenSlide calls them, that tifffile gives in full; NDPI where it is not one JPEG.
_LEFT_TO_TIFFFILE = ("aperio", "generic-tiff", "philips-tiff", "hamamatsu")


def has_slide_ending(file_name: str | os.PathLike) -> bool:
    """Whether a file is called like a slide that only OpenSlide reads, as it is meant."""
    return _ending(file_name) in (*ENDINGS, *_ENDINGS_OF_PARTS, *_ENDINGS_OF_TIFF)


def has_another_picture(file_name: str | os.PathLike) -> bool:
    """Whether what else would be read of a file called like this is not the slide."""
    return _ending(file_name) in _NOT_THE_SLIDE


def _ending(file_name: str | os.PathLike) -> str:
    return os.path.splitext(file_name)[1].lower()


def open_slide(file_name: str, is_last_resort: bool = False) -> SlideReader | None:
    """The reader of a file that is a slide; None: it is none, or is read without OpenSlide.

    Args:
        is_last_resort: whether nothing else can read it, so that no format is left to tifffile.

    Raises:
        RefusedError: it is called like a slide, and OpenSlide is not there or does not know it.
    """
    openslide, trouble = _openslide()
    vendor = openslide and openslide.OpenSlide.detect_format(file_name)
    is_tiff = vendor in _LEFT_TO_TIFFFILE and _ending(file_name) not in _ENDINGS_OF_PARTS
    if vendor and (is_last_resort or not is_tiff):
        return SlideReader(openslide.OpenSlide(file_name))
    if not vendor and has_slide_ending(file_name):
        if openslide is None:
            why = f" ({trouble})" if trouble else ""
            raise RefusedError(f"is a slide, which takes two more packages: {INSTALL}{why}")
        raise RefusedError(
            f"is called like a slide, and OpenSlide {openslide.__library_version__} knows no such "
            "format. Export it as a TIFF in tiles, or convert it to PNG or TIFF."
        )
    return None


def _openslide() -> tuple[ModuleType | None, str]:
    """The package, or None where it is not installed or lacks its library, and what is wrong."""
    try:
        return import_module("openslide"), ""
    except ModuleNotFoundError as error:
        # openslide-python says so, too, of the library of its own.
        return None, "" if error.name == "openslide" else str(error)
    except (ImportError, OSError) as error:  # the library is of another system
        return None, str(error)


class SlideReader:
    """The full resolution of a slide, a :class:`~rdsnet.data.windows.WindowReader`.

    Where nothing was scanned it is white.

    Args:
        slide: an ``openslide.OpenSlide``; closed by :meth:`close`.
    """

    def __init__(self, slide) -> None:
        self._slide = slide
        width, height = slide.dimensions
        self.shape = (height, width, 3)

    def read(self, window: tuple[int, int, int, int]) -> np.ndarray:
        x1, y1, x2, y2 = window
        pixels = self._slide.read_region((x1, y1), 0, (x2 - x1, y2 - y1))
        white = Image.new("RGBA", pixels.size, "white")
        rgb = np.asarray(Image.alpha_composite(white, pixels).convert("RGB"))
        return rgb[:, :, ::-1]

    def close(self) -> None:
        self._slide.close()
