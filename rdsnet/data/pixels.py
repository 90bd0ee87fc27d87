"""From pixels as files have them, of any depth and with transparency, to 8 bits as people see them.

Images are Pillow's; an *opaque* one has no transparency, and 8 bits per channel.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

ORIENTATION = 0x0112  # the EXIF tag, and the TIFF tag of that meaning
# The depths that cameras and scanners have, whatever the depth of the file; 24 and 32 bits are
# those of files that were summed or converted.
_DEPTHS = (8, 10, 12, 14, 16, 24, 32)


class RefusedError(ValueError):
    """A file that is whole, but whose meaning is not known.

    The readers' message begins after the name of the file; :mod:`rdsnet.data.images` puts it there
    and keeps the reader's error as ``__cause__``.
    """


def eight_bit(levels: np.ndarray) -> np.ndarray:
    """Levels 0 .. 2^n - 1 as 0 .. 255, n being the smallest of ``_DEPTHS`` that holds them all.

    Cameras put 12 bits into files of 16: the image says what its depth is, not the file. All
    channels are on one scale, so that colours stay.

    Args:
        levels: integers of any type and shape.

    Returns:
        The same shape, uint8: the upper 8 of n bits.

    Raises:
        RefusedError: there are negative levels, or such as need more than 32 bits.
    """
    bits = level_bits(int(levels.min(initial=0)), int(levels.max(initial=0)))
    return levels.astype(np.uint8) if bits == 8 else (levels >> (bits - 8)).astype(np.uint8)


def level_bits(least: int, most: int) -> int:
    """The smallest of ``_DEPTHS`` that holds all levels of an image.

    Args:
        least, most: of its levels.

    Raises:
        RefusedError: as :func:`eight_bit`.
    """
    if least < 0:
        raise RefusedError(
            f"has negative levels (from {least}), whose range is unknown. Convert it to 8 or 16 "
            "bit without sign."
        )
    bits = next((n for n in _DEPTHS if most < 2**n), None)
    if bits is None:
        raise RefusedError(f"has levels up to {most}. Convert it to 8 or 16 bit.")
    return bits


def is_floating(kind: str) -> RefusedError:
    """The refusal of pixels that are no whole numbers, which ``kind`` names: "floating-point"."""
    return RefusedError(f"has {kind} pixels, whose range is unknown. Convert it to 8 or 16 bit.")


def opaque_image(colours: np.ndarray, alpha: np.ndarray | None = None) -> Image.Image:
    """An opaque image from its channels; what is transparent is white.

    Args:
        colours: (H, W) or (H, W, 1) grey, or (H, W, 3) RGB, uint8, not multiplied by alpha.
        alpha: (H, W) uint8, 0 = transparent; None: opaque.
    """
    if colours.shape[2:] == (1,):
        colours = colours[..., 0]
    image = Image.fromarray(np.ascontiguousarray(colours))
    if alpha is None:
        return image
    image = image.convert("RGB")
    image.putalpha(Image.fromarray(np.ascontiguousarray(alpha)))
    return on_white(image)


def on_white(image: Image.Image) -> Image.Image:
    """RGB of an image with transparency, laid onto white."""
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image, turned as its EXIF or TIFF orientation says; other numbers than 2 to 8: as is."""
    if orientation not in range(2, 9):
        return image
    image.getexif()[ORIENTATION] = orientation
    return ImageOps.exif_transpose(image)
