"""One pass over a large image, tile by tile, at one resolution.

Tiles lie on the grid of the model's coarsest features, see beyond their borders, and share the
statistics of GroupNorm (:mod:`rdsnet.modeling.group_statistics`), so that what is found is what
the model finds in the whole: exactly those where the features of all tiles can be kept, an
estimate where they are too many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data.transforms import ResizeTransform
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from tqdm import tqdm

from rdsnet.data.channels import applied
from rdsnet.data.windows import WindowReader, read_reduced
from rdsnet.modeling import inference_precision
from rdsnet.modeling.group_statistics import GroupStatistics, Part
from rdsnet.prediction.predictor import Predictor
from rdsnet.prediction.thresholds import ScoreThresholds, certain
from rdsnet.prediction.tiles import Box, Seams, Tile, spread_windows, tile_grid

STATISTICS = ("auto", "image", "sample", "tile")
# Tiles go on together while they are so few, each in a thread, and what is kept of them are so many
# bytes. That is as much as so many times the features: half for those themselves and for what the
# streams make, half for what the C library keeps for every thread (benchmarks/tiles).
_MOST_TOGETHER, _KEPT_BYTES, _KEPT_MAPS = 16, 2**31, 6
# GroupNorm's statistics are estimated on this share of an image, on windows of so many strides a
# side, so many at least, and no more than have the pixels of a tile.
_SAMPLED, _SAMPLE_SIDE, _LEAST_SAMPLES = 0.025, 3, 12
# What ends so near to the border of what its tile sees may be a piece of something larger: pixels
# of the network's input, as the regression of a box errs.
_NEAR = 8
WHOLE, NEAR_BORDER, CUT = 0, 1, 2
"""Values of the field ``cut``: how an object lies in what its tile sees."""


class TiledPass:
    """The objects of an image at one resolution, a part at a time: iterate over it.

    Gives Instances as :class:`~rdsnet.prediction.TiledPrediction` does, with a field ``cut``,
    (N,) int64: ``WHOLE``, ``NEAR_BORDER`` or ``CUT``.

    Args:
        reader, predictor, tile, overlap, score_threshold, scale, statistics, most_objects: as of
            :class:`~rdsnet.prediction.TiledPrediction`.
        reduction: the image is read at 1/reduction of its resolution; ``scale`` is that of the
            image all the same, ``1 / reduction`` where the network resizes no further.
        pieces: boxes (N, 4): tiles that see none of them are not looked at, unless all tiles go on
            together; None: all are.

    Attributes:
        tiles: the grid.
        limit: an object whose longer side is below this, pixels of the image, is seen whole by the
            tile that it belongs to.
        cut_off: tiles with more than ``most_objects``.
        asked: those of the tiles that are looked at.
    """

    def __init__(
        self,
        reader: WindowReader,
        predictor: Predictor,
        *,
        tile: int,
        overlap: int,
        score_threshold: float | ScoreThresholds,
        scale: float,
        statistics: str,
        most_objects: int,
        reduction: int = 1,
        pieces: Tensor | None = None,
    ) -> None:
        self._reader, self._predictor, self._reduction = reader, predictor, reduction
        self._score_threshold, self._most_objects = score_threshold, most_objects
        self._stride = coarsest_stride(predictor.model)
        self._unit = _unit(self._stride, scale)
        self._side = tile
        self.limit, self.cut_off = check_tiles(predictor.model, tile, overlap, scale), 0
        self.tiles = tile_grid(reader.shape[:2], tile, self.limit, self._unit)
        self._statistics = GroupStatistics(predictor.model)
        self._seen = self._way_to(statistics)
        self.asked = self.tiles
        if pieces is not None and self._seen != self._together:  # together all have been seen
            self.asked = [tile for tile in self.tiles if sees_some(tile, pieces)]

    def __iter__(self) -> Iterator[Instances]:
        self.cut_off = 0
        seams = Seams()
        shown = None if self._reduction == 1 else f"at 1/{self._reduction}"
        asked = tqdm(self.asked, desc=shown, unit="tile", disable=None)
        found = None
        for tile, instances in with_skipped(self.tiles, zip(asked, self._seen())):
            if instances is None:
                yield from seams.skip(tile)
            else:
                found = self._in_image(tile, instances)
                yield from seams.add(tile, found)
        if found is not None:
            yield found[:0]  # so that there is a part of an image without objects, too

    def _way_to(self, statistics: str) -> Callable[[], Iterator[Instances]]:
        """How tiles are seen for GroupNorm to have these statistics.

        Such a function gives all that the model finds in every tile, in pixels of its window.
        """
        if not self._statistics or statistics == "tile" or len(self.tiles) == 1:
            return self._one_by_one
        if statistics != "sample" and self._fit_together():
            return self._together
        return self._measured if statistics == "image" else self._estimated

    def _fit_together(self) -> bool:
        shapes = self._predictor.model.backbone.output_shape().values()
        features = sum(shape.channels / shape.stride**2 for shape in shapes)  # per pixel
        pixels = sum(math.prod(self._input_size(tile.window)) for tile in self.tiles)
        kept = torch.float32.itemsize * _KEPT_MAPS * features * pixels
        return len(self.tiles) <= _MOST_TOGETHER and kept <= _KEPT_BYTES

    def _one_by_one(self) -> Iterator[Instances]:
        model = self._predictor.model
        for tile in self.asked:
            with self._finding(), self._statistics.used():
                instances = model([self._inputs(tile.window)])[0]["instances"]
            yield instances

    def _measured(self) -> Iterator[Instances]:
        with self._computing():
            self._statistics.measure(
                lambda: ((partial(self._streams, tile), self._part(tile)) for tile in self.tiles)
            )
        yield from self._one_by_one()

    def _estimated(self) -> Iterator[Instances]:
        windows = self._samples()
        with self._computing():
            run = partial(run_streams, self._predictor.model, [*map(self._inputs, windows)])
            self._statistics.estimate(run, is_whole=len(windows) == 1)
        yield from self._one_by_one()

    def _samples(self) -> list[Box]:
        """Windows that statistics are estimated on; one: the whole image, where that is small."""
        height, width = size = self.tiles[0].size
        side = _SAMPLE_SIDE * self._unit
        count = min(round(_SAMPLED * height * width / side**2), self._side**2 // side**2)
        count = max(count, _LEAST_SAMPLES)
        if height * width <= count * side**2:
            return [(0, 0, width, height)]
        return spread_windows(size, side, count, self._unit)

    def _together(self) -> Iterator[Instances]:
        model = self._predictor.model
        runs = [(partial(self._streams, tile), self._part(tile)) for tile in self.tiles]
        ready = self._statistics.together(runs)[::-1]
        while ready:
            inputs, streams = ready.pop()
            # As when the streams ran: no part of them is evaluated later.
            with self._finding(), self._statistics.used(), _known(model.pixel_stream, streams.psi):
                found = model.inference(
                    streams.predictions, streams.features, streams.sizes, [inputs]
                )
            yield found[0]["instances"]

    def _streams(self, tile: Tile) -> tuple[dict, Streams]:
        inputs = self._inputs(tile.window)
        with self._computing():  # once more, since this may be another thread
            return inputs, run_streams(self._predictor.model, [inputs])

    def _in_image(self, tile: Tile, found: Instances) -> Instances:
        """What is kept of a tile, in pixels of the image, on the CPU."""
        self.cut_off += len(found) > self._most_objects
        found = certain(found[: self._most_objects].to("cpu"), self._score_threshold)
        near = touch_border(found, tile, _NEAR * self._unit / self._stride)
        found.cut = torch.where(reach_border(found, tile), CUT, near * NEAR_BORDER)
        return placed(found, tile)

    @contextmanager
    def _finding(self) -> Iterator[None]:
        """Inside, the model gives the objects of a tile."""
        with self._computing(), _without_limits(self._predictor.model, self._most_objects + 1):
            yield

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Inside, the model computes as the predictor's does; never where results are used."""
        with torch.no_grad(), inference_precision(self._predictor.cfg):
            yield

    def _inputs(self, window: Box) -> dict:
        """What the model is given for a window."""
        image = read_reduced(self._reader, window, self._reduction)
        image = self._predictor.ordered(image)
        size = self._input_size(window)
        if image.shape[:2] != size:
            resize = ResizeTransform(*image.shape[:2], *size)
            image = applied(resize, np.ascontiguousarray(image))
        chw = torch.as_tensor(image.astype("float32").transpose(2, 0, 1))
        x1, y1, x2, y2 = window
        return {"image": chw, "height": y2 - y1, "width": x2 - x1}

    def _input_size(self, window: Box) -> tuple[int, int]:
        """(H, W) of the network's input for a window."""
        x1, y1, x2, y2 = window
        height, width = (max(round(n * self._stride / self._unit), 1) for n in (y2 - y1, x2 - x1))
        return height, width

    def _part(self, tile: Tile) -> Part:
        """What of the network's input for a tile no other tile counts."""
        height, width = tile.size
        (x1, y1, x2, y2), (left, top, _, _) = tile.core, tile.window

        def cells(pixels: int) -> int:
            return pixels * self._stride // self._unit

        divisor = max(self._predictor.model.size_divisibility, 1)
        padded = tuple(-(-side // divisor) * divisor for side in self._input_size(tile.window))
        return Part(
            cells(x1 - left),
            cells(y1 - top),
            cells(x2 - left) if x2 < width else None,
            cells(y2 - top) if y2 < height else None,
            padded,
        )


def sees_some(tile: Tile, boxes: Tensor) -> bool:
    """Whether any of the boxes (N, 4), pixels of the image, reaches into a tile's window."""
    x1, y1, x2, y2 = tile.window
    low, high = boxes.new_tensor([x1, y1]), boxes.new_tensor([x2, y2])
    return bool(((boxes[:, :2] < high) & (boxes[:, 2:] > low)).all(1).any())


def with_skipped(
    tiles: list[Tile], seen: Iterable[tuple[Tile, Instances]]
) -> Iterator[tuple[Tile, Instances | None]]:
    """All tiles in order, those that are not among the seen ones with None."""
    left = iter(tiles)
    for tile, instances in seen:
        yield from ((other, None) for other in takewhile(lambda one, to=tile: one is not to, left))
        yield tile, instances
    yield from ((other, None) for other in left)


def check_tiles(model: nn.Module, tile: int, overlap: int, scale: float = 1.0) -> int:
    """The overlap that tiles have, pixels; arguments as of :class:`TiledPass`.

    Raises:
        ValueError: the overlap leaves nothing of a tile.
    """
    unit = _unit(coarsest_stride(model), scale)
    overlap = -(-overlap // unit) * unit
    if tile < overlap + unit:
        raise ValueError(
            f"tiles of {tile} px are too small: neighbouring tiles both see {overlap} px. Give at "
            f"least {overlap + unit} px, or a smaller overlap."
        )
    return overlap


def _unit(stride: int, scale: float) -> int:
    """Pixels of the image that become one cell of the coarsest features."""
    return max(round(stride / scale), 1)


class Streams(NamedTuple):
    """What a model's two streams have made of images: all that objects are found from.

    Attributes:
        sizes: (H, W) of the images, without padding.
        features: of the backbone.
        predictions: of the object stream.
        psi: of the pixel stream.
    """

    sizes: list[tuple[int, int]]
    features: dict[str, torch.Tensor]
    predictions: Any
    psi: torch.Tensor


def run_streams(model: nn.Module, batch: list[dict]) -> Streams:
    """What of the model is run on the whole of images: all but the detections' own part."""
    images = model.preprocess_image(batch)
    sizes, features = images.image_sizes, model.backbone(images.tensor)
    del images  # it may be kept for long what this returns, and what is at work here
    return Streams(sizes, features, model.object_stream(features), model.pixel_stream(features))


def coarsest_stride(model: nn.Module) -> int:
    """Of all feature maps, pixels of the network's input."""
    return max(shape.stride for shape in model.backbone.output_shape().values())


def placed(found: Instances, tile: Tile) -> Instances:
    """Objects of a tile's window, moved to where they are in the image."""
    x, y = tile.window[:2]
    result = Instances(tile.size)
    for name, value in found.get_fields().items():
        if isinstance(value, Boxes):
            value = Boxes(value.tensor + value.tensor.new_tensor([x, y, x, y]))
        elif name == "pred_masks":
            value = value.placed(tile.size, x, y)
        result.set(name, value)
    return result


def touch_border(found: Instances, tile: Tile, near: float = 0) -> torch.Tensor:
    """Which of a window's objects end where the image goes on, or so ``near`` to there, pixels."""
    (left, top, right, bottom), (height, width) = tile.window, tile.size
    x1, y1, x2, y2 = found.regressed_boxes.tensor.unbind(1)
    is_cut = torch.zeros(len(found), dtype=torch.bool)
    for beyond, goes_on in (
        (x1 <= near, left > 0),
        (y1 <= near, top > 0),
        (x2 >= right - left - near, right < width),
        (y2 >= bottom - top - near, bottom < height),
    ):
        is_cut |= beyond & goes_on
    return is_cut


def reach_border(found: Instances, tile: Tile) -> torch.Tensor:
    """Which of a window's objects end where the image goes on, though they belong to its core."""
    left, top = tile.window[:2]
    x, y = found.pred_boxes.get_centers().unbind(1)
    x, y = x + left, y + top
    x1, y1, x2, y2 = tile.core
    return touch_border(found, tile) & (x1 <= x) & (x < x2) & (y1 <= y) & (y < y2)


@contextmanager
def _without_limits(model: nn.Module, most: int) -> Iterator[None]:
    """Inside, the model finds so many objects."""
    stream = model.object_stream
    before = stream.max_detections, stream.topk_candidates
    stream.max_detections, stream.topk_candidates = most, max(most, before[1])
    try:
        yield
    finally:
        stream.max_detections, stream.topk_candidates = before


@contextmanager
def _known(pixel_stream: nn.Module, psi: torch.Tensor) -> Iterator[None]:
    """Inside, the pixel stream gives what it has made before."""
    pixel_stream.forward = lambda features: psi
    try:
        yield
    finally:
        del pixel_stream.forward
