"""Reading a picture: one reader for training, checks, prediction and the page."""

from __future__ import annotations

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps


def limit_pixels(pixels: int) -> None:
    """Refuse to read images with more pixels, in this process and those it starts by fork.

    Raises:
        ValueError: for a limit below 1.
    """
    if pixels < 1:
        raise ValueError(f"INPUT.MAX_PIXELS must be at least 1, got {pixels}")
    Image.MAX_IMAGE_PIXELS = -(-pixels // 2)  # Pillow warns from there on and refuses twice as many


def read_image(file_name: str, format: str) -> np.ndarray:
    """Read an image as Detectron2 does, but as a person expects it where Pillow does not.

    - 16-bit grey: 0 .. 2^n - 1 becomes 0 .. 255, where n is the smallest of 8, 10, 12, 14 and 16
      bits that hold the image. (Pillow makes all above 255 white; and cameras put 12 bits into 16.)
    - Transparency: what is transparent is white. (Pillow shows colours that nobody has seen.)

    Grey, palette and CMYK images are converted to ``format``, EXIF rotation is applied.

    Args:
        file_name: path of the image.
        format: "RGB", "BGR" or another format of Detectron2's ``read_image``.

    Returns:
        (H, W, C) uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an image, is cut off, or has floating-point pixels.
    """
    try:
        with PathManager.open(file_name, "rb") as stream, Image.open(stream) as image:
            is_floating = image.mode.startswith("F")
            if image.mode.startswith("I"):
                grey = np.asarray(ImageOps.exif_transpose(image)).astype(np.int64)
                eight_bit = Image.fromarray(_eight_bit(grey))
                return detection_utils.convert_PIL_to_numpy(eight_bit, format)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                opaque = _on_white(ImageOps.exif_transpose(image))
                return detection_utils.convert_PIL_to_numpy(opaque, format)
        if not is_floating:
            return detection_utils.read_image(file_name, format)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"image {file_name} does not exist. Check the image folder of the dataset."
        ) from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"image {file_name} is refused: {error} If you trust it, set "
            "INPUT.MAX_PIXELS in the config to a larger number."
        ) from error
    except Exception as error:  # Pillow has no error of its own for damaged files
        raise ValueError(
            f"image {file_name} cannot be read: {error}. The file is damaged or not an image: "
            "replace it, or remove it from the dataset."
        ) from error
    raise ValueError(
        f"image {file_name} has floating-point pixels, whose range is unknown. Convert it to 8 or "
        "16 bit."
    )


def _eight_bit(grey: np.ndarray) -> np.ndarray:
    """Grey levels of up to 16 bits as 0 .. 255, see :func:`read_image`."""
    grey = grey.clip(0, 65535)
    most = int(grey.max(initial=0))
    bits = next(n for n in (8, 10, 12, 14, 16) if most < 2**n)
    return (grey >> (bits - 8)).astype(np.uint8)


def _on_white(image: Image.Image) -> Image.Image:
    """RGB of an image with transparency, laid onto white."""
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")
