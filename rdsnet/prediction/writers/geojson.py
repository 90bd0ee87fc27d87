"""The format "geojson": outlines that QuPath opens, and programs for maps."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import numpy as np
from detectron2.structures import Instances
from torch import Tensor

from rdsnet.data.findings import printable
from rdsnet.data.georeference import GeoReference, read_georeference
from rdsnet.ops import CompactMasks
from rdsnet.prediction.sources import Frame
from rdsnet.prediction.writers.coco import JsonList
from rdsnet.prediction.writers.labelme import exact_outlines
from rdsnet.prediction.writers.masks import bits_in_window
from rdsnet.prediction.writers.writer import Writer
from rdsnet.visualization.objects import class_name

# Colours of classes in QuPath, RGB.
_COLOURS = ((200, 0, 0), (0, 120, 200), (0, 160, 60), (230, 140, 0), (130, 60, 180), (0, 160, 160))
# Ids are made of names and numbers: the same in every run.
_IDS = uuid.UUID("4b1c8b1e-61f0-4f0a-9f57-6a1d7d0f3c52")


class GeoJsonWriter(Writer):
    """``geojson/NAME.geojson``: a FeatureCollection with a detection per object, as QuPath has it.

    The geometry is the outline of the mask in pixels of the image, x to the right and y down, with
    its holes as inner rings (of a mask in several pieces a MultiPolygon; of one without pixels the
    box). Measurements are the score, the area of the mask and the box.

    With ``coordinates`` "map" the geometry is in those of the map that a GeoTIFF lies on, whose
    name is the member ``crs``, as GeoJSON had it until 2016 and GDAL and QGIS read it.
    Measurements stay in pixels.
    """

    files = ("geojson/",)
    takes_parts = True

    def begin(self) -> None:
        self._list: JsonList | None = None

    def end(self) -> None:
        if self._list is not None:
            self._list.close()

    def check(self, path: Path) -> None:
        self._place_of(path)

    def _place_of(self, path: Path | str) -> GeoReference | None:
        """None: coordinates are pixels."""
        if self.coordinates == "pixels":
            return None
        place = read_georeference(path)
        if place is None:
            raise ValueError(
                f"{printable(path)} has no map coordinates (it is no GeoTIFF with a pixel scale "
                "and a tie point, or a transformation): --coordinates pixels does without them"
            )
        return place

    def add(self, frame: Frame, instances: Instances) -> None:
        if not frame.part:
            self.end()
            folder = self.output / "geojson"
            folder.mkdir(exist_ok=True)
            self._place = self._place_of(frame.path)
            head = {"type": "FeatureCollection"}
            if self._place and self._place.crs:
                head["crs"] = {"type": "name", "properties": {"name": self._place.crs}}
            head = json.dumps(head).removesuffix("}") + ', "features": '
            self._list = JsonList(folder / f"{frame.name}.geojson", head, "}")
        first = len(self._list)
        features = [self._feature(instances, n, frame, first + n) for n in range(len(instances))]
        self._list.extend(features)

    def _feature(self, instances: Instances, n: int, frame: Frame, number: int) -> dict:
        box = instances.pred_boxes.tensor[n].tolist()
        category = int(instances.pred_classes[n])
        polygons, area = [], 0
        if instances.has("pred_masks"):
            polygons, area = _polygons(instances.pred_masks, n)
        if not polygons:
            x1, y1, x2, y2 = box
            polygons = [[[[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]]]]
        if self._place:
            polygons = [
                [self._place.on_map(np.array(ring)).tolist() for ring in polygon]
                for polygon in polygons
            ]
        single = len(polygons) == 1
        geometry = {
            "type": "Polygon" if single else "MultiPolygon",
            "coordinates": polygons[0] if single else polygons,
        }
        return {
            "type": "Feature",
            "id": str(uuid.uuid5(_IDS, f"{frame.name} {number}")),
            "geometry": geometry,
            "properties": {
                "objectType": "detection",
                "classification": {
                    "name": class_name(self.names, category),
                    "color": list(_COLOURS[category % len(_COLOURS)]),
                },
                "measurements": {
                    "Score": round(float(instances.scores[n]), 4),
                    "Area px^2": area,
                    **{f"Box {k}": round(v, 2) for k, v in zip(("x1", "y1", "x2", "y2"), box)},
                },
            },
        }


def _polygons(masks: CompactMasks | Tensor, n: int) -> tuple[list, int]:
    """Per piece of a mask its closed rings, the outer one first, in image pixels; its area."""
    bits, x, y = bits_in_window(masks, n)
    bits = bits.astype(np.uint8)
    pieces = exact_outlines(np.ascontiguousarray(bits)) if bits.size else []
    polygons = [
        [[*ring, ring[0]] for ring in ((points + (x, y)).tolist() for points in piece)]
        for piece in pieces
    ]
    return polygons, int(bits.sum())
