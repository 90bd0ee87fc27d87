"""``rdsnet predict --tile``: files of large images, read, predicted and written in parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances

from rdsnet.checkpoint.exported import is_exported
from rdsnet.checkpoint.trained import model_threshold, names_and_ids, prediction_config
from rdsnet.data.findings import counted, printable
from rdsnet.data.windows import LargeImage
from rdsnet.prediction.large import OVERLAP, TILE, TiledPrediction, check_tiles
from rdsnet.prediction.output_names import OutputNames
from rdsnet.prediction.pipeline import (
    PredictionSummary,
    chosen_classes,
    predict_image,
    say,
)
from rdsnet.prediction.predictor import CountingPredictor
from rdsnet.prediction.sources import Frame, find_sources
from rdsnet.prediction.thresholds import AUTO, ScoreThresholds
from rdsnet.prediction.writers import build_writers

# An image that is shrunk to less than this share is too large to be seen at once.
_LEAST_SCALE = 0.5


@dataclass
class LargeSummary(PredictionSummary):
    """What :func:`predict_large_files` did."""

    too_large: int = 0

    def text(self) -> str:
        lines = [super().text()]
        if self.too_large:
            lines.append(
                f"{counted(self.too_large, 'object')} reached beyond what one tile sees and may be "
                "cut: a larger --overlap (and --tile) shows them whole."
            )
        return "\n".join(lines)


def predict_large_files(
    config_file: str | None,
    weights: str,
    inputs: Sequence[str],
    output: str | Path,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    formats: Sequence[str] = ("geojson",),
    score_threshold: float | str = AUTO,
    classes: Sequence[str] = (),
    max_detections: int | None = None,
    opts: Sequence[str] = (),
    trust_checkpoint: bool = False,
) -> LargeSummary:
    """Predict the objects of large images, a tile at a time.

    Args:
        tile: side of the tiles, pixels; None: images that are too large to be seen at once are
            predicted in tiles of 2048 px, and that is said, the others as always.
        overlap: pixels that neighbouring tiles both see; None: 256.
        formats: those whose writers take parts.
        max_detections: objects per tile; None: 20,000.
        Others: as of :func:`rdsnet.prediction.predict`.

    Raises:
        FileNotFoundError, ValueError: for what is missing or does not fit. Files that cannot be
            read are reported on stderr and counted instead.
    """
    found = find_sources(inputs)
    for source in found.sources:
        if source.is_video:
            raise ValueError(f"--tile is for images, and {printable(source.path)} is a video")
    if is_exported(weights):
        raise ValueError(
            f"--tile needs the checkpoint that '{printable(weights)}' was made from: tiles share "
            "statistics inside the model, which an exported file has closed up"
        )
    cfg = prediction_config(config_file, weights, None, opts, max_detections)
    thresholds = ScoreThresholds.chosen(cfg, score_threshold)
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = model_threshold(thresholds.lowest)
    metadata = names_and_ids(cfg)
    kept = chosen_classes(classes, *metadata)
    summary = LargeSummary(Path(output), thresholds)
    summary.left_out = found.left_out_text()
    names = OutputNames()
    with ExitStack() as stack:
        writers = [stack.enter_context(w) for w in build_writers(formats, output, metadata)]
        if not all(writer.takes_parts for writer in writers):
            raise ValueError(
                "--tile writes the formats geojson, coco and csv: the others draw or keep whole "
                f"images; got {', '.join(formats)}"
            )
        summary.written = [file for writer in writers for file in writer.files]
        predictor = CountingPredictor(cfg, trust_checkpoint)
        summary.max_detections = max_detections or predictor.max_detections
        options = {"score_threshold": thresholds, "overlap": overlap or OVERLAP}
        if max_detections:
            options["most_objects"] = max_detections
        if tile:  # too small ones are said before anything is read
            check_tiles(predictor.model, tile, overlap or OVERLAP)
        for source in found.sources:
            try:
                with LargeImage(str(source.path), channels=predictor.channels) as image:
                    side = tile or chosen_tile(cfg, image.shape[:2])
                    say(_decision(source.path, image.shape, tile, side))
                    name = names.new(source.path.stem)
                    empty = np.broadcast_to(np.uint8(0), image.shape)
                    if side is None:
                        parts = _at_once(image, predictor, thresholds, summary)
                    else:
                        prediction = TiledPrediction(image, predictor, tile=side, **options)
                        parts = _in_tiles(prediction, summary)
                    for number, instances in enumerate(parts):
                        if kept is not None:
                            instances = instances[torch.isin(instances.pred_classes, kept)]
                        frame = Frame(name, source.path, empty, part=number)
                        for writer in writers:
                            writer.write(frame, instances)
                        summary.objects += len(instances)
                summary.images += 1
            except (OSError, ValueError) as error:
                say(f"skipped: {error}")
                summary.unreadable += 1
    return summary


def chosen_tile(cfg: CfgNode, size: tuple[int, int]) -> int | None:
    """The side of tiles for an image (H, W), or None: the model sees it at once.

    At once, an image is resized as the config says. It is too large for that where the network's
    input would be larger than a tile, or where it would be shrunk to less than half its size.
    """
    scale = test_scale(cfg, size)
    too_many_pixels = size[0] * size[1] * scale**2 > TILE**2
    return TILE if too_many_pixels or scale < _LEAST_SCALE else None


def test_scale(cfg: CfgNode, size: tuple[int, int]) -> float:
    """By which the config resizes an image (H, W) that the model sees at once."""
    shortest, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    return min(shortest / min(size), longest / max(size)) if shortest else 1.0


def _decision(path: Path, shape: tuple[int, ...], asked: int | None, side: int | None) -> str:
    image = f"{printable(path)}, {shape[1]} x {shape[0]} px"
    if side is None:
        return f"{image}: small enough to be seen at once"
    return f"{image}: in tiles of {side} px" + ("" if asked else ", since it is too large at once")


def _at_once(
    image: LargeImage,
    predictor: CountingPredictor,
    thresholds: ScoreThresholds,
    summary: LargeSummary,
) -> Iterator[Instances]:
    height, width = image.shape[:2]
    yield predict_image(predictor, image.read((0, 0, width, height)), thresholds)
    summary.cut_off += predictor.was_cut_off


def _in_tiles(prediction: TiledPrediction, summary: LargeSummary) -> Iterator[Instances]:
    yield from prediction
    summary.cut_off += prediction.cut_off > 0
    summary.too_large += prediction.too_large
