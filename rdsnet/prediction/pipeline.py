"""Predictions for files, videos and cameras: which model, what is kept, what is written.

Images are read, predicted and written one at a time, so memory depends on the size of an image, not
on how many there are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Instances
from tqdm import tqdm

from rdsnet.checkpoint.trained import names_and_ids, prediction_config
from rdsnet.data.class_names import class_numbers
from rdsnet.data.findings import counted, printable
from rdsnet.prediction.output_names import OutputNames
from rdsnet.prediction.predictor import CountingPredictor, Predictor
from rdsnet.prediction.sources import Frame, Source, chosen_pages, find_sources
from rdsnet.prediction.writers import build_writers


@dataclass
class PredictionSummary:
    """What :func:`predict` did."""

    output: Path
    score_threshold: float
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
                f"No object reached the score {self.score_threshold:g}; a lower --score-threshold "
                "shows less certain ones."
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
    score_threshold: float = 0.5,
    classes: Sequence[str] = (),
    max_frames: int | None = None,
    pages: str = "all",
    max_detections: int | None = None,
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
        score_threshold: objects with lower scores are left out.
        classes: names or category ids of the classes to keep; empty: all.
        max_frames: of every video or camera, and pages of every file; None: all.
        pages: of files with several, see :func:`rdsnet.prediction.sources.chosen_pages`.
        max_detections: objects per image; None: as configured.
        opts: config options KEY VALUE that override the file.
        trust_checkpoint: load weights that hold arbitrary Python objects, running their code.

    Raises:
        FileNotFoundError, ValueError: for what is missing or does not fit. Files that exist but
            cannot be read as images are reported on stderr and counted instead.
    """
    found, is_wanted = find_sources(inputs), chosen_pages(pages)
    if "labelme" in formats and any(source.is_video for source in found.sources):
        raise ValueError("labelme opens image files: it is no --format for videos and cameras")
    cfg = prediction_config(config_file, weights, score_threshold, opts, max_detections)
    metadata = names_and_ids(cfg)
    kept = chosen_classes(classes, *metadata)
    predictor = CountingPredictor(cfg, trust_checkpoint)
    summary = PredictionSummary(Path(output), score_threshold)
    summary.max_detections, summary.left_out = predictor.max_detections, found.left_out_text()
    with ExitStack() as stack:
        writers = [
            stack.enter_context(writer) for writer in build_writers(formats, output, metadata)
        ]
        summary.written = [file for writer in writers for file in writer.files]
        for frame in _frames(found.sources, max_frames, is_wanted, summary):
            instances = predict_image(predictor, frame.image, score_threshold)
            summary.cut_off += predictor.was_cut_off
            if kept is not None:
                instances = instances[torch.isin(instances.pred_classes, kept)]
            for writer in writers:
                writer.write(frame, instances)
            summary.images += 1
            summary.objects += len(instances)
    return summary


def _frames(
    sources: Sequence[Source],
    most: int | None,
    pages: Callable[[int], bool],
    summary: PredictionSummary,
) -> Iterator[Frame]:
    """All frames of all sources, with a progress bar; what cannot be read is counted."""
    names = OutputNames()
    with tqdm(total=len(sources), unit="image", disable=None) as progress:

        def say(text: str) -> None:
            tqdm.write(text, file=sys.stderr)

        for source in sources:
            if source.is_video:
                expected = source.expected()
                progress.total += min(expected, most or expected) - 1
                progress.refresh()
            with closing(source.frames(names, most, pages, say)) as frames:
                while True:
                    try:
                        frame = next(frames)
                    except StopIteration:
                        break
                    except (OSError, ValueError) as error:
                        say(f"skipped: {error}")
                        summary.unreadable += 1
                        break
                    yield frame
                    progress.update()


def predict_image(predictor: Predictor, image: np.ndarray, score_threshold: float) -> Instances:
    """Objects of one (H, W, 3) uint8 BGR image with at least this score, on the CPU."""
    instances = predictor(image)["instances"].to("cpu")
    return instances[instances.scores >= score_threshold]


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
