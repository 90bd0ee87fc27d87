"""Which files are images: Pillow and tifffile are asked what they read.

A name tells by its ending, and a file without a telling name by its first bytes.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from PIL import Image, ImageFile
from tifffile import TIFF

from rdsnet.data import slides
from rdsnet.data.tiff import SIGNATURES

# What Pillow would open and should not, and what the message says about it.
_REFUSED = {
    "EPS": "is PostScript, a program rather than pixels. Convert it to PNG.",  # Ghostscript's
    "FITS": "is a FITS file, whose numbers are measurements. Convert it to PNG or TIFF.",
    "MCIDAS": "is a McIDAS file, whose numbers are measurements. Convert it to PNG or TIFF.",
    "PCD": "is a Photo CD file, of which a reduced copy could be read. Convert it to TIFF.",
    "XVTHUMB": "is a thumbnail of the program xv. Use the picture itself.",
}
# Endings that belong to a format which is opened as another.
_OPENED_AS = {"MPO": "JPEG"}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
HEAD = 32  # bytes by which formats are recognised


@cache
def pillow_formats() -> tuple[str, ...]:
    """What Pillow may open here: pixels and nothing else. TIFF is left to tifffile.

    Videos are OpenCV's; of some formats Pillow knows the name alone. With the package pillow-heif
    HEIC photos are among them.
    """
    if find_spec("pillow_heif"):
        import_module("pillow_heif").register_heif_opener()
    Image.init()

    def is_read(name: str, opener: object) -> bool:
        is_name_alone = isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile)
        is_video = Image.MIME.get(name, "").startswith("video/")
        return not (is_name_alone or is_video or name == "TIFF" or name in _REFUSED)

    return tuple(name for name, (opener, _) in Image.OPEN.items() if is_read(name, opener))


@cache
def _image_endings() -> frozenset[str]:
    """Endings of the files that can be read, with the dot and in lower case."""
    formats = pillow_formats()
    pillow = (
        ending
        for ending, name in Image.registered_extensions().items()
        if _OPENED_AS.get(name, name) in formats
    )
    return frozenset((*pillow, *(f".{ending}" for ending in TIFF.FILE_EXTENSIONS), *slides.ENDINGS))


def has_image_ending(path: str | os.PathLike) -> bool:
    return os.path.splitext(path)[1].lower() in _image_endings()


def why_refused(head: bytes) -> str | None:
    """What ``_REFUSED`` says of a file that begins like this."""
    for name, reason in _REFUSED.items():
        accepts = Image.OPEN[name][1]
        if accepts is not None and accepts(head[:16]):
            return reason
    return None


def is_tiff(head: bytes) -> bool:
    return head.startswith(SIGNATURES)


def is_numpy(head: bytes) -> bool:
    """An array as ``numpy.save`` writes it."""
    return head.startswith(b"\x93NUMPY")


def is_heif(head: bytes) -> bool:
    """HEIC photos and their relatives, which need the package pillow-heif."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def has_image_content(path: str | os.PathLike) -> bool:
    """Whether a file is an image, whatever its name: by signature and, where it fits, header.

    Formats without a signature are known by their endings alone.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
            if is_tiff(head) or is_heif(head):
                return True
            formats = [
                name
                for name in pillow_formats()
                if (accepts := Image.OPEN[name][1]) is not None and accepts(head[:16])
            ]
            if formats:
                file.seek(0)
                Image.open(file, formats=formats)
            return bool(formats)
    except Image.DecompressionBombError:  # an image, which will be refused
        return True
    except Exception:  # whatever Pillow makes of foreign bytes
        return False
