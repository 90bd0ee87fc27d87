"""Predictions for files, videos and cameras: which model, what is kept, what is written.

While the model computes, other threads read and resize the next images and write what was found
before. They are never far ahead or behind, so memory depends on the size of an image, not on how
many there are. Results come in the order of the images.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from tqdm import tqdm

from rdsnet.checkpoint.trained import model_threshold, names_and_ids, prediction_config
from rdsnet.data.class_names import class_numbers
from rdsnet.data.findings import counted, printable
from rdsnet.prediction.exported import build_predictor
from rdsnet.prediction.output_names import OutputNames
from rdsnet.prediction.predictor import Predictor
from rdsnet.prediction.sources import Frame, Source, chosen_pages, find_sources
from rdsnet.prediction.threads import Behind, several_ahead
from rdsnet.prediction.thresholds import AUTO, ScoreThresholds, certain
from rdsnet.prediction.writers import Writer, build_writers

# Images of a batch on a GPU. Every image is computed alone on a CPU: batches gain nothing there.
_GPU_BATCH_SIZE = 4
# How far reading is ahead of the model and writing behind it, in images; at least a batch.
_AHEAD = 2

Prepared = tuple[Frame, dict]
"""A frame, and what the model is given for it."""


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
    cfg = prediction_config(config_file, weights, None, opts, max_detections)
    thresholds = ScoreThresholds.chosen(cfg, score_threshold)
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = model_threshold(thresholds.lowest)
    metadata = names_and_ids(cfg)
    kept = chosen_classes(classes, *metadata)
    predictor = build_predictor(cfg, trust_checkpoint)
    summary = PredictionSummary(Path(output), thresholds)
    summary.max_detections, summary.left_out = predictor.max_detections, found.left_out_text()
    batch_size = batch_size or usual_batch_size(cfg)
    ahead = max(_AHEAD, batch_size)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(writer) for writer in build_writers(formats, output, metadata)
        ]
        summary.written = [file for writer in writers for file in writer.files]
        write_later = stack.enter_context(Behind(partial(_write, writers), ahead))
        how = max_frames, is_wanted, say, predictor.channels
        read = (_prepared(source.frames(*how), predictor) for source in found.sources)
        files = stack.enter_context(closing(several_ahead(read, 1 + ahead, ahead)))
        frames = _frames(found.sources, files, max_frames, summary)
        for batch in _batches(stack.enter_context(closing(frames)), batch_size):
            results = predictor.find([inputs for _, inputs in batch])
            summary.cut_off += sum(predictor.were_cut_off)
            for (frame, _), result in zip(batch, results, strict=True):
                instances = certain(result["instances"].to("cpu"), thresholds)
                if kept is not None:
                    instances = instances[torch.isin(instances.pred_classes, kept)]
                write_later(frame, instances)
                summary.images += 1
                summary.objects += len(instances)
    return summary


def _prepared(
    frames: Generator[Frame, None, None], predictor: Predictor
) -> Generator[Prepared, None, None]:
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
    files: Iterable[Iterator[Prepared]],
    most: int | None,
    summary: PredictionSummary,
) -> Generator[Prepared, None, None]:
    """The frames of all sources, named, with a progress bar; what cannot be read is counted.

    Args:
        files: those of every source.
        most: of each; None: all.
    """
    names = OutputNames()
    with tqdm(total=len(sources), unit="image", disable=None) as progress:
        for source, frames in zip(sources, files):
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
                    say(f"skipped: {error}")
                    summary.unreadable += 1
                    break
                name = name or names.new(source.path.stem, frame.is_one_of_many)
                yield frame.named(name), inputs
                progress.update()


def say(text: str) -> None:
    """On stderr, beside the progress bar."""
    tqdm.write(text, file=sys.stderr)


def _batches(frames: Iterator[Prepared], size: int) -> Iterator[list[Prepared]]:
    """At most ``size`` frames that follow each other and have one size: none is padded."""
    for _, of_one_size in groupby(frames, key=lambda prepared: prepared[1]["image"].shape):
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


def chosen_classes(
    classes: Sequence[str], names: list[str] | None, category_ids: list[int]
) -> torch.Tensor | None:
    """Class numbers of the names or category ids to keep; None: all.

    Several may stand in one word, separated by commas. A name that several classes have means all
    of them.

    Raises:
        ValueError: for a class that the model does not have; the message lists those it has.
    """
    if not classes:
        return None
    numbers = class_numbers(names, category_ids)
    words = []
    for text in classes:  # a name may have a comma
        words += [text] if text in numbers else [word.strip() for word in text.split(",")]
    unknown = [word for word in words if word not in numbers]
    if unknown:
        known = ", ".join(names or map(str, category_ids))
        raise ValueError(f"--classes: the model has no '{unknown[0]}'. It has: {known}")
    return torch.tensor(sorted(set().union(*(numbers[word] for word in words))))


def usual_batch_size(cfg: CfgNode) -> int:
    """Images that the model sees at once, where nobody says how many."""
    return 1 if cfg.MODEL.DEVICE == "cpu" else _GPU_BATCH_SIZE
