"""What operators check of their arguments. ``name`` is the operator's, for the message."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rdsnet.ops.taps import Taps

MASK_DTYPES = (torch.bool, torch.uint8)


def check_representations(name: str, psi: Tensor, phi: Tensor, *, batched: bool = True) -> None:
    layout = "(B, D, h, w)" if batched else "(D, h, w)"
    if psi.ndim != (4 if batched else 3):
        raise ValueError(f"{name}: psi must have shape {layout}, got {tuple(psi.shape)}")
    dim = psi.shape[-3]
    if phi.ndim != 3 or phi.shape[1:] != (2, dim):
        raise ValueError(
            f"{name}: phi must have shape (N, 2, D) with the D of psi, {dim}; "
            f"got {tuple(phi.shape)}"
        )
    for argument, value in (("psi", psi), ("phi", phi)):
        if not value.is_floating_point():
            raise TypeError(f"{name}: {argument} must be floating point, got {value.dtype}")
    if psi.device != phi.device:
        raise ValueError(f"{name}: psi is on {psi.device} but phi is on {phi.device}")


def check_windows(name: str, windows: Tensor, num_objects: int) -> None:
    if windows.shape != (num_objects, 4):
        raise ValueError(
            f"{name}: windows must have shape (N, 4) with N = {num_objects}, "
            f"got {tuple(windows.shape)}"
        )
    if windows.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: windows must be int32 or int64, got {windows.dtype}")


def check_index(name: str, argument: str, index: Tensor, num_objects: int) -> None:
    if index.shape != (num_objects,):
        raise ValueError(
            f"{name}: {argument} must have shape (N,) with N = {num_objects}, "
            f"got {tuple(index.shape)}"
        )
    if index.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: {argument} must be int32 or int64, got {index.dtype}")


def check_bounds(name: str, argument: str, index: Tensor, bound: int) -> None:
    """For the definitions alone: the kernels check this themselves."""
    # On a GPU looking at the values would stall the stream; there the lookup itself checks.
    if index.device.type == "cpu" and len(index):
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= bound:
            raise ValueError(
                f"{name}: {argument} must lie in 0..{bound - 1}, got values from {low} to {high}"
            )


def check_negatives_per_positive(name: str, negatives_per_positive: float | None) -> None:
    if negatives_per_positive is not None and negatives_per_positive < 0:
        raise ValueError(
            f"{name}: negatives_per_positive must be None or at least 0, "
            f"got {negatives_per_positive}"
        )


def check_targets(name: str, targets: Tensor, psi: Tensor) -> None:
    if targets.ndim != 3 or targets.shape[1:] != psi.shape[2:]:
        raise ValueError(
            f"{name}: targets must have shape (M, h, w) with the (h, w) of psi, "
            f"{tuple(psi.shape[2:])}; got {tuple(targets.shape)}"
        )
    if targets.dtype not in MASK_DTYPES:
        raise TypeError(f"{name}: targets must be uint8 or bool, got {targets.dtype}")


def check_image_masks(name: str, masks: Sequence[Tensor], psi: Tensor) -> None:
    if len(masks) != psi.shape[0]:
        raise ValueError(
            f"{name}: masks must be a tensor per image, {psi.shape[0]}; got {len(masks)}"
        )
    for own in masks:
        if own.ndim != 3:
            raise ValueError(f"{name}: masks must have shape (M, H, W), got {tuple(own.shape)}")
        if own.dtype not in MASK_DTYPES:
            raise TypeError(f"{name}: masks must be uint8 or bool, got {own.dtype}")


def check_taps(name: str, argument: str, taps: Taps) -> None:
    if taps.first.ndim != 1 or taps.weights.shape != (len(taps.first), 3):
        raise ValueError(
            f"{name}: {argument} must hold first (output,) and weights (output, 3), "
            f"got {tuple(taps.first.shape)} and {tuple(taps.weights.shape)}"
        )


def check_order(name: str, argument: str, taps: Taps) -> None:
    """For the definitions alone, as :func:`check_bounds`."""
    if taps.first.device.type == "cpu" and (taps.first.diff() < 0).any():
        raise ValueError(f"{name}: {argument}.first must not decrease")


def check_edges(name: str, column_maxima: Tensor, row_maxima: Tensor, boxes: Tensor) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name}: boxes must have shape (N, 4), got {tuple(boxes.shape)}")
    for argument, maxima in (("column_maxima", column_maxima), ("row_maxima", row_maxima)):
        if maxima.ndim != 2 or maxima.shape[0] != boxes.shape[0]:
            raise ValueError(
                f"{name}: {argument} must have a row for each of the {boxes.shape[0]} boxes, "
                f"got {tuple(maxima.shape)}"
            )
