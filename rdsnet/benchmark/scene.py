"""The reference scene of the mask path: one image with elliptical objects of all sizes.

An 800 x 1333 image seen through a 4-pixel grid, an output of 480 x 800, sides of objects
log-uniform in 12..800 px (scaled with the image), D = 32. Psi holds smooth random fields of
several scales; the representation of an object is fitted to its mask by ridge regression, so that
masks look like those of a trained model: filled, with an uneven outline. Each object is one
detection at inference, and one positive anchor with a ground-truth mask of its own in training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rdsnet.modeling.cropping import expanded_windows
from rdsnet.ops import mask_targets

DIM = 32
STRIDE = 4  # px per cell
TRAIN_EXPAND, TEST_EXPAND, THRESHOLD = 1.5, 1.2, 0.4
_REFERENCE_SIZE = 800  # px, the shorter side that the sides of objects refer to
_SMALLEST_SIDE = 12.0
ASPECT = 1333 / 800
_OUTPUT_SCALE = 0.6
PADDED_TO = 32  # px, size_divisibility of the FPN
_FIELDS = ((64, 6), (24, 9), (8, 16))  # (cells per wave, dimensions of Psi), beside a constant one
_LOGIT, _RIDGE = 6.0, 1e-3  # of the regression: +-_LOGIT inside and outside the ellipse


@dataclass
class Scene:
    """N objects in an image of H x W pixels, seen through a grid of h x w cells.

    Attributes:
        image_size: (H, W), before padding.
        output_size: (height, width) of the masks.
        psi: (D, h, w) float32; phi: (N, 2, D) float32.
        boxes: (N, 4) regressed boxes, continuous coordinates, output pixels.
        gt_boxes: (N, 4) ground-truth boxes, continuous coordinates, image pixels.
        gt_masks: (N, H, W) bool.
    """

    image_size: tuple[int, int]
    output_size: tuple[int, int]
    psi: Tensor
    phi: Tensor
    boxes: Tensor
    gt_boxes: Tensor
    gt_masks: Tensor

    def __len__(self) -> int:
        return len(self.phi)


def make_scene(num_objects: int, size: int, device: str = "cpu", seed: int = 0) -> Scene:
    """A random scene whose image has ``size`` pixels on its shorter side."""
    g = torch.Generator().manual_seed(seed)
    height, width = size, round(size * ASPECT)
    grid = [-(-side // PADDED_TO) * PADDED_TO // STRIDE for side in (height, width)]
    output_size = (round(height * _OUTPUT_SCALE), round(width * _OUTPUT_SCALE))

    smallest = _SMALLEST_SIDE * size / _REFERENCE_SIZE
    sides = smallest * torch.exp(
        torch.rand(num_objects, 2, generator=g, dtype=torch.float64) * math.log(size / smallest)
    )
    limits = torch.tensor([width, height])
    centres = torch.rand(num_objects, 2, generator=g, dtype=torch.float64) * limits
    low, high = (centres - sides / 2).clamp(min=0), torch.minimum(centres + sides / 2, limits)
    gt_boxes = torch.cat([low, high], dim=1)

    # Regressed boxes are off by a few percent.
    shift = torch.randn(num_objects, 4, generator=g) * 0.03 * (high - low).repeat(1, 2)
    boxes = (gt_boxes + shift) * _OUTPUT_SCALE
    boxes = torch.minimum(boxes.clamp(min=0), torch.tensor(output_size).flip(0).repeat(2))

    gt_masks = _ellipses(gt_boxes, height, width)
    windows = expanded_windows(gt_boxes / STRIDE, TRAIN_EXPAND, grid)
    psi, phi = _representations(windows, mask_targets(gt_masks, grid, (STRIDE, STRIDE)), g)
    return Scene(
        (height, width),
        output_size,
        psi.to(device),
        phi.to(device),
        boxes.float().to(device),
        gt_boxes.float().to(device),
        gt_masks.to(device),
    )


def _representations(windows: Tensor, targets: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Psi (D, h, w), and the phi (N, 2, D) that fits the targets (N, h, w) in the windows best."""
    h, w = targets.shape[1:]
    fields = [torch.ones(1, h, w)]
    for cells, count in _FIELDS:
        coarse = torch.randn(1, count, h // cells + 2, w // cells + 2, generator=g)
        fields.append(F.interpolate(coarse, (h, w), mode="bicubic")[0])
    psi = torch.cat(fields)
    foreground = torch.zeros(len(windows), DIM)
    for n, (x1, y1, x2, y2) in enumerate(windows.tolist()):
        pixels = psi[:, y1:y2, x1:x2].flatten(1)
        logits = _LOGIT * (2 * targets[n, y1:y2, x1:x2].flatten().float() - 1)
        gram = pixels @ pixels.t() + _RIDGE * pixels.shape[1] * torch.eye(DIM)
        foreground[n] = torch.linalg.solve(gram, pixels @ logits)
    background = 0.1 * torch.randn(len(windows), DIM, generator=g)
    return psi, torch.stack([background, foreground + background], dim=1)


def _ellipses(boxes: Tensor, height: int, width: int) -> Tensor:
    """(N, H, W) bool, the ellipse in each box."""
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist()):
        rows, columns = slice(int(y1), math.ceil(y2)), slice(int(x1), math.ceil(x2))
        y = torch.arange(rows.start, rows.stop)[:, None] + 0.5
        x = torch.arange(columns.start, columns.stop) + 0.5
        dx, dy = (2 * x - x1 - x2) / (x2 - x1), (2 * y - y1 - y2) / (y2 - y1)
        mask[rows, columns] = dx**2 + dy**2 < 1
    return masks
