"""Detections as tables of a fixed length, for graphs that run without Python.

Export traces one path through the code for all images, so sizes in it may depend on an image only
where there is no other way. Here that is NMS, between a table of candidates and one of detections.
In both, rows with score 0 hold nothing.

Shapes: M candidates, N detections, both fixed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

from rdsnet.ops import as_vector


class PaddedDetections(NamedTuple):
    """Best first; rows with score 0 hold nothing.

    Attributes:
        boxes: (N, 4) in pixels of the network's input.
        scores: (N,).
        classes: (N,) int64.
        places: (N,) int64, of the anchors that they come from.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    places: Tensor

    def best(self, count: int) -> PaddedDetections:
        """The ``count`` rows with the largest scores (all, if there are fewer), in order."""
        order = self.scores.topk(torch.sym_min(count, self.scores.shape[0])).indices
        return PaddedDetections(*(column[order] for column in self))

    def without_suppressed(self, iou_threshold: float) -> PaddedDetections:
        """Score 0 for whatever greedy NMS per class drops."""
        # Two boxes more, which nothing overlaps: torchvision tells the tracer that NMS keeps two or
        # more, and the graph would insist on it.
        boxes = F.pad(self.boxes, (0, 0, 0, 2))
        scores = F.pad(self.scores, (0, 2))
        last = self.classes.max()
        classes = torch.cat([self.classes, torch.stack([last + 1, last + 2])])
        candidate = torch.cat([self.scores > 0, self.scores.new_ones(2, dtype=torch.bool)])

        occupied = torch.where(candidate[:, None], boxes, 0)
        low, high = occupied.min(), occupied.max()
        # Each class away from the others, so that one NMS serves all.
        shifted = boxes - low + (classes * (high - low + 1))[:, None]
        found = candidate.nonzero()[:, 0]
        kept = found[nms(shifted[found], scores[found], iou_threshold)]
        return self._replace(scores=torch.zeros_like(scores).scatter(0, kept, scores[kept])[:-2])

    def clipped(self, size: tuple[int, int]) -> PaddedDetections:
        """Boxes within an image of ``size`` (H, W); score 0 where nothing is left of them."""
        limits = as_vector(size[::-1], self.boxes.dtype, self.boxes.device)
        boxes = torch.minimum(self.boxes.clamp(min=0), limits.repeat(2))
        empty = (boxes[:, 2:] <= boxes[:, :2]).any(1)
        return self._replace(boxes=boxes, scores=self.scores.masked_fill(empty, 0))
