"""``rdsnet predict --tile``: files of large images, read, predicted and written in parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import Instances

from rdsnet.checkpoint.exported import is_exported
from rdsnet.data.findings import counted, printable
from rdsnet.data.windows import LargeImage
from rdsnet.prediction.large import OVERLAP, TILE, TiledPrediction, check_tiles
from rdsnet.prediction.output_names import OutputNames
from rdsnet.prediction.pipeline import PredictionSummary, predict_image, say
from rdsnet.prediction.predictor import CountingPredictor
from rdsnet.prediction.selection import Selection
from rdsnet.prediction.sources import Frame, Source, find_sources
from rdsnet.prediction.thresholds import AUTO
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
    check_is_tileable(weights, found.sources)
    selection = Selection.chosen(
        config_file,
        weights,
        score_threshold=score_threshold,
        classes=classes,
        max_detections=max_detections,
        opts=opts,
    )
    summary = LargeSummary(Path(output), selection.thresholds)
    summary.left_out = found.left_out_text()
    names = OutputNames()
    with ExitStack() as stack:
        writers = build_writers(formats, output, selection.metadata)
        writers = [stack.enter_context(writer) for writer in writers]
        if not all(writer.takes_parts for writer in writers):
            raise ValueError(
                "--tile writes the formats geojson, coco and csv: the others draw or keep whole "
                f"images; got {', '.join(formats)}"
            )
        summary.written = [file for writer in writers for file in writer.files]
        files = LargeFiles(selection, tile, overlap, max_detections, trust_checkpoint)
        summary.max_detections = files.max_detections
        for source in found.sources:
            try:
                name = None
                for frame, instances in files.parts(source.path):
                    name = name or names.new(source.path.stem)
                    for writer in writers:
                        writer.write(frame.named(name), instances)
                    summary.objects += len(instances)
                summary.images += 1
                summary.cut_off += files.was_cut_off
                summary.too_large += files.too_large
            except (OSError, ValueError) as error:
                say(f"skipped: {error}")
                summary.unreadable += 1
    return summary


def check_is_tileable(weights: str, sources: Sequence[Source]) -> None:
    """Raise ValueError for videos, and for a model that cannot see an image in tiles."""
    for source in sources:
        if source.is_video:
            raise ValueError(f"--tile is for images, and {printable(source.path)} is a video")
    if is_exported(weights):
        raise ValueError(
            f"--tile needs the checkpoint that '{printable(weights)}' was made from: tiles share "
            "statistics inside the model, which an exported file has closed up"
        )


class LargeFiles:
    """Predicts files of large images one after the other, each in parts.

    Args:
        tile, overlap, max_detections: as of :func:`predict_large_files`.

    Attributes:
        max_detections: objects of a tile, or of an image that is seen at once.
        was_cut_off: whether a tile of the last image had more.
        too_large: objects of it that are cut, see :class:`~rdsnet.prediction.TiledPrediction`.

    Raises:
        ValueError: the tiles are too small.
    """

    def __init__(
        self,
        selection: Selection,
        tile: int | None = None,
        overlap: int | None = None,
        max_detections: int | None = None,
        trust_checkpoint: bool = False,
    ) -> None:
        self._selection, self._tile = selection, tile
        self._predictor = CountingPredictor(selection.cfg, trust_checkpoint)
        self.max_detections = max_detections or self._predictor.max_detections
        self.was_cut_off, self.too_large = False, 0
        self._options = {"score_threshold": selection.thresholds, "overlap": overlap or OVERLAP}
        if max_detections:
            self._options["most_objects"] = max_detections
        if tile:  # too small ones are said before anything is read
            check_tiles(self._predictor.model, tile, overlap or OVERLAP)

    def parts(self, path: Path) -> Iterator[tuple[Frame, Instances]]:
        """The parts of an image, and what is kept of the objects in each, on the CPU.

        Raises:
            OSError, ValueError: the file cannot be read.
        """
        self.was_cut_off, self.too_large = False, 0
        with LargeImage(str(path), channels=self._predictor.channels) as image:
            side = self._tile or chosen_tile(self._selection.cfg, image.shape[:2])
            say(_decision(path, image.shape, self._tile, side))
            empty = np.broadcast_to(np.uint8(0), image.shape)
            parts = self._at_once(image) if side is None else self._in_tiles(image, side)
            for number, instances in enumerate(parts):
                frame = Frame(path.stem, path, empty, part=number)
                yield frame, self._selection.of_classes(instances)

    def _at_once(self, image: LargeImage) -> Iterator[Instances]:
        height, width = image.shape[:2]
        picture = image.read((0, 0, width, height))
        yield predict_image(self._predictor, picture, self._selection.thresholds)
        self.was_cut_off = self._predictor.was_cut_off

    def _in_tiles(self, image: LargeImage, side: int) -> Iterator[Instances]:
        prediction = TiledPrediction(image, self._predictor, tile=side, **self._options)
        yield from prediction
        self.was_cut_off, self.too_large = prediction.cut_off > 0, prediction.too_large


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
