"""Image files that Pillow reads: photographs, animations, images of any depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import BinaryIO

import cv2
import imagecodecs
import numpy as np
from PIL import Image

from rdsnet.data.pixels import (
    ORIENTATION,
    RefusedError,
    eight_bit,
    is_floating,
    on_white,
    opaque_image,
    upright,
)

# Their further images are previews, depth maps and other shots beside the one that is meant.
_SIDE_IMAGES = ("HEIF", "MPO")
_LAYERED = "PSD"  # its further images are layers of the first
_PLAIN = ("L", "LA", "RGB", "RGBA", "F")  # modes whose numbers are those of the pixels
_TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")
_PNG_DEPTH = 24  # place of the byte in the file that says how many bits a sample has


class PillowPages:
    """The pages of an open image file: frames of an animation, sides of a stereo photograph.

    Args:
        stream: the file, at its beginning.
        formats: what Pillow may open.

    Raises:
        PIL.UnidentifiedImageError: it is none of them.
    """

    channels = 1  # the pages are no channels of one image

    def __init__(self, stream: BinaryIO, formats: Sequence[str]) -> None:
        self._stream, self._formats = stream, formats
        self._image = Image.open(stream, formats=formats)
        self._main = self._image.tell()  # what programs show; in HEIC files it may be any
        self.has_side_images = self._image.format in _SIDE_IMAGES

    def __len__(self) -> int:
        return 1 if self._image.format == _LAYERED else getattr(self._image, "n_frames", 1)

    def check_whole(self) -> None:
        """All pages are known from the beginning: reading them tells."""

    def size(self, number: int) -> tuple[int, int]:
        """Width and height of a page, before it is turned. Page 0 is the main image."""
        before_main = 0 < number <= self._main
        frame = number - 1 if before_main else number or self._main
        if frame < self._image.tell():  # going back, Pillow loses its way in some files
            self._stream.seek(0)
            self._image = Image.open(self._stream, formats=self._formats)
        if frame != self._image.tell():
            self._image.seek(frame)
        return self._image.size

    def image(self, number: int) -> Image.Image:
        """A page, opaque, upright and of 8 bits per channel."""
        self.size(number)  # goes to the page
        return upright(self._opaque(), _orientation(self._image))

    def samples(self, number: int) -> np.ndarray:
        """A page as numbers of the file, upright: (H, W, C), of the type that it has.

        Colours of palettes and of other models than RGB are RGB; transparency is the last channel.
        """
        self.size(number)  # goes to the page
        image, orientation = self._image, _orientation(self._image)
        samples = self._deep_samples()
        if samples is not None:
            if orientation in range(2, 9):
                raise RefusedError("is turned by a tag, and of more than 8 bits. Save it upright.")
            return samples
        if image.mode == "1":
            image = image.convert("L")
        elif image.mode not in _PLAIN and not image.mode.startswith("I"):
            has_alpha = image.mode in _TRANSPARENT or "transparency" in image.info
            image = image.convert("RGBA" if has_alpha else "RGB")
        samples = np.asarray(upright(image, orientation))
        return samples if samples.ndim == 3 else samples[:, :, None]

    @property
    def has_colours(self) -> bool:
        """Whether the main image is what cameras and programs for photographs write.

        That is colours of any depth, and grey of 8 bits.
        """
        return not self._image.mode.startswith(("F", "I"))

    @property
    def is_whole(self) -> bool:
        """Whether the numbers of the main image are whole."""
        return not self._image.mode.startswith("F")

    @property
    def channels_of_a_pixel(self) -> int:
        """1 for grey, 3 for colours, whatever the model; transparency does not count."""
        return 1 if self._image.mode in ("1", "L", "LA", "La") or not self.has_colours else 3

    def _opaque(self) -> Image.Image:
        """The same, not yet turned."""
        image = self._image
        if image.mode.startswith("F"):
            raise is_floating("floating-point")
        samples = self._deep_samples()
        if samples is not None:
            count = 3 if samples.shape[-1] >= 3 else 1
            alpha = eight_bit(samples[..., count]) if samples.shape[-1] > count else None
            return opaque_image(eight_bit(samples[..., :count]), alpha)
        transparent = image.info.get("transparency")
        if image.mode.startswith("I"):
            grey = np.asarray(image)
            alpha = None if transparent is None else (grey != transparent) * np.uint8(255)
            return opaque_image(eight_bit(grey), alpha)
        if image.mode in _TRANSPARENT or transparent is not None:
            return on_white(image)
        return image

    def _deep_samples(self) -> np.ndarray | None:
        """(H, W, C) uint16 of colour images of more than 8 bits, which Pillow would cut to 8.

        Other libraries decode them. C is 2 (grey and alpha), 3 or 4; None: Pillow loses nothing.
        """
        image = self._image
        decode = self._deep_decoder() if image.mode in ("RGB", "RGBA", "LA") else None
        if decode is None:
            return None
        if image.format != "PPM":  # there Pillow is slow
            image.load()  # finds damages that others pass over
        if image.tell() > 0:
            raise RefusedError("has pages of more than 8 bits. Save them as files of their own.")
        self._stream.seek(0)
        samples = decode(self._stream.read())
        return samples if samples.dtype != np.uint8 else None

    def _deep_decoder(self) -> Callable[[bytes], np.ndarray] | None:
        image = self._image
        if image.format == "JPEG2000":  # of any depth: it shows when it is decoded
            return imagecodecs.jpeg2k_decode
        if image.format == "PNG" and self._byte(_PNG_DEPTH) == 16:
            return imagecodecs.png_decode
        if image.format == "PPM" and isinstance(arguments := image.tile[0].args, tuple):
            most = arguments[1]
            return partial(_decode_pnm, most=most) if most > 255 else None
        return None

    def _byte(self, place: int) -> int:
        position = self._stream.tell()
        self._stream.seek(place)
        byte = self._stream.read(1)[0]
        self._stream.seek(position)
        return byte


def _decode_pnm(data: bytes, most: int) -> np.ndarray:
    """(H, W, 3) uint16; ``most``, the file's white, becomes 65535."""
    samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None:
        raise ValueError("it is cut off")
    samples = samples[..., ::-1].astype(np.uint32)
    return ((samples * 65535 + most // 2) // most).astype(np.uint16)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged entry beside a whole image
        return 1
