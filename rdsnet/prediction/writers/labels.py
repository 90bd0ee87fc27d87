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
    file of 4 bytes per pixel beside it and is written when all objects of the image are known. Of
    that file, the memory of this process holds what one part touches, and no more: it is closed
    after each.
    """

    files = ("labels/",)
    takes_parts = True

    def begin(self) -> None:
        self._frame: Frame | None = None

    def end(self) -> None:
        if self._frame is not None:
            self._write()

    def add(self, frame: Frame, instances: Instances) -> None:
        if not frame.part:
            self.end()
            (self.output / "labels").mkdir(exist_ok=True)
            self._frame, self._count = frame, 0
            self._growing("w+")
        if instances.has("pred_masks"):
            self._number(instances, self._growing("r+"))
        self._count += len(instances)
        if frame.part is None:
            self.end()

    def _number(self, instances: Instances, labels: np.memmap) -> None:
        for n in range(len(instances)):
            bits, x, y = bits_in_window(instances.pred_masks, n)
            height, width = bits.shape
            there = labels[y : y + height, x : x + width]
            there[bits & (there == 0)] = self._count + n + 1

    def _growing(self, mode: str) -> np.memmap:
        """The numbers (H, W) so far, in a file that is closed when nobody has them any more."""
        size = self._frame.image.shape[:2]
        return np.memmap(self._scratch(self._frame), np.uint32, mode, shape=size)

    def _scratch(self, frame: Frame) -> Path:
        return self.output / "labels" / f".{frame.name}.growing"

    def _write(self) -> None:
        frame = self._frame
        path = self.output / "labels" / f"{frame.name}.ome.tif"
        is_file = os.path.isfile(frame.path)
        place = read_georeference(frame.path) if is_file and not frame.video else None
        shape = frame.image.shape[:2]
        is_large = shape[0] * shape[1] * np.dtype(np.uint32).itemsize > _LARGE
        with TiffWriter(path, bigtiff=is_large, ome=True) as file:
            file.write(
                self._tiles(shape),
                shape=shape,
                dtype=np.uint32,
                tile=(_TILE, _TILE),
                compression="zlib",
                photometric="minisblack",
                metadata={"axes": "YX"},
                extratags=place.tags if place else (),
            )
        self._scratch(frame).unlink()
        self._frame = None

    def _tiles(self, size: tuple[int, int]) -> Iterator[np.ndarray]:
        height, width = size
        for y in range(0, height, _TILE):
            labels = self._growing("r")
            for x in range(0, width, _TILE):
                tile = np.zeros((_TILE, _TILE), labels.dtype)
                part = labels[y : y + _TILE, x : x + _TILE]
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile
