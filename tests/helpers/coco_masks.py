"""Masks of the small data set of data/conftest.py, in COCO's codings."""

import numpy as np
import pycocotools.mask as mask_util

HEIGHT, WIDTH = 40, 60


def mask_of(x: int, y: int, width: int, height: int) -> np.ndarray:
    """(40, 60) uint8 mask of a rectangle given in whole pixels."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def compressed(mask: np.ndarray) -> dict:
    rle = mask_util.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict:
    """Run lengths counted by hand: column by column, background first."""
    counts, current, length = [], 0, 0
    for pixel in mask.T.reshape(-1).tolist():
        if pixel == current:
            length += 1
        else:
            counts.append(length)
            current, length = pixel, 1
    return {"size": list(mask.shape), "counts": counts + [length]}
