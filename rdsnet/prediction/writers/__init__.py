"""The formats that predictions are written in, one file each.

A writer is a context manager with ``write(frame, instances)`` for every image, the objects on the
CPU; see :class:`~.writer.Writer`. A new format is a new file with such a class and a line in
:data:`WRITERS`, and its name in ``rdsnet.commands.predict``, which must not import this package
to show its --help.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rdsnet.prediction.writers.coco import CocoWriter
from rdsnet.prediction.writers.csv_table import CsvWriter
from rdsnet.prediction.writers.geojson import GeoJsonWriter
from rdsnet.prediction.writers.labelme import LabelmeWriter
from rdsnet.prediction.writers.labels import LabelWriter
from rdsnet.prediction.writers.masks import MaskWriter
from rdsnet.prediction.writers.overview import OverviewWriter
from rdsnet.prediction.writers.pictures import PictureWriter
from rdsnet.prediction.writers.tools import CvatWriter, LabelStudioWriter
from rdsnet.prediction.writers.writer import Writer

WRITERS: dict[str, type[Writer]] = {
    "png": PictureWriter,
    "mp4": PictureWriter,
    "coco": CocoWriter,
    "labelme": LabelmeWriter,
    "masks": MaskWriter,
    "csv": CsvWriter,
    "geojson": GeoJsonWriter,
    "labels": LabelWriter,
    "overview": OverviewWriter,
    "cvat": CvatWriter,
    "label-studio": LabelStudioWriter,
}


def build_writers(
    formats: Sequence[str],
    output: str | Path,
    classes: tuple[list[str] | None, list[int]],
    coordinates: str = "pixels",
) -> list[Writer]:
    """Writers into the folder ``output``.

    Args:
        formats: keys of :data:`WRITERS`.
        output: made if missing.
        classes: names (None: unknown) and category id of every class.
        coordinates: "pixels" or "map", see :class:`~.writer.Writer`.

    Raises:
        ValueError: for an unknown format.
    """
    unknown = [name for name in formats if name not in WRITERS]
    if unknown:
        raise ValueError(f"formats must be among {', '.join(WRITERS)}; got {', '.join(unknown)}")
    writers = dict.fromkeys(WRITERS[name] for name in formats)  # "png" and "mp4" are one
    built = [writer(Path(output), *classes) for writer in writers]
    for writer in built:
        writer.coordinates = coordinates
    return built
