"""One pass over a large image, tile by tile, at one resolution.

Tiles lie on the grid of the model's coarsest features, see beyond their borders, and share the
statistics of GroupNorm (:mod:`rdsnet.modeling.group_statistics`), so that what is found is what
the model finds in the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import torch
from detectron2.data.transforms import ResizeTransform
from detectron2.structures import Boxes, Instances
from torch import nn
from tqdm import tqdm

from rdsnet.data.channels import applied
from rdsnet.data.windows import WindowReader, read_reduced
from rdsnet.modeling import inference_precision
from rdsnet.modeling.group_statistics import GroupStatistics, Part
from rdsnet.prediction.predictor import Predictor
from rdsnet.prediction.thresholds import ScoreThresholds, certain
from rdsnet.prediction.tiles import Seams, Tile, tile_grid

# Of images with more tiles than this, GroupNorm's statistics are measured on so many samples, whose
# windows are of so many strides a side. Measuring takes about five runs of the model.
_MOST_MEASURED, _SAMPLES, _SAMPLE_SIDE = 16, 24, 5
STATISTICS = ("auto", "image", "sample", "tile")
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

    Attributes:
        tiles: the grid.
        limit: an object whose longer side is below this, pixels of the image, is seen whole by the
            tile that it belongs to.
        cut_off: tiles with more than ``most_objects``.
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
    ) -> None:
        self._reader, self._predictor, self._reduction = reader, predictor, reduction
        self._score_threshold, self._most_objects = score_threshold, most_objects
        self._stride = coarsest_stride(predictor.model)
        self._unit = _unit(self._stride, scale)
        margin = check_tiles(predictor.model, tile, overlap, scale)
        self.limit, self.cut_off = 2 * margin, 0
        self.tiles = tile_grid(reader.shape[:2], tile, margin, self._unit)
        self._statistics = GroupStatistics(predictor.model)
        self._measured = self._chosen_for_measuring(statistics)

    def __iter__(self) -> Iterator[Instances]:
        self.cut_off = 0
        seams = Seams()
        if self._measured:
            with self._computing():
                self._statistics.measure(self._measuring)
        shown = None if self._reduction == 1 else f"at 1/{self._reduction}"
        for tile in tqdm(self.tiles, desc=shown, unit="tile", disable=None):
            found = self._found(tile)
            yield from seams.add(tile, found)
        yield found[:0]  # so that there is a part of an image without objects, too

    def _chosen_for_measuring(self, statistics: str) -> list[Tile]:
        """The tiles that statistics are measured on; none: every tile has its own."""
        if not self._statistics or statistics == "tile" or len(self.tiles) == 1:
            return []
        if statistics == "image" or (statistics == "auto" and len(self.tiles) <= _MOST_MEASURED):
            return self.tiles
        size, unit = self.tiles[0].size, self._unit
        places = tile_grid(size, _SAMPLE_SIDE * unit, unit, unit)
        count = min(len(places), _SAMPLES)
        return [places[n] for n in np.random.default_rng(0).permutation(len(places))[:count]]

    def _found(self, tile: Tile) -> Instances:
        """All that the model finds in a tile, in pixels of the image, on the CPU."""
        with ExitStack() as stack:
            stack.enter_context(self._computing())
            stack.enter_context(_without_limits(self._predictor.model, self._most_objects + 1))
            if self._measured:
                stack.enter_context(self._statistics.used())
            instances = self._predictor.model([self._inputs(tile)])[0]["instances"]
        self.cut_off += len(instances) > self._most_objects
        instances = certain(instances[: self._most_objects].to("cpu"), self._score_threshold)
        near = touch_border(instances, tile, _NEAR * self._unit / self._stride)
        instances.cut = torch.where(reach_border(instances, tile), CUT, near * NEAR_BORDER)
        return placed(instances, tile)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Inside, the model computes as the predictor's does; never where results are used."""
        with torch.no_grad(), inference_precision(self._predictor.cfg):
            yield

    def _measuring(self) -> Iterator[tuple[partial, Part]]:
        for tile in self._measured:
            inputs = self._inputs(tile)
            yield partial(run_streams, self._predictor.model, inputs), self._part(tile, inputs)

    def _inputs(self, tile: Tile) -> dict:
        """What the model is given for a tile."""
        image = read_reduced(self._reader, tile.window, self._reduction)
        image = self._predictor.ordered(image)
        x1, y1, x2, y2 = tile.window
        height, width = y2 - y1, x2 - x1
        size = tuple(max(round(side * self._stride / self._unit), 1) for side in (height, width))
        if image.shape[:2] != size:
            resize = ResizeTransform(*image.shape[:2], *size)
            image = applied(resize, np.ascontiguousarray(image))
        chw = torch.as_tensor(image.astype("float32").transpose(2, 0, 1))
        return {"image": chw, "height": height, "width": width}

    def _part(self, tile: Tile, inputs: dict) -> Part:
        """What of the network's input for a tile no other tile counts."""
        height, width = tile.size
        (x1, y1, x2, y2), (left, top, _, _) = tile.core, tile.window

        def cells(pixels: int) -> int:
            return pixels // self._unit * self._stride

        divisor = max(self._predictor.model.size_divisibility, 1)
        padded = tuple(-(-side // divisor) * divisor for side in inputs["image"].shape[1:])
        return Part(
            cells(x1 - left),
            cells(y1 - top),
            cells(x2 - left) if x2 < width else None,
            cells(y2 - top) if y2 < height else None,
            padded,
        )


def check_tiles(model: nn.Module, tile: int, overlap: int, scale: float = 1.0) -> int:
    """The margin of tiles around their cores, pixels; arguments as of :class:`TiledPass`.

    Raises:
        ValueError: the overlap leaves nothing of a tile.
    """
    unit = _unit(coarsest_stride(model), scale)
    margin = -(-overlap // (2 * unit)) * unit
    if tile < 2 * margin + unit:
        raise ValueError(
            f"tiles of {tile} px are too small: on every side, {margin} px are for their "
            f"neighbours. Give at least {2 * margin + unit} px, or a smaller overlap."
        )
    return margin


def _unit(stride: int, scale: float) -> int:
    """Pixels of the image that become one cell of the coarsest features."""
    return max(round(stride / scale), 1)


def run_streams(model: nn.Module, inputs: dict) -> None:
    """What of the model is run on the whole of an image: all but the detections' own part."""
    features = model.backbone(model.preprocess_image([inputs]).tensor)
    model.object_stream(features)
    model.pixel_stream(features)


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
