"""RDSNet as one graph from an image to its objects, in operations that ``torch.export`` can trace.

The streams and MBRM are the model's own. What differs is what the model does image by image in
Python, with sizes that depend on what was found: candidates and NMS work on tables of a fixed
length (:mod:`rdsnet.modeling.padded`), and masks are computed for all objects at once. N, the
number of objects, is the only size in the results that depends on the image.

Masks follow the definition (:mod:`rdsnet.ops.reference`) with the same identities: one product with
phi_fg - phi_bg on the grid, one bilinear interpolation to the output, comparison of logits.
But a whole map (H, W) is computed for every object, where the operators stay inside its window: a
graph has no loop over windows.

Shapes: N objects, D representation dimensions, (h, w) grid, (H, W) image.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rdsnet.modeling import RDSNet


class Objects(NamedTuple):
    """What the graph returns, best first. Coordinates are continuous pixels of the input image.

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


class ImageToObjects(nn.Module):
    """The graph. Gives what the model's own inference gives, up to rounding."""

    def __init__(self, model: RDSNet) -> None:
        super().__init__()
        self.model = model

    def predict(self, image: Tensor) -> tuple[tuple[int, int], Any, Tensor]:
        """Size of the network's input before padding, dense predictions, and psi (D, h, w)."""
        model = self.model
        pixels = model.network_input(image)
        features = model.backbone(_pad(pixels, model.size_divisibility)[None])
        return (
            tuple(pixels.shape[1:]),
            model.object_stream(features),
            model.pixel_stream(features)[0],
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(3, H, W) uint8, channels in the order of ``INPUT.FORMAT`` -> fields of :class:`Objects`.

        They are a plain tuple, so that nobody needs this package to load the graph.
        """
        model, output_size = self.model, tuple(image.shape[1:])
        image_size, predictions, psi = self.predict(image)
        detections = model.object_stream.detect_padded(predictions, image_size)
        found = (detections.scores > 0).nonzero()[:, 0]
        boxes, scores, classes, places = (column[found] for column in detections)
        phi = model.object_stream.represent(predictions, torch.zeros_like(places), places)
        if output_size != image_size:  # the model has resized the image
            scale = [new / old for new, old in zip(output_size[::-1], image_size[::-1])]
            boxes = boxes * boxes.new_tensor(scale * 2)
        if model.mask_scoring:
            scores = scores * model.confidence(phi, psi, boxes, image_size, output_size)
            scores, order = scores.sort(descending=True, stable=True)
            phi, boxes, classes = phi[order], boxes[order], classes[order]
        masks, refined = self.refine(phi, psi, boxes, image_size, output_size)
        return model.output_boxes(refined), model.output_boxes(boxes), scores, classes, masks

    def refine(
        self,
        phi: Tensor,
        psi: Tensor,
        boxes: Tensor,
        image_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """The reciprocal part: masks (N, H, W) bool and refined boxes (N, 4).

        Args:
            phi, psi: (N, 2, D) and (D, h, w).
            boxes: (N, 4), pixels of the output.
            image_size: of the network's input before padding.
            output_size: (H, W).
        """
        model = self.model
        grid = tuple(psi.shape[1:])
        covered = tuple(round(cells * s) for cells, s in zip(grid, model.strides(grid)))
        logits = mask_logits(psi, phi, covered, image_size, output_size)
        outside = ~inside(model.windows(boxes, output_size), output_size)
        logits = logits.masked_fill(outside, -math.inf)
        # sigmoid(z) > t is z > logit(t).
        masks = logits > math.log(model.mask_threshold / (1 - model.mask_threshold))
        if model.mbrm is None:
            return masks, boxes
        # The sigmoid of a maximum is the maximum of sigmoids; of -inf it is 0.
        return masks, model.mbrm(logits.amax(1).sigmoid(), logits.amax(2).sigmoid(), boxes)


def _pad(pixels: Tensor, divisor: int) -> Tensor:
    """Zeros at the right and the bottom of (3, H, W), up to multiples of ``divisor``."""
    if divisor <= 1:
        return pixels
    height, width = pixels.shape[1:]
    return F.pad(pixels, (0, -width % divisor, 0, -height % divisor))


def mask_logits(
    psi: Tensor,
    phi: Tensor,
    covered: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
) -> Tensor:
    """Foreground-minus-background logits (N, H, W) of whole maps.

    Args:
        psi, phi: (D, h, w) and (N, 2, D).
        covered: pixels of the network's input that the grid covers.
        image_size: how many of these, from the top left, are the image.
        output_size: (H, W).
    """
    delta = phi[:, 1] - phi[:, 0]
    logits = (delta @ psi.flatten(1)).view(-1, 1, *psi.shape[1:])
    # Half-pixel centres from end to end, as in rdsnet.ops.resize_taps: with padding cut away when
    # the output has the scale of the network's input, without padding at any scale.
    size = output_size if covered == image_size else covered
    logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)[:, 0]
    if covered == image_size:
        return logits
    if output_size != image_size:
        raise ValueError(
            f"a model that both resizes its input, here from {output_size} to {image_size}, and "
            f"pads it, to {covered}, cannot be exported"
        )
    return logits[:, : output_size[0], : output_size[1]]


def inside(windows: Tensor, size: tuple[int, int]) -> Tensor:
    """Which pixels of (H, W) = ``size`` lie in the windows (N, 4): (N, H, W) bool."""
    x1, y1, x2, y2 = windows[:, :, None].unbind(1)
    row = torch.arange(size[0], device=windows.device)
    column = torch.arange(size[1], device=windows.device)
    in_rows = (row >= y1) & (row < y2)
    in_columns = (column >= x1) & (column < x2)
    return in_rows[:, :, None] & in_columns[:, None, :]
