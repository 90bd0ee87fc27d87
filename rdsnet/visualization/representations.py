"""Representations of pixels and objects in three dimensions (Fig. 3 of the paper).

Both live in the same space of D dimensions. Principal components of the pixels, and of the objects
with as much weight, lead to 3 dimensions; after L2 normalisation a representation is a point on the
unit sphere, and the point a colour. Pixels of one object should have one colour, and objects the
colour of their pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Reduced(NamedTuple):
    """Unit vectors: pixels (h, w, 3) and objects (N, 3)."""

    pixels: np.ndarray
    objects: np.ndarray


def reduce_representations(psi: np.ndarray, phi: np.ndarray) -> Reduced:
    """PCA to 3 dimensions and L2 normalisation.

    The mean is not subtracted when representations are projected: a mask is the sign of a dot
    product, so directions from the origin are what has a meaning.

    Args:
        psi: (D, h, w) pixel representations.
        phi: (N, D) foreground representations of objects.
    """
    pixels = psi.reshape(len(psi), -1).T.astype(np.float64)
    objects = phi.astype(np.float64)
    spread = np.cov(pixels, rowvar=False)
    spread /= max(np.trace(spread), 1e-12)
    if len(objects) > 1:
        between = np.cov(objects, rowvar=False)
        spread = spread + between / max(np.trace(between), 1e-12)
    _, axes = np.linalg.eigh(spread)
    axes = np.pad(axes[:, ::-1][:, :3], ((0, 0), (0, max(0, 3 - len(axes)))))
    # Eigenvectors have no sign of their own; this choice makes pictures repeatable.
    axes = axes * np.where((pixels @ axes).sum(0) < 0, -1, 1)
    return Reduced(_unit(pixels @ axes).reshape(*psi.shape[1:], 3), _unit(objects @ axes))


def colors(unit_vectors: np.ndarray) -> np.ndarray:
    """Points (..., 3) of the unit sphere as RGB, 0..1."""
    return (unit_vectors + 1) / 2


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(length, 1e-12)
