"""TIFF files for tests: by tifffile, and byte by byte where a layout is rare or wrong."""

from __future__ import annotations

import io
import struct

import numpy as np
import tifffile

SHORT, LONG = 3, 4


def written(array: np.ndarray, **options) -> bytes:
    """A file as tifffile writes it."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **{"metadata": None, **options})
    return stream.getvalue()


def by_hand(
    width: int, height: int, data: bytes, tags: dict[int, tuple], order: str = "<"
) -> bytes:
    """A file of one strip.

    Args:
        data: of the strip.
        tags: number -> values, beside those of size and place; None: without a usual one.
        order: "<" little-endian, ">" big-endian.
    """
    usual = {256: (width,), 257: (height,), 258: (8,), 259: (1,), 262: (1,), 277: (1,)}
    start = 8
    usual |= {273: (start,), 278: (height,), 279: (len(data),)} | tags
    entries = sorted((tag, values) for tag, values in usual.items() if values is not None)
    after = start + len(data) + len(data) % 2
    far = after + 2 + 12 * len(entries) + 4  # values that are longer than their entry
    directory, extra = struct.pack(f"{order}H", len(entries)), b""
    for tag, values in entries:
        kind = SHORT if max(values) < 2**16 else LONG
        packed = struct.pack(f"{order}{len(values)}{'H' if kind == SHORT else 'L'}", *values)
        if len(packed) > 4:
            packed, extra = struct.pack(f"{order}L", far + len(extra)), extra + packed
        directory += struct.pack(f"{order}HHL", tag, kind, len(values)) + packed.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    body = data + b"\0" * (len(data) % 2)
    return mark + struct.pack(f"{order}L", after) + body + directory + b"\0" * 4 + extra
