"""``rdsnet predict --tile``: files of large images, read, predicted and written in parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.structures import Instances

from rdsnet.checkpoint.exported import is_exported
from rdsnet.checkpoint.trained import learnt_object_sizes
from rdsnet.data.findings import counted, printable
from rdsnet.data.windows import LargeImage
from rdsnet.prediction.large import OVERLAP, TiledPrediction
from rdsnet.prediction.output_names import OutputNames
from rdsnet.prediction.pipeline import PredictionSummary, predict_image, say
from rdsnet.prediction.predictor import CountingPredictor
from rdsnet.prediction.selection import Selection
from rdsnet.prediction.sources import Frame, Source, find_sources
from rdsnet.prediction.thresholds import AUTO
from rdsnet.prediction.tile_choice import TileChoice, chosen_tiles, spelled
from rdsnet.prediction.tiled_pass import check_tiles
from rdsnet.prediction.writers import WRITERS, build_writers


@dataclass
class LargeSummary(PredictionSummary):
    """What :func:`predict_large_files` did."""

    too_large: int = 0
    found_coarser: int = 0

    def text(self) -> str:
        lines = [super().text()]
        if self.found_coarser:
            lines.append(
                f"{counted(self.found_coarser, 'object')} too large for what tiles overlap by "
                "came from a second look, at a coarser resolution."
            )
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
    coordinates: str = "pixels",
    score_threshold: float | str = AUTO,
    classes: Sequence[str] = (),
    max_detections: int | None = None,
    opts: Sequence[str] = (),
    trust_checkpoint: bool = False,
) -> LargeSummary:
    """Predict the objects of large images, a tile at a time.

    Args:
        tile: side of the tiles, pixels; None: images that are too large to be seen at once are
            predicted in tiles, the others as always, as :func:`~.tile_choice.chosen_tiles` says,
            and that is said.
        overlap: pixels that neighbouring tiles both see; None: 256, or with ``tile`` None as it
            chooses.
        formats: those whose writers take parts.
        coordinates: of GeoJSON: "pixels", or "map" for GeoTIFF.
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
        writers = build_writers(formats, output, selection.metadata, coordinates)
        writers = [stack.enter_context(writer) for writer in writers]
        if not all(writer.takes_parts for writer in writers):
            known = [name for name, writer in WRITERS.items() if writer.takes_parts]
            raise ValueError(
                f"--tile writes the formats {', '.join(known)}: the others draw or keep whole "
                f"images; got {', '.join(formats)}"
            )
        summary.written = [file for writer in writers for file in writer.files]
        files = LargeFiles(selection, tile, overlap, max_detections, trust_checkpoint)
        summary.max_detections = files.max_detections
        for source in found.sources:
            try:
                for writer in writers:
                    writer.check(source.path)
                name = None
                for frame, instances in files.parts(source.path):
                    name = name or names.new(source.path.stem)
                    for writer in writers:
                        writer.write(frame.named(name), instances)
                    summary.objects += len(instances)
                summary.images += 1
                summary.cut_off += files.was_cut_off
                summary.too_large += files.too_large
                summary.found_coarser += files.found_coarser
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
        too_large, found_coarser: objects of it that are cut, and that come from a coarser pass, see
            :class:`~rdsnet.prediction.TiledPrediction`.

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
        self._selection, self._tile, self._overlap = selection, tile, overlap
        self._learnt_sizes = learnt_object_sizes(selection.cfg)
        self._predictor = CountingPredictor(selection.cfg, trust_checkpoint)
        self.max_detections = max_detections or self._predictor.max_detections
        self.was_cut_off, self.too_large, self.found_coarser = False, 0, 0
        self._options = {"score_threshold": selection.thresholds}
        if max_detections:
            self._options["most_objects"] = max_detections
        if tile:  # too small ones are said before anything is read
            check_tiles(self._predictor.model, tile, overlap or OVERLAP)

    def parts(self, path: Path) -> Iterator[tuple[Frame, Instances]]:
        """The parts of an image, and what is kept of the objects in each, on the CPU.

        Raises:
            OSError, ValueError: the file cannot be read.
        """
        self.was_cut_off, self.too_large, self.found_coarser = False, 0, 0
        with LargeImage(str(path), channels=self._predictor.channels) as image:
            choice = self._choice(image.shape[:2])
            height, width = image.shape[:2]
            say(f"{printable(path)}, {width} x {height} px: {spelled(choice)}")
            empty = np.broadcast_to(np.uint8(0), image.shape)
            parts = self._in_tiles(image, choice) if choice.side else self._at_once(image)
            for number, instances in enumerate(parts):
                frame = Frame(path.stem, path, empty, part=number, file=image)
                yield frame, self._selection.of_classes(instances)

    def _choice(self, size: tuple[int, int]) -> TileChoice:
        if self._tile:
            return TileChoice(self._tile, self._overlap or OVERLAP)
        return chosen_tiles(self._selection.cfg, self._learnt_sizes, size, self._overlap)

    def _at_once(self, image: LargeImage) -> Iterator[Instances]:
        height, width = image.shape[:2]
        picture = image.read((0, 0, width, height))
        yield predict_image(self._predictor, picture, self._selection.thresholds)
        self.was_cut_off = self._predictor.was_cut_off

    def _in_tiles(self, image: LargeImage, choice: TileChoice) -> Iterator[Instances]:
        how = {"tile": choice.side, "overlap": choice.overlap, "scale": choice.scale}
        prediction = TiledPrediction(image, self._predictor, **how, **self._options)
        yield from prediction
        self.was_cut_off, self.too_large = prediction.cut_off > 0, prediction.too_large
        self.found_coarser = prediction.found_coarser
