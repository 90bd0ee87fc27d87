"""A model as Ray Data runs it: paths in, rows of objects out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from rdsnet.data.findings import printable
from rdsnet.prediction.addresses import local_copy, source_at
from rdsnet.prediction.exported import build_predictor
from rdsnet.prediction.large_files import LargeFiles, check_is_tileable
from rdsnet.prediction.pipeline import found_frames, usual_batch_size
from rdsnet.prediction.rows import SCHEMA, failure_row, row_of
from rdsnet.prediction.selection import Selection
from rdsnet.prediction.sources import chosen_pages
from rdsnet.prediction.thresholds import AUTO


class RayPredictor:
    """Predicts the files that a batch names, for ``ray.data.Dataset.map_batches``.

    The model is loaded once per actor::

        dataset.map_batches(
            RayPredictor,
            fn_constructor_kwargs={"weights": "nuclei"},
            compute=ray.data.ActorPoolStrategy(size=4),
            batch_size=64,
            num_gpus=1,
        )

    A batch is a dict of arrays with a ``path`` per file: a path of the machine, text or bytes, or
    an address such as ``s3://bucket/a.png``. The answer is a table with a row per image: of a video
    or a file of several pages one each, of an image in tiles one per part. Rows stand in the order
    of the files, and the batch's other columns, such as an id, are repeated in them.

    ====================  ==========================================================================
    path                  as it was given; bytes that are no text stand as ``\\xe9``
    frame                 number of the frame or page, from 0; null: the file's only one
    part                  with ``tile`` the number of the part, from 0, else null
    height, width         of the image, pixels
    objects               N, of this row
    boxes                 N x 4 float32 x1, y1, x2, y2 after MBRM, pixels, continuous coordinates
    regressed_boxes       the same before MBRM
    scores                N float32, falling
    classes               N int32, 0 .. K - 1
    masks                 N texts: the ``counts`` of COCO's compressed RLE of (height, width)
    cut_off               whether there were more objects than the model returns
    too_large             with ``tile``: objects of the image that are cut, in its last row
    error                 why the file could not be read, or not to its end: the row has no objects;
                          else null
    ====================  ==========================================================================

    Args:
        weights, config_file, score_threshold, classes, max_detections, max_frames, pages,
            batch_size, opts, trust_checkpoint: as of :func:`rdsnet.prediction.predict`.
            ``weights`` are read by every actor, on its own machine.
        tiled: whether images are predicted as :func:`~.large_files.predict_large_files` does.
        tile, overlap: as there.

    Raises:
        FileNotFoundError, ValueError: for what is missing or does not fit.
    """

    def __init__(
        self,
        weights: str,
        config_file: str | None = None,
        *,
        score_threshold: float | str = AUTO,
        classes: Sequence[str] = (),
        max_frames: int | None = None,
        pages: str = "all",
        tiled: bool = False,
        tile: int | None = None,
        overlap: int | None = None,
        max_detections: int | None = None,
        batch_size: int | None = None,
        opts: Sequence[str] = (),
        trust_checkpoint: bool = False,
    ) -> None:
        selection = Selection.chosen(
            config_file,
            weights,
            score_threshold=score_threshold,
            classes=classes,
            max_detections=max_detections,
            opts=opts,
        )
        if tiled:
            check_is_tileable(weights, [])
            files = LargeFiles(selection, tile, overlap, max_detections, trust_checkpoint)
            self._rows = partial(_rows_in_parts, files)
            return
        self._rows = partial(
            _rows_at_once,
            predictor=build_predictor(selection.cfg, trust_checkpoint),
            selection=selection,
            batch_size=batch_size or usual_batch_size(selection.cfg),
            max_frames=max_frames,
            pages=chosen_pages(pages),
        )

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        paths = [os.fsdecode(path) for path in batch["path"]]
        rows: list[list[dict]] = [[] for _ in paths]
        for number, row in self._rows(paths):
            rows[number].append({"path": printable(paths[number]), **row})
        table = pa.Table.from_pylist([row for of_file in rows for row in of_file], SCHEMA)
        files = np.repeat(np.arange(len(paths)), [len(of_file) for of_file in rows])
        for name, values in batch.items():
            if name != "path":
                table = table.append_column(name, pa.array(values).take(pa.array(files)))
        return table


Rows = Iterator[tuple[int, dict]]
"""The number of a file, and a row of it but for its path."""


def _rows_at_once(paths: Sequence[str], **how: Any) -> Rows:
    """Of images that the model sees at once; ``how``: as of ``found_frames``."""
    failures: dict[int, Exception] = {}
    found = found_frames([source_at(path) for path in paths], skip=failures.__setitem__, **how)
    with closing(found):
        for number, frame, instances, was_cut_off in found:
            yield number, row_of(frame, instances, was_cut_off)
    for number, error in failures.items():
        yield number, failure_row(error)


def _rows_in_parts(files: LargeFiles, paths: Sequence[str]) -> Rows:
    """Of images that are predicted in tiles."""
    for number, path in enumerate(paths):
        last = None
        try:
            with local_copy(path) as local:
                for frame, instances in files.parts(local):
                    if last is not None:
                        yield number, last
                    last = row_of(frame, instances)
                # What concerns the image as a whole is known at its end.
                yield number, last | {"cut_off": files.was_cut_off, "too_large": files.too_large}
        except (OSError, ValueError) as error:
            if last is not None:
                yield number, last
            yield number, failure_row(error)
