"""Predictions for files, videos and cameras: which model, what is kept, what is written.

Images are read, predicted and written one at a time, so memory depends on the size of an image, not
on how many there are.
"""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from tqdm import tqdm

from rdsnet.checkpoint.description import read_config
from rdsnet.config import get_cfg
from rdsnet.data.datasets import class_metadata, coco_files
from rdsnet.data.findings import counted, printable
from rdsnet.engine.launch import load_config, merge_config_file
from rdsnet.engine.prediction_frames import FrameReader
from rdsnet.engine.prediction_input import Source, Sources, find_sources
from rdsnet.engine.predictor import Predictor
from rdsnet.engine.writers import Writer, build_writers


@dataclass
class PredictionSummary:
    """What :func:`predict` did."""

    output: Path
    score_threshold: float
    images: int = 0
    unreadable: int = 0
    objects: int = 0
    written: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        lines = [f"{counted(self.objects, 'object')} in {counted(self.images, 'image')}."]
        if self.unreadable:
            lines.append(f"{counted(self.unreadable, 'file')} could not be read.")
        lines += self.notes
        if self.images and not self.objects:
            lines.append(
                f"No object reached the score {self.score_threshold:g}; a lower --score-threshold "
                "shows less certain ones."
            )
        files = ", ".join(printable(self.output / name) for name in self.written)
        lines.append(f"Written: {files}" if self.images else "Nothing was written.")
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
    pages: Sequence[range] | None = None,
    max_frames: int | None = None,
    opts: Sequence[str] = (),
    trust_checkpoint: bool = False,
) -> PredictionSummary:
    """Predict the objects in images and videos and write them in some formats.

    Args:
        config_file: the config that the weights were trained with; None: the one in or beside the
            checkpoint.
        weights: a checkpoint, a path or an address that Detectron2 knows.
        inputs: images, folders, patterns, videos and cameras, see
            :func:`rdsnet.engine.prediction_input.find_sources`.
        output: folder to write into; made if missing, files in it are overwritten once an image
            was read.
        formats: see :mod:`rdsnet.engine.writers`.
        score_threshold: objects with lower scores are left out.
        classes: names or category ids of the classes to keep; empty: all.
        pages, max_frames: which frames and pages, and how many at most, as ``pages`` and ``most``
            of :class:`rdsnet.engine.prediction_frames.FrameReader`.
        opts: config options KEY VALUE that override the file.
        trust_checkpoint: load weights that hold arbitrary Python objects, running their code.

    Raises:
        FileNotFoundError, ValueError: for what is missing or does not fit. Files that exist but
            cannot be read as images are reported on stderr and counted instead.
    """
    found = find_sources(inputs)
    cfg = prediction_config(config_file, weights, score_threshold, opts)
    metadata = names_and_ids(cfg)
    kept = chosen_classes(classes, *metadata)
    writers = build_writers(formats, output, metadata)
    check_sources(found.sources, writers)
    predictor = Predictor(cfg, trust_checkpoint)
    summary = PredictionSummary(Path(output), score_threshold)
    summary.written = [file for writer in writers for file in writer.files]
    with ExitStack() as stack, tqdm(unit="image", disable=None) as progress:
        for writer in writers:
            stack.enter_context(writer)
        reader = _frame_reader(summary, progress, len(found.sources), pages, max_frames)
        for source in found.sources:
            for frame in reader.frames(source):
                instances = predict_image(predictor, frame.image, score_threshold)
                if kept is not None:
                    instances = instances[torch.isin(instances.pred_classes, kept)]
                for writer in writers:
                    writer.write(frame, instances)
                summary.images += 1
                summary.objects += len(instances)
                progress.update()
    summary.notes = _notes(found, reader)
    return summary


def check_sources(sources: Sequence[Source], writers: Sequence[Writer]) -> None:
    """Refuse sources that a writer cannot take, or would overwrite.

    Raises:
        ValueError: for a video in a format for images; for a file in a folder that is written into.
    """
    for writer in writers:
        if writer.why_no_videos and any(source.is_video for source in sources):
            raise ValueError(writer.why_no_videos)
    folders = [
        os.path.realpath(writer.output / file)
        for writer in writers
        for file in writer.files
        if file.endswith("/")
    ]
    own = {
        folder
        for folder in {source.path.parent for source in sources if source.camera is None}
        if any(Path(os.path.realpath(folder)).is_relative_to(written) for written in folders)
    }
    for source in sources:
        if source.camera is None and source.path.parent in own:
            raise ValueError(
                f"'{printable(source.path)}' would be overwritten, since results are written into "
                "its folder: choose another --output, or other --input files."
            )


def _frame_reader(
    summary: PredictionSummary,
    progress: tqdm,
    sources: int,
    pages: Sequence[range] | None,
    most: int | None,
) -> FrameReader:
    """A reader that reports and counts what cannot be read, and tells the progress bar."""
    progress.total = sources

    def skipped(error: Exception) -> None:
        tqdm.write(f"skipped: {error}", file=sys.stderr)
        summary.unreadable += 1

    def expected(frames: int) -> None:
        progress.total += frames - 1
        progress.refresh()

    return FrameReader(skipped, expected, pages, most)


def _notes(found: Sources, reader: FrameReader) -> list[str]:
    """What was left out, and what may be taken for something else."""
    notes = [found.left_out_text()]
    if reader.with_side_pictures:
        notes.append(
            f"{_files(reader.with_side_pictures)} more pictures beside the main one, such as "
            "previews and depth maps of phones: they were left out, --pages all reads them."
        )
    if reader.with_channels:
        notes.append(
            f"{_files(reader.with_channels)} channels as pages: each was taken for a picture of "
            "its own, --pages chooses among them."
        )
    return [note for note in notes if note]


def _files(paths: Sequence[Path]) -> str:
    """ "'a.jpg' has", "'a.jpg' and 3 other files have"."""
    first = f"'{printable(paths[0].name)}'"
    if len(paths) == 1:
        return f"{first} has"
    return f"{first} and {counted(len(paths) - 1, 'other file')} have"


def predict_image(predictor: Predictor, image: np.ndarray, score_threshold: float) -> Instances:
    """Objects of one (H, W, 3) uint8 BGR image with at least this score, on the CPU."""
    instances = predictor(image)["instances"].to("cpu")
    return instances[instances.scores >= score_threshold]


def prediction_config(
    config_file: str | None,
    weights: str,
    score_threshold: float | None = 0.0,
    opts: Sequence[str] = (),
) -> CfgNode:
    """The config for a Predictor whose masks stay compact.

    Without ``config_file``, it is the one that the checkpoint holds, or config.yaml beside it.
    A model that was trained on a GPU runs on the CPU where there is none. With ``score_threshold``
    None the config's own holds.

    The data that the model was trained on may be gone: entries of ``DATASETS.COCO_FILES`` without
    their json are ignored as long as the number of classes is given.

    Raises:
        FileNotFoundError, ValueError: as :func:`rdsnet.engine.load_config`; for weights that are
            missing or damaged.
    """
    check_weights(weights)
    config_file = config_file or find_config(weights)
    settings = ["MODEL.WEIGHTS", weights, "MODEL.RDSNET.DENSE_MASKS", "False"]
    if score_threshold is not None:
        # Spares the model the masks that nobody will see; below 1, which no score exceeds.
        settings += ["MODEL.RETINANET.SCORE_THRESH_TEST", str(min(score_threshold, 0.99))]
    if "MODEL.DEVICE" not in opts and not torch.cuda.is_available():
        settings += ["MODEL.DEVICE", "cpu"]
    settings = [*opts, *settings]
    try:
        return load_config(config_file, settings)
    except FileNotFoundError:
        if not Path(config_file).is_file():
            raise
        cfg = get_cfg()
        merge_config_file(cfg, config_file)
        cfg.merge_from_list(list(opts))
        if cfg.MODEL.RETINANET.NUM_CLASSES < 1:
            raise
        files = [f for f in coco_files(cfg) if Path(f.json_file).is_file()]
        there = [[file.name, file.json_file, file.image_root] for file in files]
        return load_config(config_file, [*settings, "DATASETS.COCO_FILES", repr(there)])


def find_config(weights: str) -> str:
    """The checkpoint itself where it holds its config, else config.yaml beside it.

    Raises:
        ValueError: there is neither.
    """
    is_local = "://" not in weights
    if is_local and Path(weights).suffix == ".pth" and read_config(weights) is not None:
        return weights
    beside = Path(weights).parent / "config.yaml"
    if is_local and beside.is_file():
        return str(beside)
    raise ValueError(
        f"weights '{weights}' hold no config, and there is no config.yaml beside them: give the "
        "config that they were trained with by --config-file"
    )


def names_and_ids(cfg: CfgNode) -> tuple[list[str] | None, list[int]]:
    """As :func:`rdsnet.data.datasets.class_metadata`; asks the checkpoint for unknown names."""
    metadata, weights = class_metadata(cfg), cfg.MODEL.WEIGHTS
    if metadata[0] is None and Path(weights).is_file():
        stored = read_config(weights)
        if stored is not None:
            cfg = cfg.clone()
            cfg.DATASETS.CLASSES = stored.DATASETS.get("CLASSES", [])
            metadata = class_metadata(cfg)
    return metadata


def chosen_classes(
    classes: Sequence[str], names: list[str] | None, category_ids: list[int]
) -> torch.Tensor | None:
    """Class numbers of the names or category ids to keep; None: all.

    Several may stand in one word, separated by commas.

    Raises:
        ValueError: for a class that the model does not have; the message lists those it has.
    """
    if not classes:
        return None
    number = {str(id_): k for k, id_ in enumerate(category_ids)}
    number.update({name: k for k, name in enumerate(names or [])})
    words = []
    for text in classes:  # a name may have a comma
        words += [text] if text in number else [word.strip() for word in text.split(",")]
    unknown = [word for word in words if word not in number]
    if unknown:
        known = ", ".join(names or map(str, category_ids))
        raise ValueError(f"--classes: the model has no '{unknown[0]}'. It has: {known}")
    return torch.tensor(sorted({number[word] for word in words}))


def check_weights(weights: str) -> None:
    """Raise FileNotFoundError or ValueError for a local file that cannot be a checkpoint."""
    if "://" in weights:
        return
    if not Path(weights).is_file():
        raise FileNotFoundError(
            f"weights '{weights}' do not exist. Give the path of a checkpoint (.pth or .pkl); "
            "training writes model_final.pth into OUTPUT_DIR."
        )
    with open(weights, "rb") as file:
        is_pickle = file.read(1) == b"\x80"
    if not (is_pickle or zipfile.is_zipfile(weights)):  # torch.save writes zip files
        raise ValueError(
            f"weights '{weights}' cannot be loaded: the file is cut off or not a checkpoint. "
            "Copy it again, or use another checkpoint of the run."
        )
