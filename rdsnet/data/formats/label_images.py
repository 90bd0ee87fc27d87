"""Pictures of masks: label images, in which every object has its number, and one per object."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tifffile import TiffFile

from rdsnet.data.formats.outlines import positions_rle
from rdsnet.data.image_formats import is_tiff, pillow_formats
from rdsnet.data.images import explained

# Where the numbers of a label image may be kept in without loss. (JPEG changes them.)
ARRAY = ".npy"
_LOSSY = ("JPEG", "MPO", "WEBP")
_CHANNELS = (3, 4)


def read_labels(path: str | os.PathLike, *, palette_colours: bool = False) -> np.ndarray:
    """The number of the object of every pixel.

    Numbers of any depth, places in a palette, or colours (0xRRGGBB). Black and transparent pixels,
    and negative numbers, are background.

    Args:
        path: of the file.
        palette_colours: take the colours of a palette instead of the places in it.

    Returns:
        (H, W) int64, 0 = background.

    Raises:
        FileNotFoundError, OSError, ValueError: it cannot be read, or has no such numbers.
    """
    with explained(os.fspath(path), "mask"):
        labels = _array(Path(path), palette_colours=palette_colours)
        if labels.dtype.kind == "f":
            if not (np.isfinite(labels).all() and (labels == np.round(labels)).all()):
                raise ValueError("it has numbers with a fractional part")
        elif labels.dtype.kind not in "biu":
            raise ValueError(f"it holds {labels.dtype}, not numbers")
        labels = labels.astype(np.int64)
        if labels.ndim == 3 and labels.shape[2] in _CHANNELS:
            labels = _colours(labels)
        labels = labels.reshape([side for side in labels.shape if side > 1] or [1, 1])
        if labels.ndim == 1:
            raise ValueError("it is one row or column of pixels")
        if labels.ndim != 2:
            raise ValueError(f"it has {labels.ndim} dimensions {labels.shape}, expected two")
        return np.maximum(labels, 0)


def objects_of(labels: np.ndarray) -> Iterator[tuple[int, dict]]:
    """Every number of a label image but 0, in order, and its RLE; parts of one stay one object.

    Args:
        labels: (H, W) int64.
    """
    flat = labels.ravel(order="F")
    positions = np.flatnonzero(flat)
    values = flat[positions]
    order = np.argsort(values, kind="stable")  # positions of one number stay ascending
    positions, values = positions[order], values[order]
    first = np.flatnonzero(np.diff(values, prepend=-1))
    for begin, end in zip(first, np.append(first[1:], len(values))):
        yield int(values[begin]), positions_rle(positions[begin:end], labels.shape)


def label_objects(path: str) -> tuple[tuple[int, int], list[tuple[int, dict]]]:
    """Height and width of a label image, and its objects; see :func:`read_labels`."""
    labels = read_labels(path)
    return labels.shape, list(objects_of(labels))


def object_in(path: str) -> tuple[tuple[int, int], list[tuple[int, dict]]]:
    """Height and width of a picture of one object, and that object, if there is any.

    It is what is brighter than half of the brightest.

    Raises:
        FileNotFoundError, OSError, ValueError: it cannot be read.
    """
    with explained(path, "mask"):
        values = _array(Path(path), palette_colours=True, is_lossy_good=True)
        if values.ndim == 3:
            colours = values[..., :3]
            if values.shape[2] in (2, 4) and colours.any():
                colours = colours * (values[..., -1:] > 0)
            values = colours.max(axis=2)
        if values.ndim != 2:
            raise ValueError(f"it has {values.ndim} dimensions {values.shape}, expected two")
        mask = values > values.max(initial=0) / 2
        positions = np.flatnonzero(mask.ravel(order="F"))
        found = [(1, positions_rle(positions, mask.shape))] if len(positions) else []
        return mask.shape, found


def _array(path: Path, *, palette_colours: bool, is_lossy_good: bool = False) -> np.ndarray:
    """The values as they are stored, (H, W) or (H, W, C)."""
    if path.suffix.lower() == ARRAY:
        return np.load(path, allow_pickle=False)
    with open(path, "rb") as stream:
        head = stream.read(8)
        stream.seek(0)
        if is_tiff(head):
            with TiffFile(stream) as tiff:
                _check_pixels(tiff.series[0].size if tiff.series else 0)
                return tiff.asarray(key=0) if len(tiff.pages) == 1 else tiff.asarray()
        with Image.open(stream, formats=pillow_formats()) as image:
            if image.format in _LOSSY and not is_lossy_good:
                raise ValueError(
                    f"it is {image.format}, which does not keep numbers as they are: save label "
                    "images as PNG or TIFF"
                )
            if image.mode in ("PA", "LA", "La", "RGBa", "CMYK", "YCbCr"):
                return np.asarray(image.convert("RGBA"))
            if image.mode == "P" and palette_colours:
                return np.asarray(image.convert("RGB"))
            return np.asarray(image)


def _check_pixels(number: int) -> None:
    """As Pillow does for the files that it opens."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and number > 2 * limit:
        raise Image.DecompressionBombError(
            f"it has {number} pixels, at most {2 * limit} are taken."
        )


def _colours(labels: np.ndarray) -> np.ndarray:
    """(H, W) int64 0xRRGGBB of (H, W, 3 or 4); 0 where alpha is."""
    packed = (labels[..., 0] << 16) + (labels[..., 1] << 8) + labels[..., 2]
    return np.where(labels[..., 3] > 0, packed, 0) if labels.shape[2] == 4 else packed
