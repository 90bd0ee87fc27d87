"""The formats that predictions are written in: one module each, and one line here.

A writer gets every image of a run with its objects, on the CPU. Its files begin with the first
image, so a run that reads nothing leaves those of an earlier run as they are, and they are complete
after every image, whatever comes later.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rdsnet.engine.writers.coco import CocoWriter
from rdsnet.engine.writers.labelme import LabelmeWriter
from rdsnet.engine.writers.masks import MaskWriter
from rdsnet.engine.writers.pictures import PictureWriter
from rdsnet.engine.writers.table import CsvWriter
from rdsnet.engine.writers.writer import Writer

WRITERS: dict[str, type[Writer]] = {
    "png": PictureWriter,
    "mp4": PictureWriter,
    "coco": CocoWriter,
    "labelme": LabelmeWriter,
    "masks": MaskWriter,
    "csv": CsvWriter,
}


def build_writers(
    formats: Sequence[str],
    output: str | Path,
    classes: tuple[list[str] | None, list[int]],
) -> list[Writer]:
    """Writers into the folder ``output``.

    Args:
        formats: keys of :data:`WRITERS`.
        output: made if missing, with the first image.
        classes: names (None: unknown) and category id of every class.

    Raises:
        ValueError: for an unknown format.
    """
    unknown = [name for name in formats if name not in WRITERS]
    if unknown:
        raise ValueError(f"formats must be among {', '.join(WRITERS)}; got {', '.join(unknown)}")
    writers = dict.fromkeys(WRITERS[name] for name in formats)  # "png" and "mp4" are one
    return [writer(Path(output), *classes) for writer in writers]
