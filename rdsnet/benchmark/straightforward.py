"""The mask path as one would write it first, and as the authors' code works.

Everything is materialised: both channels of every object at every pixel, at the resolution of the
padded image and then of the output; softmax, cropping by multiplication, thresholding, RLE by
pycocotools from dense masks, MBRM over whole profiles; in training a dense cross-entropy, OHEM by
sorting and PyTorch's autograd. Nothing of :mod:`rdsnet.ops` is used. The results are those of the
product but for rounding and, at inference, the second interpolation.
"""

from __future__ import annotations

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F

from rdsnet.benchmark.scene import DIM, STRIDE, Scene
from rdsnet.modeling.cropping import expanded_windows
from rdsnet.modeling.mbrm import MBRM


@torch.no_grad()
def infer(scene: Scene, mbrm: MBRM, expand: float, threshold: float) -> tuple[list[dict], Tensor]:
    """RLE of every object, and refined boxes (N, 4)."""
    grid = scene.psi.shape[1:]
    logits = (scene.phi.flatten(0, 1) @ scene.psi.flatten(1)).view(len(scene), 2, *grid)
    logits = F.interpolate(logits, scale_factor=STRIDE, mode="bilinear", align_corners=False)
    logits = logits[:, :, : scene.image_size[0], : scene.image_size[1]]
    logits = F.interpolate(logits, scene.output_size, mode="bilinear", align_corners=False)
    probability = logits.softmax(1)[:, 1]
    del logits
    windows = expanded_windows(scene.boxes, expand, scene.output_size)
    probability = probability * _inside(windows, *scene.output_size)
    masks = (probability > threshold).to(torch.uint8).cpu().numpy()
    rle = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks]
    left, top, right, bottom = mbrm.posteriors(
        probability.amax(1), probability.amax(2), scene.boxes
    )
    edges = [left.argmax(1), top.argmax(1), right.argmax(1) + 1, bottom.argmax(1) + 1]
    return rle, torch.stack(edges, dim=1)


def train(scene: Scene, psi: Tensor, phi: Tensor, expand: float) -> Tensor:
    """L_mask from dense ground-truth masks, on the grid; gradients go to psi (1, D, h, w), phi."""
    grid = psi.shape[2:]
    height, width = scene.image_size
    missing = (0, grid[1] * STRIDE - width, 0, grid[0] * STRIDE - height)
    padded = F.pad(scene.gt_masks, missing).float()
    targets = F.interpolate(padded[None], scale_factor=1 / STRIDE, mode="bilinear")[0] > 0.5
    del padded
    logits = (phi.flatten(0, 1) @ psi.view(DIM, -1)).view(len(phi), 2, *grid)
    own_grid = (-(-height // STRIDE), -(-width // STRIDE))
    windows = expanded_windows(scene.gt_boxes / STRIDE, expand, own_grid)
    return _mined_loss(logits, targets, _inside(windows, *grid))


def train_at_pixels(scene: Scene, psi: Tensor, phi: Tensor, expand: float) -> Tensor:
    """The same at the pixels of the image."""
    height, width = scene.image_size
    logits = (phi.flatten(0, 1) @ psi.view(DIM, -1)).view(len(phi), 2, *psi.shape[2:])
    logits = F.interpolate(logits, scale_factor=STRIDE, mode="bilinear", align_corners=False)
    windows = expanded_windows(scene.gt_boxes, expand, scene.image_size)
    inside = _inside(windows, *scene.image_size)
    return _mined_loss(logits[:, :, :height, :width], scene.gt_masks, inside)


def _mined_loss(logits: Tensor, targets: Tensor, inside: Tensor) -> Tensor:
    """Logits (N, 2, H, W), ground truth and windows (N, H, W) bool -> L_mask."""
    losses = F.cross_entropy(logits, targets.long(), reduction="none") * inside
    total = losses.new_zeros(())
    for loss, target, own in zip(losses, targets, inside):
        foreground = loss[target & own]
        background = loss[~target & own].sort(descending=True).values[: len(foreground)]
        kept = len(foreground) + len(background)
        total = total + (foreground.sum() + background.sum()) / (kept + 1)
    return total / (len(logits) + 1)


def _inside(windows: Tensor, height: int, width: int) -> Tensor:
    """(N, 4) -> (N, height, width) bool."""
    x1, y1, x2, y2 = (side[:, None, None] for side in windows.unbind(1))
    y = torch.arange(height, device=windows.device)[:, None]
    x = torch.arange(width, device=windows.device)
    return (y >= y1) & (y < y2) & (x >= x1) & (x < x2)
