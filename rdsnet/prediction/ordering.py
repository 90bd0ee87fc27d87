"""Images whose objects are uncertain come first, so that people correct where it pays.

An object is the less certain the nearer its score is to the one from which on objects are shown:
there, the model might as well have said the opposite. Objects that were just not shown count as
those that just were, since both are what people have to decide on.
"""

from __future__ import annotations

import csv
import operator
import pickle
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.structures import Instances
from torch import Tensor
from tqdm import tqdm

from rdsnet.data.channels import PHOTOGRAPHS, Channels
from rdsnet.data.findings import counted, printable
from rdsnet.ops.masks import CompactMasks
from rdsnet.prediction.sources import Frame, Source
from rdsnet.prediction.thresholds import ScoreThresholds, certain
from rdsnet.prediction.writers import Writer

# The share of the lowest score shown from which on objects count: there, they are half decided.
LOWEST_SHARE = 0.5
# From which doubt on an object is undecided.
_UNDECIDED = 0.5


def doubts(scores: Tensor, thresholds: Tensor) -> Tensor:
    """How uncertain objects are: 1 at the threshold, falling to 0 at the scores 0 and 1.

    Args:
        scores, thresholds: (N,), from 0 to 1.

    Returns:
        (N,), from 0 to 1.
    """
    above = (1 - scores) / (1 - thresholds).clamp(min=1e-6)
    below = scores / thresholds.clamp(min=1e-6)
    return above.where(scores >= thresholds, below).clamp(0, 1)


@dataclass(frozen=True)
class _Record:
    """What is remembered of an image: how uncertain it is, and where its objects are kept."""

    uncertainty: float
    number: int
    path: Path
    frame: int | None
    objects: int
    undecided: int
    place: int


class UncertainFirst(Writer):
    """Hands images to other writers when all have been seen, the most uncertain ones first.

    An image's uncertainty is the sum of the doubts about its undecided objects: about how many of
    them people will have to decide on. Of two alike, the one that was read first comes first.
    ``order.csv`` lists all images. Objects wait in a temporary file, and images are read again, so
    memory does not grow with them but for some numbers each. What was found before an error or
    Ctrl-C is written, too.

    Args:
        writers: of the formats, which someone else closes.
        thresholds: from which score on objects are shown; :meth:`write` is given others, too.
        limit: images that the writers get at most; None: all.
        channels: what the images are.
        say: is told in a sentence what cannot be read again.
    """

    files = ("order.csv",)
    columns = "file frame uncertainty objects undecided".split()

    def __init__(
        self,
        writers: Sequence[Writer],
        thresholds: ScoreThresholds,
        output: Path,
        limit: int | None,
        say: Callable[[str], None],
        channels: Channels = PHOTOGRAPHS,
    ) -> None:
        super().__init__(output, None, [])
        self._writers, self._thresholds, self._limit, self._say = writers, thresholds, limit, say
        self._channels = channels
        self._records: list[_Record] = []

    def text(self) -> str:
        """A sentence on what was written."""
        shown = min(len(self._records), self._limit or len(self._records))
        number = counted(len(self._records), "image")
        which = f"The {shown} most uncertain of {number}" if self._limit else number
        return f"{which} written in the order of order.csv, the most uncertain first."

    def begin(self) -> None:
        self._kept = tempfile.TemporaryFile()

    def add(self, frame: Frame, instances: Instances) -> None:
        doubt = doubts(instances.scores, self._thresholds.of(instances.pred_classes))
        undecided = doubt[doubt >= _UNDECIDED]
        shown = _without_maxima(certain(instances, self._thresholds))
        record = _Record(
            uncertainty=float(undecided.sum()),
            number=len(self._records),
            path=frame.path,
            frame=frame.index if frame.is_one_of_many else None,
            objects=len(shown),
            undecided=len(undecided),
            place=self._kept.tell(),
        )
        no_image = np.zeros((0, 0, 3), np.uint8)
        pickle.dump((replace(frame, image=no_image), shown), self._kept)
        self._records.append(record)

    def end(self) -> None:
        with self._kept:
            self._records.sort(key=lambda record: (-record.uncertainty, record.number))
            self._write_list()
            records = self._records[: self._limit]
            for record in tqdm(records, "Writing in order", unit="image", disable=None):
                self._kept.seek(record.place)
                frame, instances = pickle.load(self._kept)
                try:
                    frame = replace(frame, image=_image_of(frame, self._channels))
                except (OSError, ValueError) as error:
                    self._say(f"skipped: {error}")
                    continue
                for writer in self._writers:
                    writer.write(frame, instances)

    def _write_list(self) -> None:
        with open(self.output / "order.csv", "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(self.columns)
            for r in self._records:
                number = "" if r.frame is None else r.frame
                uncertainty = f"{r.uncertainty:.4f}"
                rows.writerow([printable(r.path), number, uncertainty, r.objects, r.undecided])


def _image_of(frame: Frame, channels: Channels) -> np.ndarray:
    """``frame.image``, read again."""
    is_it = partial(operator.eq, frame.index)
    with closing(Source(frame.path).frames(pages=is_it, channels=channels)) as frames:
        return next(frames).image


def _without_maxima(instances: Instances) -> Instances:
    """Without what only MBRM asks of masks: most of what they take."""
    masks = instances.get_fields().get("pred_masks")
    if isinstance(masks, CompactMasks):
        none = masks.row_maxima.new_zeros(len(masks), 0)
        rest = masks.windows, masks.areas, none, none, masks.run_lengths, masks.run_offsets
        instances = Instances(instances.image_size, **instances.get_fields())
        instances.pred_masks = CompactMasks(masks.size, *rest)
    return instances
