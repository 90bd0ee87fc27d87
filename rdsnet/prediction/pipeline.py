"""Predictions for files, videos and cameras: which model, what is kept, what is written.

While the model computes, other threads read and resize the next images and write what was found
before. They are never far ahead or behind, so memory depends on the size of an image, not on how
many there are. Results come in the order of the images.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import Instances
from tqdm import tqdm

from rdsnet.data.findings import counted, printable
from rdsnet.prediction.exported import build_predictor
from rdsnet.prediction.ordering import LOWEST_SHARE, UncertainFirst
from rdsnet.prediction.output_names import OutputNames
from rdsnet.prediction.predictor import CountingPredictor, Predictor
from rdsnet.prediction.selection import Selection
from rdsnet.prediction.sources import Frame, Source, chosen_pages, find_sources
from rdsnet.prediction.threads import Behind, several_ahead
from rdsnet.prediction.thresholds import AUTO, ScoreThresholds, certain
from rdsnet.prediction.writers import Writer, build_writers

# Images of a batch on a GPU. Every image is computed alone on a CPU: batches gain nothing there.
_GPU_BATCH_SIZE = 4
# How far reading is ahead of the model and writing behind it, in images; at least a batch.
_AHEAD = 2

Prepared = tuple[int, Frame, dict]
"""The number of a source, a frame of it, and what the model is given for that."""


class Found(NamedTuple):
    """What was found in a frame.

    Attributes:
        source: the number of its source, from 0.
        frame: with the name of its outputs.
        instances: what is kept of its objects, on the CPU.
        was_cut_off: whether there were more than ``TEST.DETECTIONS_PER_IMAGE``.
    """

    source: int
    frame: Frame
    instances: Instances
    was_cut_off: bool


@dataclass
class PredictionSummary:
    """What :func:`predict` did."""

    output: Path
    thresholds: ScoreThresholds
    images: int = 0
    unreadable: int = 0
    objects: int = 0
    max_detections: int = 0
    cut_off: int = 0
    written: list[str] = field(default_factory=list)
    left_out: str = ""
    order: UncertainFirst | None = None

    def text(self) -> str:
        lines = [f"{counted(self.objects, 'object')} in {counted(self.images, 'image')}."]
        if self.unreadable:
            lines.append(f"{counted(self.unreadable, 'file')} could not be read.")
        if self.left_out:
            lines.append(self.left_out)
        if self.images and not self.objects:
            lines.append(
                f"No object reached the score {self.thresholds.text()}; a lower --score-threshold "
                "shows less certain ones."
            )
        elif self.thresholds.fitted:
            lines.append(
                f"Shown from score {self.thresholds.text()} on, which was best in validation; "
                "--score-threshold P takes another."
            )
        if self.cut_off:
            lines.append(
                f"{counted(self.cut_off, 'image')} had more than "
                f"{counted(self.max_detections, 'object')}; the least certain ones were cut off. A "
                "larger --max-detections keeps more."
            )
        if self.images and self.order:
            lines.append(self.order.text())
        if self.images:
            names = (printable(self.output / name) for name in self.written)
            lines.append("Written: " + ", ".join(names))
        return "\n".join(lines)


def predict(
    config_file: str | None,
    weights: str,
    inputs: Sequence[str],
    output: str | Path,
    *,
    formats: Sequence[str] = ("png",),
    score_threshold: float | str = AUTO,
    classes: Sequence[str] = (),
    max_frames: int | None = None,
    pages: str = "all",
    max_detections: int | None = None,
    batch_size: int | None = None,
    uncertain_first: bool = False,
    limit: int | None = None,
    opts: Sequence[str] = (),
    trust_checkpoint: bool = False,
) -> PredictionSummary:
    """Predict the objects in images and videos and write them in some formats.

    Args:
        config_file: the config that the weights were trained with; None: the one in or beside the
            checkpoint.
        weights: a checkpoint, a path or an address that Detectron2 knows.
        inputs: images, folders, patterns, videos and cameras, see
            :func:`rdsnet.prediction.sources.find_sources`.
        output: folder to write into; made if missing, files in it are overwritten.
        formats: see :mod:`rdsnet.prediction.writers`.
        score_threshold: objects with lower scores are left out; "auto": than what was best for
            their class in validation, or 0.5 where the checkpoint does not say.
        classes: names or category ids of the classes to keep; empty: all.
        max_frames: of every video or camera, and pages of every file; None: all.
        pages: of files with several, see :func:`rdsnet.prediction.sources.chosen_pages`.
        max_detections: objects per image; None: as configured.
        batch_size: images that the model sees at once, if they follow each other and have one size;
            None: one on a CPU, some on a GPU.
        uncertain_first: write when all images have been seen, the most uncertain ones first, see
            :class:`rdsnet.prediction.ordering.UncertainFirst`; not for videos and cameras.
        limit: with ``uncertain_first``: images that are written at most; None: all.
        opts: config options KEY VALUE that override the file.
        trust_checkpoint: load weights that hold arbitrary Python objects, running their code.

    Raises:
        FileNotFoundError, ValueError: for what is missing or does not fit. Files that exist but
            cannot be read as images are reported on stderr and counted instead.
    """
    found, is_wanted = find_sources(inputs), chosen_pages(pages)
    of_files = [name for name in ("labelme", "cvat", "label-studio") if name in formats]
    if of_files and any(source.is_video for source in found.sources):
        raise ValueError(
            f"{of_files[0]} opens image files: it is no --format for videos and cameras"
        )
    if uncertain_first and any(source.is_video for source in found.sources):
        raise ValueError(
            "--order is for image files, which are read once more when all have been seen: not for "
            "videos and cameras"
        )
    selection = Selection.chosen(
        config_file,
        weights,
        score_threshold=score_threshold,
        classes=classes,
        max_detections=max_detections,
        opts=opts,
        lowest_share=LOWEST_SHARE if uncertain_first else 1.0,
    )
    predictor = build_predictor(selection.cfg, trust_checkpoint)
    summary = PredictionSummary(Path(output), selection.thresholds)
    summary.max_detections, summary.left_out = predictor.max_detections, found.left_out_text()
    batch_size = batch_size or usual_batch_size(selection.cfg)

    def skip(_: int, error: Exception) -> None:
        say(f"skipped: {error}")
        summary.unreadable += 1

    with ExitStack() as stack:
        writers = build_writers(formats, output, selection.metadata)
        writers = [stack.enter_context(writer) for writer in writers]
        summary.written = [file for writer in writers for file in writer.files]
        if uncertain_first:
            chosen = selection.thresholds, summary.output, limit, say, predictor.channels
            order = UncertainFirst(writers, *chosen)
            summary.order, writers = order, [stack.enter_context(order)]
            summary.written += order.files
        write_later = stack.enter_context(Behind(partial(_write, writers), _ahead(batch_size)))
        frames = found_frames(
            found.sources, predictor, selection, batch_size, skip, max_frames, is_wanted
        )
        for _, frame, instances, was_cut_off in stack.enter_context(closing(frames)):
            write_later(frame, instances)
            shown = selection.shown(instances)
            summary.images += 1
            summary.objects += len(shown)
            # Where undecided objects were asked for, too, only these may be missing.
            summary.cut_off += was_cut_off and len(shown) == len(instances)
    return summary


def found_frames(
    sources: Sequence[Source],
    predictor: CountingPredictor,
    selection: Selection,
    batch_size: int,
    skip: Callable[[int, Exception], None],
    max_frames: int | None = None,
    pages: Callable[[int], bool] = lambda page: True,
) -> Generator[Found, None, None]:
    """The frames of all sources in their order, and what is found in each; reads ahead.

    Args:
        batch_size, max_frames: as of :func:`predict`.
        skip: is told the number of a source that cannot be read, or not to its end, and why.
        pages: see :func:`rdsnet.prediction.sources.chosen_pages`.
    """
    ahead = _ahead(batch_size)
    how = max_frames, pages, say, predictor.channels
    read = (_prepared(source.frames(*how), predictor) for source in sources)
    with ExitStack() as stack:
        files = stack.enter_context(closing(several_ahead(read, 1 + ahead, ahead)))
        frames = stack.enter_context(closing(_frames(sources, files, max_frames, skip)))
        for batch in _batches(frames, batch_size):
            results = predictor.find([inputs for *_, inputs in batch])
            cut_off = predictor.were_cut_off
            for (source, frame, _), result, was_cut in zip(batch, results, cut_off, strict=True):
                yield Found(source, frame, selection.of(result["instances"]), was_cut)


def _ahead(batch_size: int) -> int:
    return max(_AHEAD, batch_size)


def _prepared(
    frames: Generator[Frame, None, None], predictor: Predictor
) -> Generator[tuple[Frame, dict], None, None]:
    """Frames with what the model is given for them; they may still have the same names."""
    with closing(frames):
        for frame in frames:
            try:
                inputs = predictor.prepare(frame.image)
            except ValueError as error:
                height, width = frame.image.shape[:2]
                raise ValueError(
                    f"{printable(frame.path)} of {width} x {height} px cannot be resized: {error}"
                ) from error
            yield frame, inputs


def _frames(
    sources: Sequence[Source],
    files: Iterable[Iterator[tuple[Frame, dict]]],
    most: int | None,
    skip: Callable[[int, Exception], None],
) -> Generator[Prepared, None, None]:
    """The frames of all sources, named, with a progress bar.

    Args:
        files: those of every source.
        most: of each; None: all.
        skip: as of :func:`found_frames`.
    """
    names = OutputNames()
    with tqdm(total=len(sources), unit="image", disable=None) as progress:
        for number, (source, frames) in enumerate(zip(sources, files)):
            if source.is_video:
                expected = source.expected()
                progress.total += min(expected, most or expected) - 1
                progress.refresh()
            name = None
            while True:
                try:
                    frame, inputs = next(frames)
                except StopIteration:
                    break
                except (OSError, ValueError) as error:
                    skip(number, error)
                    break
                name = name or names.new(source.path.stem, frame.is_one_of_many)
                yield number, frame.named(name), inputs
                progress.update()


def say(text: str) -> None:
    """On stderr, beside the progress bar."""
    tqdm.write(text, file=sys.stderr)


def _batches(frames: Iterator[Prepared], size: int) -> Iterator[list[Prepared]]:
    """At most ``size`` frames that follow each other and have one size: none is padded."""
    for _, of_one_size in groupby(frames, key=lambda prepared: prepared[2]["image"].shape):
        while batch := list(islice(of_one_size, size)):
            yield batch


def _write(writers: Sequence[Writer], frame: Frame, instances: Instances) -> None:
    for writer in writers:
        writer.write(frame, instances)


def predict_image(
    predictor: Predictor, image: np.ndarray, score_threshold: float | ScoreThresholds
) -> Instances:
    """Objects of one image, as the predictor takes it, with at least this score, on the CPU."""
    return certain(predictor(image)["instances"].to("cpu"), score_threshold)


def usual_batch_size(cfg: CfgNode) -> int:
    """Images that the model sees at once, where nobody says how many."""
    return 1 if cfg.MODEL.DEVICE == "cpu" else _GPU_BATCH_SIZE
