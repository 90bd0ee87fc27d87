"""The format "labels": an image of numbers, 0 where there is no object."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from detectron2.structures import Instances
from tifffile import TiffWriter

from rdsnet.data.georeference import read_georeference
from rdsnet.prediction.sources import Frame
from rdsnet.prediction.writers.masks import bits_in_window
from rdsnet.prediction.writers.writer import Writer

_TILE = 512
# Beyond, a TIFF is a BigTIFF, lest it grow too large whatever the compression.
_LARGE = 2**31


class LabelWriter(Writer):
    """``labels/NAME.ome.tif``: uint32 (H, W), per object its number in ``objects.csv`` plus 1.

    A pixel that several objects have is that of the lowest number. The file is an OME-TIFF in tiles
    of 512 px, compressed; of a GeoTIFF it has the tags that say where it lies. It grows in a
    file of 4 bytes per pixel beside it, which the system keeps in memory as far as there is room,
    and is written when all objects of the image are known.
    """

    files = ("labels/",)
    takes_parts = True

    def begin(self) -> None:
        self._frame: Frame | None = None
        self._labels: np.memmap | None = None

    def end(self) -> None:
        if self._frame is not None:
            self._write()

    def add(self, frame: Frame, instances: Instances) -> None:
        if not frame.part:
            self.end()
            (self.output / "labels").mkdir(exist_ok=True)
            size = frame.image.shape[:2]
            self._frame, self._count = frame, 0
            self._labels = np.memmap(self._scratch(frame), np.uint32, "w+", shape=size)
        for n in range(len(instances) if instances.has("pred_masks") else 0):
            bits, x, y = bits_in_window(instances.pred_masks, n)
            height, width = bits.shape
            there = self._labels[y : y + height, x : x + width]
            there[bits & (there == 0)] = self._count + n + 1
        self._count += len(instances)
        if frame.part is None:
            self.end()

    def _scratch(self, frame: Frame) -> Path:
        return self.output / "labels" / f".{frame.name}.growing"

    def _write(self) -> None:
        frame, labels = self._frame, self._labels
        self._frame = self._labels = None
        path = self.output / "labels" / f"{frame.name}.ome.tif"
        is_file = os.path.isfile(frame.path)
        place = read_georeference(frame.path) if is_file and not frame.video else None
        with TiffWriter(path, bigtiff=labels.nbytes > _LARGE, ome=True) as file:
            file.write(
                _tiles(labels),
                shape=labels.shape,
                dtype=labels.dtype,
                tile=(_TILE, _TILE),
                compression="zlib",
                photometric="minisblack",
                metadata={"axes": "YX"},
                extratags=place.tags if place else (),
            )
        del labels
        self._scratch(frame).unlink()


def _tiles(labels: np.ndarray) -> Iterator[np.ndarray]:
    height, width = labels.shape
    for y in range(0, height, _TILE):
        for x in range(0, width, _TILE):
            tile = np.zeros((_TILE, _TILE), labels.dtype)
            part = labels[y : y + _TILE, x : x + _TILE]
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile
