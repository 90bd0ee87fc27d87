"""RDSNet as one graph from an image to its objects, in operations that ``torch.export`` can trace.

The streams and MBRM are the model's own. What differs is what the model does image by image in
Python, with sizes that depend on what was found: candidates and NMS work on tables of a fixed
length (:mod:`rdsnet.modeling.padded`), and masks are made in a loop of the graph
(:mod:`rdsnet.export.masks`). Sizes of images are symbols while a graph is traced: anchors, padding,
interpolation and the range of MBRM are computed from them when the graph runs.

Shapes: N objects, D representation dimensions, (h, w) grid, (H, W) output.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rdsnet.export.masks import logits_in_windows, masks_one_by_one
from rdsnet.modeling import RDSNet
from rdsnet.ops import as_vector

Size = tuple[int, int]
"""Height and width."""


class Objects(NamedTuple):
    """What the graph returns, best first. Coordinates are continuous pixels of the output.

    Attributes:
        boxes: (N, 4) float32 x1, y1, x2, y2 after MBRM.
        regressed_boxes: (N, 4) float32, before.
        scores: (N,) float32.
        classes: (N,) int64.
        masks: (N, H, W) bool.
    """

    boxes: Tensor
    regressed_boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor


class CompactObjects(NamedTuple):
    """The same without masks, with what they are made from (:func:`.decoding.decoded`).

    Attributes:
        boxes, regressed_boxes, scores, classes: as of :class:`Objects`.
        windows: (N, 4) int64 x1, y1, x2, y2, end exclusive: output pixels that a mask may cover.
        cells: (N, 4) int64 likewise: the cells of the grid that these pixels look at.
        logits: (sum of areas of ``cells``,) float32, object after object, row by row.
        row_cells, row_weights: (H,) int64 and (H, 3) float32: the first of three rows of the grid
            that a row of the output looks at, and their weights.
        column_cells, column_weights: (W,) and (W, 3), likewise.
    """

    boxes: Tensor
    regressed_boxes: Tensor
    scores: Tensor
    classes: Tensor
    windows: Tensor
    cells: Tensor
    logits: Tensor
    row_cells: Tensor
    row_weights: Tensor
    column_cells: Tensor
    column_weights: Tensor


class ImageToObjects(nn.Module):
    """The graph. Gives what the model's own inference gives, up to rounding.

    Args:
        compact: gives :class:`CompactObjects` instead of :class:`Objects`.
        dtype: of the image that it takes.
    """

    def __init__(
        self, model: RDSNet, compact: bool = False, dtype: torch.dtype = torch.uint8
    ) -> None:
        super().__init__()
        self.model = model
        self.compact, self.dtype = compact, dtype

    @property
    def channels(self) -> int:
        """Of the image that it takes."""
        return self.model.pixel_mean.numel()

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of what it gives, in their order."""
        return (CompactObjects if self.compact else Objects)._fields

    @property
    def takes_output_size(self) -> bool:
        """Whether results come in any size: not where a variant finds objects in its own way."""
        return type(self.model).detect is RDSNet.detect

    def predict(self, image: Tensor) -> tuple[Size, Any, Tensor]:
        """Size of the network's input before padding, dense predictions, and psi (D, h, w)."""
        model = self.model
        pixels = model.network_input(image)
        features = model.backbone(_pad(pixels, model.size_divisibility)[None])
        return (
            tuple(pixels.shape[1:]),
            model.object_stream(features),
            model.pixel_stream(features)[0],
        )

    def forward(self, image: Tensor, output_size: Tensor | None = None) -> tuple[Tensor, ...]:
        """What :attr:`fields` names, as a plain tuple: nobody needs this package to load it.

        Args:
            image: (3, H, W) uint8, channels in the order of ``INPUT.FORMAT``; of what is no
                photograph, (C, H, W) of :attr:`rdsnet.data.channels.Channels.dtype`.
            output_size: (2,) int64, height and width that results are wanted in, as ``height`` and
                ``width`` of Detectron2's inputs; 0, 0 or None: those of ``image``.
        """
        model = self.model
        output_size = _requested_size(image, output_size)
        image_size, predictions, psi = self.predict(image)
        detections = model.object_stream.detect_padded(predictions, image_size)
        found = (detections.scores > 0).nonzero()[:, 0]
        boxes, scores, classes, places = (column[found] for column in detections)
        phi = model.object_stream.represent(predictions, torch.zeros_like(places), places)
        new, old = (
            as_vector(size[::-1], torch.float64, boxes.device) for size in (output_size, image_size)
        )
        boxes = boxes * (new / old).repeat(2).to(boxes.dtype)
        phi, psi = model.located(phi, psi, boxes, image_size, output_size)
        if model.mask_scoring:
            scores = scores * model.confidence(phi, psi, boxes, image_size, output_size)
            scores, order = scores.topk(scores.shape[0])  # sorted
            phi, boxes, classes = phi[order], boxes[order], classes[order]
        masks, refined = self.refine(phi, psi, boxes, image_size, output_size)
        return model.output_boxes(refined), model.output_boxes(boxes), scores, classes, *masks

    def refine(
        self, phi: Tensor, psi: Tensor, boxes: Tensor, image_size: Size, output_size: Size
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """The reciprocal part: the fields from ``masks`` or ``windows`` on, refined boxes (N, 4).

        Args:
            phi, psi: (N, 2, D) and (D, h, w).
            boxes: (N, 4), pixels of the output.
            image_size: of the network's input before padding.
            output_size: (H, W).
        """
        model = self.model
        windows = model.windows(boxes, output_size)
        taps = model.taps(output_size, image_size, psi.shape[1:], psi.device)
        delta = phi[:, 1] - phi[:, 0]
        columns, rows, *masks = masks_one_by_one(
            delta, psi, windows, *taps, model.mask_threshold, maxima_alone=self.compact
        )
        if self.compact:
            masks = (windows, *logits_in_windows(delta, psi, windows, *taps), *taps[0], *taps[1])
        return tuple(masks), boxes if model.mbrm is None else model.mbrm(columns, rows, boxes)


def _requested_size(image: Tensor, output_size: Tensor | None) -> Size:
    """(H, W) of the output."""
    if output_size is None:
        return tuple(image.shape[1:])
    own = as_vector(image.shape[1:], torch.int64, image.device)
    height, width = torch.where(output_size > 0, output_size, own).tolist()
    torch._check(height >= 1)
    torch._check(width >= 1)
    return height, width


def _pad(pixels: Tensor, divisor: int) -> Tensor:
    """Zeros at the right and the bottom of (3, H, W), up to multiples of ``divisor``."""
    if divisor <= 1:
        return pixels
    # Written so that a tracer knows the result to be a multiple.
    sides = [divisor * ((side + divisor - 1) // divisor) - side for side in pixels.shape[1:]]
    return F.pad(pixels, (0, sides[1], 0, sides[0]))
