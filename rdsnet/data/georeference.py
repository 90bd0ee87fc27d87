"""Where on a map an image lies: the transform and the coordinate system of a GeoTIFF.

Read from its tags (GeoTIFF 1.1, OGC 19-008) by tifffile alone. Points are continuous pixel
coordinates, x to the right and y down: (0, 0) is the upper left corner of the upper left pixel.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from tifffile import TiffFile, TiffFileError, TiffPage

from rdsnet.data.image_formats import HEAD, is_tiff

_SCALE, _TIEPOINT, _TRANSFORM, _KEYS, _DOUBLES, _TEXTS = 33550, 33922, 34264, 34735, 34736, 34737
# The types of their values, as tifffile writes them.
_TYPES = {_SCALE: "d", _TIEPOINT: "d", _TRANSFORM: "d", _KEYS: "H", _DOUBLES: "d", _TEXTS: "s"}
# Keys of the directory.
_MODEL, _RASTER, _CITATION = 1024, 1025, 1026
_GEOGRAPHIC, _PROJECTED = 2048, 3072
_GEOGRAPHIC_CITATION, _PROJECTED_CITATION = 2049, 3073
_IS_GEOGRAPHIC, _IS_POINT = 2, 2
_UNDEFINED = (0, 32767)
# Its axes are longitude and latitude, as GeoTIFF and GeoJSON have them; EPSG:4326 turns them round.
_WGS84, _CRS84 = 4326, "urn:ogc:def:crs:OGC:1.3:CRS84"


@dataclass(frozen=True)
class GeoReference:
    """Where an image lies.

    Attributes:
        transform: a, b, c, d, e, f: the map's x = a * column + b * row + c, y = d * column +
            e * row + f.
        crs: name of the coordinate system, such as "urn:ogc:def:crs:EPSG::32633"; "": unnamed.
        tags: (code, type, count, value, True) of the file, as ``tifffile`` writes ``extratags``.
    """

    transform: tuple[float, float, float, float, float, float]
    crs: str
    tags: tuple[tuple, ...]

    def on_map(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) map coordinates of points (N, 2) in pixels."""
        a, b, c, d, e, f = self.transform
        return points @ np.array([[a, d], [b, e]]) + (c, f)


def read_georeference(path: str | os.PathLike) -> GeoReference | None:
    """That of the first page of a file; None: it is no GeoTIFF, or has control points alone.

    Raises:
        OSError: the file cannot be read.
        ValueError: its tags are damaged.
    """
    with open(path, "rb") as stream:
        if not is_tiff(stream.read(HEAD)):
            return None
        stream.seek(0)
        try:
            with TiffFile(stream) as file:
                return _of_page(file.pages[0])
        except (TiffFileError, IndexError, TypeError) as error:
            raise ValueError(
                f"the map coordinates of '{os.fspath(path)}' cannot be read: {error}. "
                "--coordinates pixels does without them."
            ) from error


def _of_page(page: TiffPage) -> GeoReference | None:
    values = {code: page.tags.valueof(code) for code in _TYPES}
    keys = _keys(values[_KEYS] or (), values[_TEXTS] or "")
    half = 0.5 if keys.get(_RASTER) == _IS_POINT else 0.0  # of a pixel, to its centre
    if values[_TRANSFORM] is not None:
        a, b, _, c, d, e, _, f = values[_TRANSFORM][:8]
    elif values[_SCALE] is not None and values[_TIEPOINT] is not None:
        a, scale_y = values[_SCALE][:2]
        column, row, _, x, y, _ = values[_TIEPOINT][:6]
        b, d, e = 0.0, 0.0, -scale_y
        c, f = x - a * column, y - e * row
    else:
        return None
    c, f = c - half * (a + b), f - half * (d + e)
    tags = []
    for code, type_ in _TYPES.items():
        value = values[code]
        if value is not None:
            tags.append((code, type_, 0 if type_ == "s" else len(value), value, True))
    transform = tuple(float(number) for number in (a, b, c, d, e, f))
    return GeoReference(transform, _crs(keys), tuple(tags))


def _keys(directory: tuple[int, ...], texts: str) -> dict[int, int | str]:
    """Those of the GeoKeyDirectory that are numbers or texts."""
    keys = {}
    for start in range(4, len(directory) - 3, 4):
        key, place, count, value = directory[start : start + 4]
        if place == 0:
            keys[key] = value
        elif place == _TEXTS:
            keys[key] = texts[value : value + count].rstrip("|\0 ")
    return keys


def _crs(keys: dict[int, int | str]) -> str:
    kind = _GEOGRAPHIC if keys.get(_MODEL) == _IS_GEOGRAPHIC else _PROJECTED
    code = keys.get(kind, 0)
    if code not in _UNDEFINED:
        return _CRS84 if code == _WGS84 else f"urn:ogc:def:crs:EPSG::{code}"
    citation = _GEOGRAPHIC_CITATION if kind == _GEOGRAPHIC else _PROJECTED_CITATION
    return str(keys.get(citation) or keys.get(_CITATION) or "")
