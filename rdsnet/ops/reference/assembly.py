"""Masks at the output resolution, object by object."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rdsnet.ops.masks import CompactMasks, run_lengths_from_window
from rdsnet.ops.reference.taps import interpolated
from rdsnet.ops.reference.windows import clamped
from rdsnet.ops.taps import NUM_TAPS, Taps


def assemble_masks(
    psi: Tensor, phi: Tensor, windows: Tensor, taps_y: Taps, taps_x: Taps, threshold: float
) -> CompactMasks:
    """See :func:`rdsnet.ops.assemble_masks`."""
    size = (len(taps_y.first), len(taps_x.first))
    height, width = size
    num_objects, device = len(windows), psi.device
    dtype = torch.float64 if psi.dtype == torch.float64 else torch.float32
    windows = clamped(windows, size)
    delta = phi[:, 1].to(dtype) - phi[:, 0].to(dtype)
    weights_y, weights_x = taps_y.weights.to(dtype), taps_x.weights.to(dtype)
    first_y, first_x = taps_y.first.tolist(), taps_x.first.tolist()
    logit_threshold = math.log(threshold / (1 - threshold))

    areas = torch.zeros(num_objects, dtype=torch.int64, device=device)
    row_maxima = torch.zeros(num_objects, height, dtype=dtype, device=device)
    column_maxima = torch.zeros(num_objects, width, dtype=dtype, device=device)
    runs = []
    for n, (x1, y1, x2, y2) in enumerate(windows.tolist()):
        if x2 <= x1 or y2 <= y1:
            runs.append(areas.new_full((1,), height * width))
            continue
        # The patch of the grid that the window looks at; correlation commutes with interpolation.
        top, bottom = min(first_y[y1:y2]), max(first_y[y1:y2]) + NUM_TAPS
        left, right = min(first_x[x1:x2]), max(first_x[x1:x2]) + NUM_TAPS
        patch = psi[:, top:bottom, left:right].to(dtype)
        with torch.autocast(device.type, enabled=False):
            patch = (delta[n] @ patch.flatten(1)).view(patch.shape[1:])
        rows = interpolated(patch, taps_y.first[y1:y2] - top, weights_y[y1:y2])
        logits = interpolated(rows.t(), taps_x.first[x1:x2] - left, weights_x[x1:x2]).t()
        # sigmoid(z) > t is z > logit(t), and the sigmoid of a maximum is the maximum of sigmoids.
        bits = logits > logit_threshold
        areas[n] = bits.sum()
        row_maxima[n, y1:y2] = logits.amax(1).sigmoid()
        column_maxima[n, x1:x2] = logits.amax(0).sigmoid()
        runs.append(run_lengths_from_window(bits, (x1, y1, x2, y2), size))
    lengths = areas.new_tensor([len(run) for run in runs])
    return CompactMasks(
        size,
        windows,
        areas,
        row_maxima,
        column_maxima,
        torch.cat(runs) if runs else areas.new_zeros(0),
        torch.cat([areas.new_zeros(1), lengths.cumsum(0)]),
    )
