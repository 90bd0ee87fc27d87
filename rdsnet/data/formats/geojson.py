"""GeoJSON as QuPath writes it, one file per image: polygons with holes in pixels.

The class is that of the object's classification. The file has no name of its image: that is the
one that is called like it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rdsnet.data.checks import polygon_problem
from rdsnet.data.findings import shortened
from rdsnet.data.formats.collecting import Collector, Photo, part_of, size_of_file
from rdsnet.data.formats.outlines import flat, rings_rle
from rdsnet.data.formats.source import Source, image_files
from rdsnet.data.formats.values import object_at, objects_in, points_in

NAME = "GeoJSON"
WHAT = "QuPath: its GeoJSON, a file per image that is called like the image, or a folder of them"
_CELLS = ("detection", "cell")


def is_mine(source: Source) -> bool:
    content = source.json
    if isinstance(content, dict):
        return content.get("type") in ("FeatureCollection", "Feature")
    features = objects_in(content)
    return bool(features) and features[0].get("type") == "Feature"


def read(sources: list[Source], given: Source, export: Collector) -> None:
    folders: dict[Path, dict[str, Path]] = {}
    for source in sources:
        image = _image_of(source, folders)
        if image is None:
            what = "files without an image of their names"
            export.leave_out(what, source.path)
            continue
        part = part_of(source, given, with_name=False)
        size = size_of_file(os.fspath(image))
        photo = export.photo(
            os.fspath(image), source.folder, size if isinstance(size, tuple) else None, part
        )
        if photo.size:
            _read_features(_features(source.json), photo, source, export)
        source.release()


def _features(content: Any) -> list[dict]:
    if isinstance(content, dict):
        return objects_in(content.get("features")) if "features" in content else [content]
    return objects_in(content)


def _image_of(source: Source, folders: dict[Path, dict[str, Path]]) -> Path | None:
    """The image that is called like a file, but for what stands behind a dot."""
    name = source.path.stem
    places = [source.images] if source.images else [source.folder, source.folder / "images"]
    places += [] if source.images else [source.folder.parent, source.folder.parent / "images"]
    for place in places:
        if place not in folders:
            folders[place] = {}
            for path in image_files(place):
                for key in (path.name, path.stem, path.name.partition(".")[0]):
                    folders[place].setdefault(key, path)
        for key in (name, Path(name).stem, name.partition(".")[0]):
            if key in folders[place]:
                return folders[place][key]
    return None


def _read_features(features: list[dict], photo: Photo, source: Source, export: Collector) -> None:
    kinds = [object_at(feature, "properties").get("objectType") for feature in features]
    has_cells = any(kind in _CELLS for kind in kinds)
    for feature, kind in zip(features, kinds):
        geometry = object_at(feature, "geometry")
        form, label = geometry.get("type"), _label(object_at(feature, "properties"))
        if form not in ("Polygon", "MultiPolygon"):
            what = f"shapes ({form}) without area"
            export.leave_out(what, source.path)
        elif has_cells and kind not in _CELLS and label is None:
            what = "regions without class around cells"
            export.leave_out(what, source.path)
        else:
            shape = _segmentation(geometry, photo.size)
            if shape is None:
                text = f"{source.path}: {shortened(geometry.get('coordinates'))}"
                export.leave_out(f"broken shapes ({form})", text)
            else:
                photo.add(label, shape)


def _label(properties: dict) -> str | None:
    given = properties.get("classification")
    if isinstance(given, dict):
        names = given.get("names")
        joined = ": ".join(map(str, names)) if isinstance(names, list) else ""
        return given.get("name") or joined or None
    return given or properties.get("class") or properties.get("label")


def _segmentation(geometry: dict, size: tuple[int, int]) -> list | dict | None:
    """Polygons, RLE where there are holes; None: it is broken."""
    parts = geometry.get("coordinates")
    parts = [parts] if geometry["type"] == "Polygon" else parts
    if not isinstance(parts, list) or not all(isinstance(part, list) and part for part in parts):
        return None
    rings = [[points_in(ring) for ring in part] for part in parts]
    if not rings or any(ring is None for part in rings for ring in part):
        return None
    flattened = [[_open(ring) for ring in part] for part in rings]
    if all(len(part) == 1 for part in flattened):
        return [part[0] for part in flattened]
    if any(polygon_problem(ring) for part in flattened for ring in part):
        return None
    return rings_rle(flattened, size)


def _open(ring: list[list[float]]) -> list[float]:
    """A ring without its last point, which repeats the first."""
    return flat(ring[:-1] if len(ring) > 1 and ring[0] == ring[-1] else ring)
