"""Objects of an image of any size, which is read and predicted in tiles.

Memory depends on the tile, not on the image. What is found is what the model finds in the whole
image (:mod:`~rdsnet.prediction.tiled_pass`). Where objects are too large for what tiles see, they
are looked for at a coarser resolution (:mod:`~rdsnet.prediction.size_ranges`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from detectron2.structures import Instances
from torch import Tensor

from rdsnet.data.windows import WindowReader, as_reader
from rdsnet.prediction.predictor import Predictor
from rdsnet.prediction.size_ranges import SizeRanges
from rdsnet.prediction.thresholds import ScoreThresholds
from rdsnet.prediction.tiled_pass import CUT, STATISTICS, TiledPass

# Pixels of the network's input: the side of a tile, and what neighbouring tiles both see.
TILE, OVERLAP = 2048, 256
# Objects of a tile, and candidates per level, at most: TEST.DETECTIONS_PER_IMAGE is for images of
# the size that the model was trained on.
_MOST_OBJECTS = 20_000


class TiledPrediction:
    """The objects of a large image, a part at a time: iterate over it.

    Gives Instances on the CPU, whose ``image_size`` is that of the image: ``pred_boxes``,
    ``regressed_boxes``, ``scores``, ``pred_classes``, and ``pred_masks`` as
    :class:`~rdsnet.ops.CompactMasks` without maxima.

    Args:
        reader: the image, or an array (H, W, 3) uint8 BGR, which may be a ``numpy.memmap``. Its
            channels are the model's.
        predictor: of a model whose masks are compact (``MODEL.RDSNET.DENSE_MASKS`` False).
        tile: side of the tiles, pixels of the image.
        overlap: what neighbouring tiles both see, pixels of the image: at least the size of the
            usual objects, and some context. Rounded up to what the network's strides allow.
        score_threshold: objects with lower scores are left out.
        scale: by which the image is resized for the network.
        statistics: what GroupNorm normalises with, if the model has any: "image", that of all
            tiles together, as if the model saw the image at once; "sample", that of some places all
            over the image, which takes less time; "tile", that of every tile alone; "auto", "image"
            up to 16 tiles, else "sample".
        most_objects: of a tile.
        coarser: where objects are cut, look for them at 1/2 of the resolution, and where they are
            cut there, at 1/4, and so on. Their masks have the resolution of the image all the same,
            and edges as smooth as those of that pass.

    Attributes:
        tiles: the grid of the first pass.
        cut_off: tiles with more than ``most_objects``: the least certain ones are not among the
            results.
        too_large: objects among the results that reach to the border of what their tile sees: there
            they are cut.
        found_coarser: objects among the results that were found at a coarser resolution.

    Raises:
        ValueError: the overlap leaves nothing of a tile; for other statistics.
    """

    def __init__(
        self,
        reader: WindowReader | np.ndarray,
        predictor: Predictor,
        *,
        tile: int = TILE,
        overlap: int = OVERLAP,
        score_threshold: float | ScoreThresholds = 0.5,
        scale: float = 1.0,
        statistics: str = "auto",
        most_objects: int = _MOST_OBJECTS,
        coarser: bool = True,
    ) -> None:
        if statistics not in STATISTICS:
            raise ValueError(f"statistics must be one of {STATISTICS}, got '{statistics}'")
        self._reader, self._predictor, self._coarser = as_reader(reader), predictor, coarser
        self._tile, self._overlap, self._scale = tile, overlap, scale
        self._options = {
            "score_threshold": score_threshold,
            "statistics": statistics,
            "most_objects": most_objects,
        }
        self._first = self._pass(1)
        self.tiles = self._first.tiles
        self.cut_off = self.too_large = self.found_coarser = 0

    def _pass(self, reduction: int, pieces: Tensor | None = None) -> TiledPass:
        return TiledPass(
            self._reader,
            self._predictor,
            tile=self._tile * reduction,
            overlap=self._overlap * reduction,
            scale=self._scale / reduction,
            reduction=reduction,
            pieces=pieces,
            **self._options,
        )

    def __iter__(self) -> Iterator[Instances]:
        self.cut_off = self.too_large = self.found_coarser = 0
        ranges, now, reduction = SizeRanges(), self._first, 1
        while True:
            for part in ranges.kept(now):
                yield self._counted(part)
            self.cut_off += now.cut_off
            if not (self._coarser and ranges.has_cut and len(now.tiles) > 1):
                break
            reduction *= 2
            now = self._pass(reduction, ranges.pieces)
        for part in ranges.decided():
            yield self._counted(part)

    def _counted(self, part: Instances) -> Instances:
        """A part as it is given, without the fields that are for counting."""
        self.too_large += int((part.cut == CUT).sum())
        self.found_coarser += int((part.pass_number > 0).sum())
        for name in ("cut", "pass_number"):
            part.remove(name)
        return part


def predict_tiled(
    reader: WindowReader | np.ndarray, predictor: Predictor, **options: object
) -> Instances:
    """The objects of a large image, all at once.

    Args:
        reader, predictor, options: as of :class:`TiledPrediction`, which gives them a part at a
            time.

    Returns:
        Instances on the CPU, see there.
    """
    return Instances.cat(list(TiledPrediction(reader, predictor, **options)))
