"""Whole slides that OpenSlide reads: MIRAX, DICOM, Hamamatsu, Leica, Sakura, Ventana, Zeiss, ...

OpenSlide is two packages more, ``openslide-python`` and ``openslide-bin`` (LGPL-2.1): they are
loaded where a slide is read and not before. What tifffile gives in full, it reads.
"""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType

import numpy as np
from PIL import Image

from rdsnet.data.pixels import RefusedError

INSTALL = "pip install openslide-python openslide-bin"
ENDINGS = frozenset((".mrxs", ".vms", ".vmu", ".svslide", ".czi"))
"""Of slides that are no TIFF, one file per slide; other files may belong to it."""

# One file per resolution: any of them is the slide. So in a folder they are no images.
_ENDINGS_OF_LEVELS = (".dcm",)
# TIFF whose first page is not the slide, or is not all of it where it lies.
_ENDINGS_OF_TIFF = (".ndpi", ".scn", ".bif")
# Formats, as OpenSlide calls them, that are left to tifffile.
_READ_AS_TIFF = ("aperio", "generic-tiff", "philips-tiff")


def has_slide_ending(file_name: str | os.PathLike) -> bool:
    """Whether a file is called like a slide that only OpenSlide reads."""
    ending = os.path.splitext(file_name)[1].lower()
    return ending in ENDINGS or ending in _ENDINGS_OF_LEVELS or ending in _ENDINGS_OF_TIFF


def open_slide(file_name: str) -> SlideReader | None:
    """The reader of a file that is a slide; None: it is none, or is read without OpenSlide.

    Raises:
        RefusedError: it is called like a slide, and OpenSlide is not installed or does not know it.
    """
    openslide = _openslide()
    vendor = openslide and openslide.OpenSlide.detect_format(file_name)
    if vendor and vendor not in _READ_AS_TIFF:
        return SlideReader(openslide.OpenSlide(file_name))
    if not vendor and has_slide_ending(file_name):
        if openslide is None:
            raise RefusedError(f"is a slide, which takes two more packages: {INSTALL}")
        raise RefusedError(
            "is called like a slide, and OpenSlide knows no such format. Export it as a TIFF in "
            "tiles, or, if it is an image of another kind, rename it."
        )
    return None


def _openslide() -> ModuleType | None:
    """The package; None: it is not installed, or lacks its library."""
    try:
        return import_module("openslide")
    except ImportError:
        return None


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
