"""What the operators must compute, the long way and in float64. Shares no code with them.

Everything is materialised: two channels for every object and pixel of the map, softmax, dense
interpolation matrices. Slow, and easy to check by eye.
"""

from __future__ import annotations

import numpy as np
import torch
from helpers.rounding import ELEMENTARY, gamma
from pycocotools import mask as coco_mask
from torch import Tensor

# What the computations here round themselves; logarithms of probabilities also where they are 0.
OWN = gamma(100 + ELEMENTARY, torch.float64)


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


def precision(dtype: torch.dtype) -> torch.dtype:
    """What the operators compute in: half precision is widened."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def absolute_logits(psi: Tensor, phi: Tensor, image_index: Tensor, windows: Tensor) -> Tensor:
    """What the absolute values of the products in every logit add up to, packed; float64."""
    psi, phi = psi.abs().double(), phi.abs().double()
    return _sums_of_products(psi, phi, image_index, windows)


def _sums_of_products(psi, phi, image_index, windows) -> Tensor:
    sums = torch.einsum("nd,ndyx->nyx", phi.sum(1), psi[image_index])
    return sums[inside(windows, *psi.shape[2:])]


def logit_limits(psi: Tensor, phi: Tensor, image_index: Tensor, windows: Tensor) -> Tensor:
    """How far rounding may move each packed logit: D products of a difference."""
    roundings = gamma(phi.shape[2] + 1, precision(psi.dtype)) + OWN
    return roundings * absolute_logits(psi, phi, image_index, windows) + OWN


def gradient_limits(psi, phi, image_index, windows, gradients: Tensor, relative: float = 0.0):
    """How far rounding may move the gradients of psi and phi.

    A number of psi meets every object, one of phi every pixel.

    Args:
        gradients: of the packed logits.
        relative: error of these gradients.
    """
    absolute = [x.detach().abs().double().requires_grad_() for x in (psi, phi)]
    _sums_of_products(*absolute, image_index, windows).backward(gradients.abs().double())
    dtype = precision(psi.dtype)
    relative = [
        relative + gamma(count + 2, dtype) + gamma(count + ELEMENTARY, torch.float64)
        for count in (len(phi), len(gradients))
    ]
    return [error * x.grad for error, x in zip(relative, absolute)]


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


def truths_at_pixels(image_index, windows, masks, object_index, height: int, width: int):
    """Per object the foreground and the pixels that have a part in its loss, (H, W) bool each: what
    lies beyond a mask is not looked at.
    """
    for n, own in enumerate(inside(windows, height, width)):
        part = masks[image_index[n]][object_index[n]][:height, :width] != 0
        foreground = torch.zeros(height, width, dtype=torch.bool)
        known = torch.zeros_like(foreground)
        foreground[: len(part), : part.shape[1]] = part
        known[: len(part), : part.shape[1]] = True
        yield foreground, own & known


def channels_at_pixels(psi, phi, image_index, rows: Tensor, columns: Tensor) -> Tensor:
    """(N, 2, H, W), brought to the whole image by matrices rows (H, h) and columns (W, w)."""
    return rows.double() @ two_channels(psi, phi, image_index) @ columns.double().t()


def ohem_losses_at_pixels(
    psi, phi, image_index, windows, masks, object_index, rows, columns, mining
) -> Tensor:
    """(N,) losses on channels that were brought to the whole image first."""
    channels = channels_at_pixels(psi, phi, image_index, rows, columns)
    truths = truths_at_pixels(image_index, windows, masks, object_index, len(rows), len(columns))
    losses = [
        mined_loss(log_probability, *truth, mining)
        for log_probability, truth in zip(channels.log_softmax(1), truths)
    ]
    return torch.stack(losses) if losses else psi.new_zeros(0).double()


def ohem_limits(psi, phi, image_index, windows, targets, target_index, mining) -> Tensor:
    """How far rounding may move the losses (N,).

    Cross-entropy changes by at most as much as its logit, and so does the mean over the hardest.
    The rest are relative errors of each cross-entropy and of their sum.
    """
    losses = ohem_losses(psi, phi, image_index, windows, targets, target_index, mining)
    areas = inside(windows, *psi.shape[2:]).sum((1, 2)).tolist()
    logits = logit_limits(psi, phi, image_index, windows).split(areas)
    largest = losses.new_tensor([x.max() if len(x) else 0 for x in logits])
    pixels = max([0, *areas])
    return largest + gamma(pixels + ELEMENTARY, precision(psi.dtype)) * losses


def kept(psi, phi, image_index, windows, targets, target_index, mining) -> Tensor:
    """(N,) pixels that the means of :func:`ohem_losses` divide by, one more than there are."""
    own = inside(windows, *psi.shape[2:])
    foreground = (own & (targets[target_index] != 0)).sum((1, 2))
    background = own.sum((1, 2)) - foreground
    if mining is not None:
        background = torch.minimum(background, (foreground * mining).long())
    return foreground + background + 1


def mining_gap(psi, phi, image_index, windows, targets, target_index, mining) -> float:
    """Difference between the easiest background logit that is kept and the hardest that is not."""
    logits = two_channels(psi, phi, image_index).diff(dim=1)[:, 0]
    own = inside(windows, *psi.shape[2:])
    return smallest_gap(logits, zip(targets[target_index] != 0, own), mining)


def smallest_gap(logits: Tensor, truths, mining) -> float:
    """The same for logits (N, H, W) and per object its foreground and its pixels."""
    gap = torch.inf
    for z, (foreground, own) in zip(logits, truths):
        ranked = z[own & ~foreground].sort(descending=True).values
        count = 0 if mining is None else int((own & foreground).sum() * mining)
        if 0 < count < len(ranked):
            gap = min(gap, float(ranked[count - 1] - ranked[count]))
    return gap


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


def probability_limits(psi: Tensor, phi: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """How far rounding may move each probability (N, H, W), if the taps are these matrices'.

    The sigmoid's slope is at most 1/4.
    """
    grid = torch.einsum("nd,dyx->nyx", phi.abs().double().sum(1), psi.abs().double())
    dtype = precision(psi.dtype)
    logits = gamma(phi.shape[2] + 1 + 2 * 3, dtype) * (rows.abs() @ grid @ columns.abs().t())
    return logits / 4 + gamma(ELEMENTARY, dtype)


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
