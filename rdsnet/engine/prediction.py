"""Predictions for files: which images, which model, what is written.

Images are read, predicted and written one at a time, so memory depends on the size of an image, not
on how many there are.
"""

from __future__ import annotations

import glob
import os
import sys
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from tqdm import tqdm

from rdsnet.config import get_cfg
from rdsnet.data.datasets import coco_files
from rdsnet.data.mapper import read_image
from rdsnet.engine.launch import load_config
from rdsnet.engine.prediction_output import build_writers
from rdsnet.engine.predictor import Predictor

IMAGE_ENDINGS = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)


@dataclass
class PredictionSummary:
    """What :func:`predict` did."""

    output: Path
    score_threshold: float
    images: int = 0
    unreadable: int = 0
    objects: int = 0
    written: list[str] = field(default_factory=list)

    def text(self) -> str:
        lines = [f"{self.objects} objects in {self.images} images."]
        if self.unreadable:
            lines.append(f"{self.unreadable} files could not be read.")
        if self.images and not self.objects:
            lines.append(
                f"No object reached the score {self.score_threshold:g}; a lower --score-threshold "
                "shows less certain ones."
            )
        if self.images:
            lines.append("Written: " + ", ".join(str(self.output / name) for name in self.written))
        return "\n".join(lines)


def predict(
    config_file: str,
    weights: str,
    inputs: Sequence[str],
    output: str | Path,
    *,
    formats: Sequence[str] = ("png",),
    score_threshold: float = 0.5,
    opts: Sequence[str] = (),
    trust_checkpoint: bool = False,
) -> PredictionSummary:
    """Predict the objects in image files and write them in some formats.

    Args:
        config_file: the config that the weights were trained with.
        weights: a checkpoint, a path or an address that Detectron2 knows.
        inputs: images, folders and patterns, see :func:`find_images`.
        output: folder to write into; made if missing, files in it are overwritten.
        formats: "png", "coco", "labelme", see :mod:`rdsnet.engine.prediction_output`.
        score_threshold: objects with lower scores are left out.
        opts: config options KEY VALUE that override the file.
        trust_checkpoint: load weights that hold arbitrary Python objects, running their code.

    Raises:
        FileNotFoundError, ValueError: for what is missing or does not fit. Files that exist but
            cannot be read as images are reported on stderr and counted instead.
    """
    paths = find_images(inputs)
    cfg = prediction_config(config_file, weights, score_threshold, opts)
    predictor = Predictor(cfg, trust_checkpoint)
    summary = PredictionSummary(Path(output), score_threshold)
    metadata = class_metadata(cfg)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(writer) for writer in build_writers(formats, output, metadata)
        ]
        summary.written = [file for writer in writers for file in writer.files]
        names: set[str] = set()
        for path in tqdm(paths, unit="image", disable=None):
            try:
                image = read_image(str(path), "BGR")
            except (OSError, ValueError) as error:
                tqdm.write(f"skipped: {error}", file=sys.stderr)
                summary.unreadable += 1
                continue
            instances = predict_image(predictor, image, score_threshold)
            name = unused_name(path.stem, names)
            for writer in writers:
                writer.write(name, path, image, instances)
            summary.images += 1
            summary.objects += len(instances)
    return summary


def predict_image(predictor: Predictor, image: np.ndarray, score_threshold: float) -> Instances:
    """Objects of one (H, W, 3) uint8 BGR image with at least this score, on the CPU."""
    instances = predictor(image)["instances"].to("cpu")
    return instances[instances.scores >= score_threshold]


def prediction_config(
    config_file: str, weights: str, score_threshold: float = 0.0, opts: Sequence[str] = ()
) -> CfgNode:
    """The config for a Predictor whose masks stay compact.

    The data that the model was trained on may be gone: entries of ``DATASETS.COCO_FILES`` without
    their json are ignored as long as the number of classes is given.

    Raises:
        FileNotFoundError, ValueError: as :func:`rdsnet.engine.load_config`; for weights that are
            missing or damaged.
    """
    check_weights(weights)
    settings = ["MODEL.WEIGHTS", weights, "MODEL.RDSNET.DENSE_MASKS", "False"]
    # Spares the model the masks that nobody will see; below 1, which no score exceeds.
    settings += ["MODEL.RETINANET.SCORE_THRESH_TEST", str(min(score_threshold, 0.99))]
    settings = [*opts, *settings]
    try:
        return load_config(config_file, settings)
    except FileNotFoundError:
        if not Path(config_file).is_file():
            raise
        cfg = get_cfg()
        cfg.merge_from_file(config_file)
        cfg.merge_from_list(list(opts))
        if cfg.MODEL.RETINANET.NUM_CLASSES < 1:
            raise
        files = [f for f in coco_files(cfg) if Path(f.json_file).is_file()]
        there = [[file.name, file.json_file, file.image_root] for file in files]
        return load_config(config_file, [*settings, "DATASETS.COCO_FILES", repr(there)])


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


def class_metadata(cfg: CfgNode) -> tuple[list[str] | None, list[int]]:
    """Class names (None: unknown) and the category id of each class.

    From the first data set of the config whose number of classes is the model's; where there is
    none, ids are the class numbers from 0.
    """
    num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(name)
        names = metadata.get("thing_classes")
        if names is not None and len(names) == num_classes:
            ids = metadata.get("thing_dataset_id_to_contiguous_id")
            ids = range(num_classes) if ids is None else sorted(ids, key=ids.get)
            return list(names), list(ids)
    return None, list(range(num_classes))


def find_images(inputs: Sequence[str]) -> list[Path]:
    """The image files that a command line names, in its order, none twice.

    Args:
        inputs: paths of files (of any ending); folders (the image files directly inside, sorted by
            name); patterns with ``*``, ``?``, ``**`` (sorted). ``~`` is the home folder.

    Raises:
        FileNotFoundError: for a path that does not exist, or a folder or pattern without images.
    """
    found: dict[str, None] = {}
    for given in inputs:
        path = os.path.expanduser(given)
        if os.path.isfile(path):
            found[path] = None
            continue
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                inside = [entry.path for entry in entries if is_image_file(entry)]
            if not inside:
                endings = ", ".join(sorted(IMAGE_ENDINGS))
                raise FileNotFoundError(
                    f"--input: the folder '{given}' has no images ({endings}). Images in folders "
                    f"inside are named by a pattern, such as '{given.rstrip('/')}/**/*.jpg'."
                )
        elif glob.has_magic(path):
            inside = [name for name in glob.glob(path, recursive=True) if os.path.isfile(name)]
            if not inside:
                raise FileNotFoundError(f"--input: no file fits the pattern '{given}'.")
        else:
            raise FileNotFoundError(f"--input: '{given}' does not exist.")
        found.update(dict.fromkeys(sorted(inside)))
    return [Path(path) for path in found]


def is_image_file(entry: os.DirEntry) -> bool:
    return entry.is_file() and os.path.splitext(entry.name)[1].lower() in IMAGE_ENDINGS


def unused_name(stem: str, taken: set[str]) -> str:
    """The stem, with a number if it is taken: "cat", "cat_2"; adds it to ``taken``."""
    name, number = stem, 1
    while name.lower() in taken:  # some file systems do not tell cases apart
        number += 1
        name = f"{stem}_{number}"
    taken.add(name.lower())
    return name
