"""What the operators must compute, the long way and in float64. Shares no code with them.

Everything is materialised: two channels for every object and pixel of the map, softmax, dense
interpolation matrices. Slow, and easy to check by eye.
"""

from __future__ import annotations

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor


def two_channels(psi: Tensor, phi: Tensor, image_index: Tensor) -> Tensor:
    """(B, D, h, w), (N, 2, D), (N,) -> (N, 2, h, w) float64, background then foreground."""
    return torch.einsum("ncd,ndyx->ncyx", phi.double(), psi.double()[image_index])


def inside(windows: Tensor, height: int, width: int) -> Tensor:
    """(N, 4) -> (N, height, width) bool."""
    y, x = torch.arange(height)[:, None], torch.arange(width)
    x1, y1, x2, y2 = (side[:, None, None] for side in windows.unbind(1))
    return (x >= x1) & (x < x2) & (y >= y1) & (y < y2)


def logits(psi: Tensor, phi: Tensor, image_index: Tensor, windows: Tensor) -> list[Tensor]:
    """Per object the logits of its window's pixels, row by row."""
    log_odds = two_channels(psi, phi, image_index).log_softmax(1).diff(dim=1)[:, 0]
    return [z[own] for z, own in zip(log_odds, inside(windows, *psi.shape[2:]))]


def ohem_losses(psi, phi, image_index, windows, targets, target_index, mining) -> Tensor:
    """(N,) losses by sorting every object's background pixels."""
    log_probability = two_channels(psi, phi, image_index).log_softmax(1)
    losses = [
        mined_loss(log_probability[n], targets[target_index[n]] != 0, own, mining)
        for n, own in enumerate(inside(windows, *psi.shape[2:]))
    ]
    return torch.stack(losses) if losses else psi.new_zeros(0).double()


def mined_loss(log_probability: Tensor, foreground: Tensor, own: Tensor, mining) -> Tensor:
    """Loss of an object: (2, H, W) log probabilities, (H, W) bool truth and window."""
    positive = -log_probability[1][own & foreground]
    negative = -log_probability[0][own & ~foreground]
    if mining is not None:
        negative = negative.sort(descending=True).values[: int(len(positive) * mining)]
    kept = torch.cat([positive, negative])
    return kept.sum() / (len(kept) + 1)


def ohem_losses_at_pixels(
    psi, phi, image_index, windows, masks, object_index, rows, columns, mining
) -> Tensor:
    """(N,) losses on channels that were brought to the whole image first.

    rows (H, h) and columns (W, w) are the interpolation matrices. What lies beyond a mask is not
    looked at.
    """
    channels = rows.double() @ two_channels(psi, phi, image_index) @ columns.double().t()
    log_probability = channels.log_softmax(1)
    height, width = len(rows), len(columns)
    losses = []
    for n, own in enumerate(inside(windows, height, width)):
        mask = masks[image_index[n]][object_index[n]]
        foreground = torch.zeros(height, width, dtype=torch.bool)
        known = torch.zeros_like(foreground)
        part = mask[:height, :width] != 0
        foreground[: len(part), : part.shape[1]] = part
        known[: len(part), : part.shape[1]] = True
        losses.append(mined_loss(log_probability[n], foreground, own & known, mining))
    return torch.stack(losses) if losses else psi.new_zeros(0).double()


def resize_matrix(output: int, image: int, grid: int, stride: int) -> Tensor:
    """(output, grid) matrix of the bilinear resize with half-pixel centres."""
    matrix = torch.zeros(output, grid, dtype=torch.float64)
    for o in range(output):
        u = (o + 0.5) * image / output / stride - 0.5
        u = min(max(u, 0.0), grid - 1.0)
        for cell in range(grid):
            matrix[o, cell] = max(0.0, 1.0 - abs(u - cell))
    return matrix


def probabilities(psi: Tensor, phi: Tensor, windows: Tensor, rows: Tensor, columns: Tensor):
    """Foreground probability (N, H, W) at the output, 0 outside the windows.

    rows (H, h) and columns (W, w) are the interpolation matrices.
    """
    index = torch.zeros(len(phi), dtype=torch.int64)
    grid = two_channels(psi[None], phi, index)
    output = rows @ grid @ columns.t()
    return output.softmax(1)[:, 1] * inside(windows, len(rows), len(columns))


def coco_rle(masks: Tensor) -> list[dict]:
    """pycocotools' compressed encoding of (N, H, W) bool masks."""
    encoded = [coco_mask.encode(np.asfortranarray(m.numpy().astype(np.uint8))) for m in masks]
    return [{"size": e["size"], "counts": e["counts"].decode("ascii")} for e in encoded]


def tap_matrix(first: Tensor, weights: Tensor, grid: int) -> Tensor:
    """(output, grid) matrix that taps stand for."""
    matrix = torch.zeros(len(first), grid, dtype=torch.float64)
    for o, (begin, row) in enumerate(zip(first.tolist(), weights.tolist())):
        for k, weight in enumerate(row):
            matrix[o, min(begin + k, grid - 1)] += weight
    return matrix
