"""Batched correlation of objects with pixels, and what follows it.

============================  =========================================================
``correlate``                 logits of every object at every pixel of its own window
``mask_ohem_loss``            cross-entropy inside the windows, with the hardest background
                              pixels
``mask_ohem_loss_at_pixels``  the same at the image's own pixels, where its masks are exact
``assemble_masks``            masks and their row and column maxima at the output resolution
``resize_taps``               the linear map between feature grid and output, per axis
============================  =========================================================

These functions check their arguments and hand over to the compiled operators, where they were
built (:mod:`rdsnet.ops.compiled`), else to the definition in :mod:`rdsnet.ops.reference`;
``active_path()`` says which. They need torch alone.

Windows are x1, y1, x2, y2 in pixels of the map, end exclusive; what lies outside the map is cut
off, and an empty or reversed window has no pixels. The channels of ``phi`` (N, 2, D) are
background, foreground.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rdsnet.ops import compiled, reference
from rdsnet.ops.compiled import active_path
from rdsnet.ops.masks import CompactMasks
from rdsnet.ops.taps import Taps, resize_taps

__all__ = [
    "CompactMasks",
    "Taps",
    "active_path",
    "assemble_masks",
    "correlate",
    "mask_ohem_loss",
    "mask_ohem_loss_at_pixels",
    "resize_taps",
]

compiled.load()


def correlate(
    psi: Tensor, phi: Tensor, image_index: Tensor, windows: Tensor
) -> tuple[Tensor, Tensor]:
    """Correlation (Eq. 1): foreground-minus-background logit of objects at their own pixels.

    sigmoid(logit) is the foreground channel of softmax(phi . psi).

    Args:
        psi: (B, D, h, w) pixel representations.
        phi: (N, 2, D) object representations.
        image_index: (N,) int64, the image that each object lies in.
        windows: (N, 4) integers, the pixels of the grid that each object looks at.

    Returns:
        logits (sum of window areas,), object after object, row by row, and offsets (N + 1,) int64.
        Half-precision input gives float32 logits. Differentiable in psi and phi.

    Raises:
        ValueError, TypeError: for arguments of another shape or kind.
    """
    _check_representations("correlate", psi, phi, batched=True)
    _check_index("correlate", "image_index", image_index, len(phi))
    _check_windows("correlate", windows, len(phi))
    if compiled.usable(psi):
        return torch.ops.rdsnet.correlate(psi, phi, image_index, windows)
    _check_bounds("correlate", "image_index", image_index, psi.shape[0])
    return reference.correlate(psi, phi, image_index, windows)


def mask_ohem_loss(
    psi: Tensor,
    phi: Tensor,
    image_index: Tensor,
    windows: Tensor,
    targets: Tensor,
    target_index: Tensor,
    negatives_per_positive: float | None = 1,
) -> Tensor:
    """Mask loss of every object with online hard example mining (paper, Sec. 3.2).

    Inside its window an object keeps all foreground pixels and the hardest background pixels,
    ``negatives_per_positive`` times as many, and its loss is
    ``sum of the kept pixels' cross-entropy / (kept pixels + 1)``.

    Args:
        psi, phi, image_index, windows: as in :func:`correlate`.
        targets: (M, h, w) uint8 or bool, ground-truth masks on the grid of psi, non-zero =
            foreground.
        target_index: (N,) int64, the ground-truth mask of each object.
        negatives_per_positive: background pixels per foreground pixel; None keeps all pixels.

    Returns:
        (N,) losses, float32 or wider. Differentiable in psi and phi.

    Raises:
        ValueError, TypeError: for arguments of another shape or kind.
    """
    name = "mask_ohem_loss"
    _check_representations(name, psi, phi, batched=True)
    _check_index(name, "image_index", image_index, len(phi))
    _check_windows(name, windows, len(phi))
    if targets.ndim != 3 or targets.shape[1:] != psi.shape[2:]:
        raise ValueError(
            f"{name}: targets must have shape (M, h, w) with the (h, w) of psi, "
            f"{tuple(psi.shape[2:])}; got {tuple(targets.shape)}"
        )
    if targets.dtype not in (torch.uint8, torch.bool):
        raise TypeError(f"{name}: targets must be uint8 or bool, got {targets.dtype}")
    _check_index(name, "target_index", target_index, len(phi))
    _check_mining(name, negatives_per_positive)
    arguments = (psi, phi, image_index, windows, targets, target_index, negatives_per_positive)
    if compiled.usable(psi):
        return torch.ops.rdsnet.mask_ohem_loss(*arguments)[0]
    _check_bounds(name, "image_index", image_index, psi.shape[0])
    _check_bounds(name, "target_index", target_index, len(targets))
    return reference.mask_ohem_loss(*arguments)


def mask_ohem_loss_at_pixels(
    psi: Tensor,
    phi: Tensor,
    image_index: Tensor,
    windows: Tensor,
    masks: Sequence[Tensor],
    object_index: Tensor,
    taps_y: Taps,
    taps_x: Taps,
    negatives_per_positive: float | None = 1,
) -> Tensor:
    """:func:`mask_ohem_loss` at pixels finer than the grid: those that the masks were drawn on.

    The logits of the grid are interpolated inside each window, as :func:`assemble_masks` does at
    inference, so that nothing of the ground truth is lost in bringing it to the grid. Since
    interpolation commutes with correlation, this is the loss of pixel representations that were
    interpolated to the image, at the cost of one number per pixel of a window instead of D.

    Args:
        psi, phi, image_index: as in :func:`correlate`.
        windows: (N, 4) integers in pixels of the image, end exclusive. What lies outside an
            object's mask, or of what the taps reach, is cut off.
        masks: the ground-truth masks of every image, (M, H, W) uint8 or bool, non-zero =
            foreground.
        object_index: (N,) int64, the mask of each object among those of its image.
        taps_y, taps_x: the maps from the rows and columns of the grid to those of the images
            (:func:`resize_taps`); ``first`` must not decrease.
        negatives_per_positive: background pixels per foreground pixel; None keeps all pixels.

    Returns:
        (N,) losses, float32 or wider. Differentiable in psi and phi.

    Raises:
        ValueError, TypeError: for arguments of another shape or kind.
    """
    name = "mask_ohem_loss_at_pixels"
    _check_representations(name, psi, phi, batched=True)
    _check_index(name, "image_index", image_index, len(phi))
    _check_windows(name, windows, len(phi))
    _check_image_masks(name, masks, len(psi))
    _check_index(name, "object_index", object_index, len(phi))
    _check_taps(name, taps_y, taps_x)
    _check_mining(name, negatives_per_positive)
    arguments = (psi, phi, image_index, windows, masks, object_index)
    if compiled.usable(psi):
        return torch.ops.rdsnet.mask_ohem_loss_at_pixels(
            *arguments, *taps_y, *taps_x, negatives_per_positive
        )[0]
    _check_bounds(name, "image_index", image_index, psi.shape[0])
    counts = object_index.new_tensor([len(own) for own in masks])
    _check_bounds(name, "object_index", object_index, counts[image_index])
    for axis, taps, cells in (("taps_y", taps_y, psi.shape[2]), ("taps_x", taps_x, psi.shape[3])):
        _check_bounds(name, f"{axis}.first", taps.first, cells)
        if taps.first.is_cpu and (taps.first.diff() < 0).any():
            raise ValueError(f"{name}: {axis}.first must not decrease")
    return reference.mask_ohem_loss_at_pixels(*arguments, taps_y, taps_x, negatives_per_positive)


@torch.no_grad()
def assemble_masks(
    psi: Tensor, phi: Tensor, windows: Tensor, taps_y: Taps, taps_x: Taps, threshold: float = 0.4
) -> CompactMasks:
    """Masks of the objects of one image at the output resolution, inside their windows.

    Correlation, bilinear interpolation to the output and thresholding of the foreground
    probability; pixels outside a window are background.

    Args:
        psi: (D, h, w) pixel representations of the image.
        phi: (N, 2, D) representations of its objects.
        windows: (N, 4) integers in output pixels, end exclusive.
        taps_y, taps_x: the maps from the h rows and w columns of the grid to the H rows and W
            columns of the output (:func:`resize_taps`).
        threshold: a pixel is foreground when its probability is larger.

    Raises:
        ValueError, TypeError: for arguments of another shape or kind.
    """
    name = "assemble_masks"
    _check_representations(name, psi, phi, batched=False)
    _check_windows(name, windows, len(phi))
    _check_taps(name, taps_y, taps_x)
    if not 0 < threshold < 1:
        raise ValueError(f"{name}: threshold must lie between 0 and 1, got {threshold}")
    if not compiled.usable(psi):
        for axis, taps, cells in (
            ("taps_y", taps_y, psi.shape[1]),
            ("taps_x", taps_x, psi.shape[2]),
        ):
            _check_bounds(name, f"{axis}.first", taps.first, cells)
        return reference.assemble_masks(psi, phi, windows, taps_y, taps_x, threshold)
    results = torch.ops.rdsnet.assemble_masks(psi, phi, windows, *taps_y, *taps_x, threshold)
    return CompactMasks((len(taps_y.first), len(taps_x.first)), *results)


def _check_representations(name: str, psi: Tensor, phi: Tensor, batched: bool) -> None:
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


def _check_windows(name: str, windows: Tensor, num_objects: int) -> None:
    if windows.shape != (num_objects, 4):
        raise ValueError(
            f"{name}: windows must have shape (N, 4) with N = {num_objects}, "
            f"got {tuple(windows.shape)}"
        )
    if windows.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: windows must be int32 or int64, got {windows.dtype}")


def _check_index(name: str, argument: str, index: Tensor, num_objects: int) -> None:
    if index.shape != (num_objects,):
        raise ValueError(
            f"{name}: {argument} must have shape (N,) with N = {num_objects}, "
            f"got {tuple(index.shape)}"
        )
    if index.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: {argument} must be int32 or int64, got {index.dtype}")


def _check_image_masks(name: str, masks: Sequence[Tensor], images: int) -> None:
    if len(masks) != images:
        raise ValueError(f"{name}: masks must be a tensor per image, {images}; got {len(masks)}")
    for own in masks:
        if own.ndim != 3:
            raise ValueError(f"{name}: masks must have shape (M, H, W), got {tuple(own.shape)}")
        if own.dtype not in (torch.uint8, torch.bool):
            raise TypeError(f"{name}: masks must be uint8 or bool, got {own.dtype}")


def _check_taps(name: str, taps_y: Taps, taps_x: Taps) -> None:
    for axis, taps in (("taps_y", taps_y), ("taps_x", taps_x)):
        if taps.first.ndim != 1 or taps.weights.shape != (len(taps.first), 3):
            raise ValueError(
                f"{name}: {axis} must hold first (output,) and weights (output, 3), "
                f"got {tuple(taps.first.shape)} and {tuple(taps.weights.shape)}"
            )


def _check_mining(name: str, negatives_per_positive: float | None) -> None:
    if negatives_per_positive is not None and negatives_per_positive < 0:
        raise ValueError(
            f"{name}: negatives_per_positive must be None or at least 0, "
            f"got {negatives_per_positive}"
        )


def _check_bounds(name: str, argument: str, index: Tensor, bound: int | Tensor) -> None:
    """The compiled operators check this themselves. The bound may be one for each value."""
    # On a GPU looking at the values would stall the stream; there the lookup itself checks.
    if index.device.type == "cpu" and len(index):
        bounds = torch.as_tensor(bound).expand(len(index))
        wrong = ((index < 0) | (index >= bounds)).nonzero()
        if len(wrong):
            place = int(wrong[0])
            raise ValueError(
                f"{name}: {argument} must lie in 0..{int(bounds[place]) - 1}, got "
                f"{int(index[place])} at place {place}"
            )
