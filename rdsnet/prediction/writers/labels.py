"""The format "labels": an image of numbers, 0 where there is no object."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from detectron2.structures import Instances
from tifffile import TiffWriter

from rdsnet.data.georeference import GeoReference, read_georeference
from rdsnet.prediction.sources import Frame
from rdsnet.prediction.writers.masks import bits_in_window
from rdsnet.prediction.writers.writer import Writer

logger = logging.getLogger(__name__)

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
            self._growing(frame, "w+")
        if instances.has("pred_masks"):
            self._number(instances, self._growing(self._frame, "r+"))
        self._count += len(instances)
        if frame.part is None:
            self.end()

    def _number(self, instances: Instances, labels: np.memmap) -> None:
        for n in range(len(instances)):
            bits, x, y = bits_in_window(instances.pred_masks, n)
            height, width = bits.shape
            there = labels[y : y + height, x : x + width]
            there[bits & (there == 0)] = self._count + n + 1

    def _growing(self, frame: Frame, mode: str) -> np.memmap:
        """The numbers (H, W) so far, in a file that is closed when nobody has them any more."""
        return np.memmap(self._scratch(frame), np.uint32, mode, shape=frame.image.shape[:2])

    def _scratch(self, frame: Frame) -> Path:
        return self.output / "labels" / f".{frame.name}.growing"

    def _write(self) -> None:
        # One that cannot be written is not tried again beside the next.
        frame, self._frame = self._frame, None
        try:
            self._write_file(frame)
        finally:
            self._scratch(frame).unlink(missing_ok=True)

    def _write_file(self, frame: Frame) -> None:
        path = self.output / "labels" / f"{frame.name}.ome.tif"
        place = _place_of(frame)
        shape = frame.image.shape[:2]
        is_large = shape[0] * shape[1] * np.dtype(np.uint32).itemsize > _LARGE
        with TiffWriter(path, bigtiff=is_large, ome=True) as file:
            file.write(
                self._tiles(frame),
                shape=shape,
                dtype=np.uint32,
                tile=(_TILE, _TILE),
                compression="zlib",
                photometric="minisblack",
                metadata={"axes": "YX"},
                extratags=place.tags if place else (),
            )

    def _tiles(self, frame: Frame) -> Iterator[np.ndarray]:
        height, width = frame.image.shape[:2]
        for y in range(0, height, _TILE):
            labels = self._growing(frame, "r")
            for x in range(0, width, _TILE):
                tile = np.zeros((_TILE, _TILE), labels.dtype)
                part = labels[y : y + _TILE, x : x + _TILE]
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile


def _place_of(frame: Frame) -> GeoReference | None:
    """Where on a map an image lies; None: nowhere, or its file says it in damaged tags."""
    if frame.video or not os.path.isfile(frame.path):
        return None
    try:
        return read_georeference(frame.path)
    except ValueError as error:
        logger.warning(f"{error} The label image has none.")
        return None
