"""The mask loss, on the grid and at the pixels: as the functions in :mod:`rdsnet.ops.operators`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rdsnet.ops import compiled, reference
from rdsnet.ops.arguments import (
    MASK_DTYPES,
    check_bounds,
    check_image_masks,
    check_index,
    check_negatives_per_positive,
    check_order,
    check_representations,
    check_taps,
    check_targets,
    check_windows,
)
from rdsnet.ops.operators import resize_taps
from rdsnet.ops.reference.targets import whole_stride, windows_of_masks
from rdsnet.ops.taps import Taps


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
        psi, phi, image_index, windows: as in :func:`~rdsnet.ops.correlate`.
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
    check_representations(name, psi, phi)
    check_index(name, "image_index", image_index, len(phi))
    check_windows(name, windows, len(phi))
    check_targets(name, targets, psi)
    check_index(name, "target_index", target_index, len(phi))
    check_negatives_per_positive(name, negatives_per_positive)
    arguments = (psi, phi, image_index, windows, targets, target_index, negatives_per_positive)
    if compiled.usable(psi):
        return torch.ops.rdsnet.mask_ohem_loss(*arguments)[0]
    check_bounds(name, "image_index", image_index, psi.shape[0])
    check_bounds(name, "target_index", target_index, len(targets))
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

    The logits of the grid are interpolated inside each window, as
    :func:`~rdsnet.ops.assemble_masks` does at inference, so that nothing of the ground truth is
    lost in bringing it to the grid. Since interpolation commutes with correlation, this is the loss
    of pixel representations that were interpolated to the image, at the cost of one number per
    pixel of a window instead of D.

    Args:
        psi, phi, image_index: as in :func:`~rdsnet.ops.correlate`.
        windows: (N, 4) integers in pixels of the image, end exclusive. What lies outside an
            object's mask, or of what the taps reach, is cut off.
        masks: the ground-truth masks of every image, (M, H, W) uint8 or bool, non-zero =
            foreground.
        object_index: (N,) int64, the mask of each object among those of its image.
        taps_y, taps_x: the maps from the rows and columns of the grid to those of the images
            (:func:`~rdsnet.ops.resize_taps`); ``first`` must not decrease.
        negatives_per_positive: background pixels per foreground pixel; None keeps all pixels.

    Returns:
        (N,) losses, float32 or wider. Differentiable in psi and phi.

    Raises:
        ValueError, TypeError: for arguments of another shape or kind.
    """
    name = "mask_ohem_loss_at_pixels"
    check_representations(name, psi, phi)
    check_index(name, "image_index", image_index, len(phi))
    check_windows(name, windows, len(phi))
    check_image_masks(name, masks, psi)
    check_index(name, "object_index", object_index, len(phi))
    check_taps(name, "taps_y", taps_y)
    check_taps(name, "taps_x", taps_x)
    check_negatives_per_positive(name, negatives_per_positive)
    given = psi, phi, image_index, windows, masks, object_index
    if compiled.usable(psi):
        return torch.ops.rdsnet.mask_ohem_loss_at_pixels(
            *given, *taps_y, *taps_x, negatives_per_positive
        )[0]
    check_bounds(name, "image_index", image_index, psi.shape[0])
    for i, own in enumerate(masks if object_index.is_cpu else ()):
        check_bounds(name, "object_index", object_index[image_index == i], len(own))
    check_bounds(name, "taps_y.first", taps_y.first, psi.shape[2])
    check_bounds(name, "taps_x.first", taps_x.first, psi.shape[3])
    check_order(name, "taps_y", taps_y)
    check_order(name, "taps_x", taps_x)
    return reference.mask_ohem_loss_at_pixels(*given, taps_y, taps_x, negatives_per_positive)


def object_losses(
    psi: Tensor,
    phi: Tensor,
    image_index: Tensor,
    windows: Tensor,
    masks: Sequence[Tensor],
    object_index: Tensor,
    strides: tuple[float, float],
    negatives_per_positive: float | None = 1,
    *,
    at_pixels: bool = False,
) -> Tensor:
    """The mask loss from ground truth as it comes: at the resolution of the images.

    On the grid it is :func:`mask_ohem_loss`. On the CPU one kernel reads of the masks what the
    windows look at; elsewhere :func:`mask_targets` brings them to the grid first. At the pixels it
    is :func:`mask_ohem_loss_at_pixels`, through the taps of inference.

    Args:
        psi, phi, image_index, negatives_per_positive: as in these functions.
        windows: (N, 4) integers, in cells of the grid or, ``at_pixels``, in pixels of the network's
            input.
        masks: the ground truth of every image, (M, H, W) bool or 0/1, in pixels of the network's
            input. Beyond them is background on the grid; nothing at the pixels.
        object_index: (N,) int64, each object's mask among those of its image.
        strides: pixels of the network's input per cell, vertically and horizontally.
        at_pixels: where the loss is taken.

    Returns, Raises: as these functions.
    """
    name = "object_losses"
    check_representations(name, psi, phi)
    check_index(name, "image_index", image_index, len(phi))
    check_windows(name, windows, len(phi))
    check_index(name, "object_index", object_index, len(phi))
    check_negatives_per_positive(name, negatives_per_positive)
    if len(masks) != psi.shape[0]:
        raise ValueError(
            f"{name}: masks must be a tensor per image, {psi.shape[0]}; got {len(masks)}"
        )
    masks = [own if own.dtype in MASK_DTYPES else own.to(torch.uint8) for own in masks]
    given = psi, phi, image_index, windows
    if at_pixels:
        taps_y, taps_x = (
            resize_taps(round(cells * s), round(cells * s), cells, s, device=psi.device)
            for cells, s in zip(psi.shape[2:], strides)
        )
        return mask_ohem_loss_at_pixels(
            *given, masks, object_index, taps_y, taps_x, negatives_per_positive
        )
    stride = whole_stride(strides)
    if stride is not None and psi.is_cpu and compiled.usable(psi):
        return torch.ops.rdsnet.mask_ohem_loss_from_images(
            *given, masks, object_index, stride, negatives_per_positive
        )[0]
    size = tuple(psi.shape[2:])
    counts = [len(own) for own in masks]
    first = torch.tensor([0, *counts[:-1]], device=object_index.device).cumsum(0)
    target_index = object_index + first[image_index]
    looked_at = windows_of_masks(windows, target_index, sum(counts), size).split(counts)
    targets = [mask_targets(m, size, strides, windows=w) for m, w in zip(masks, looked_at)]
    return mask_ohem_loss(*given, torch.cat(targets), target_index, negatives_per_positive)


def mask_targets(
    masks: Tensor,
    size: tuple[int, int],
    strides: tuple[float, float],
    *,
    windows: Tensor | None = None,
) -> Tensor:
    """Ground-truth masks on the grid of the pixel representations.

    A cell is foreground when bilinear interpolation of the mask at its centre is above 0.5. The
    centre of a cell of 4 x 4 pixels is the corner that its four middle pixels share, where
    interpolation is their mean: above 0.5 is "at least 3 of the 4". So it is for every even
    stride; for an odd one the middle pixel decides.

    Args:
        masks: (M, H, W) bool or 0/1, at the resolution of the network's input.
        size: (h, w) of the grid. Cells beyond the image are background.
        strides: pixels per cell, vertically and horizontally.
        windows: (M, 4) cells of each mask that will be looked at, x1, y1, x2, y2, end exclusive;
            cells outside may be left background. None: all.

    Returns:
        (M, h, w) uint8.
    """
    size, stride = tuple(size), whole_stride(strides)
    of_kernel = stride is not None and masks.is_cpu and masks.dtype in MASK_DTYPES
    if of_kernel and compiled.usable(masks):
        if windows is None:
            windows = torch.tensor([[0, 0, size[1], size[0]]]).expand(len(masks), 4)
        return torch.ops.rdsnet.mask_targets(masks, windows, stride, *size)
    return reference.mask_targets(masks, size, strides, windows=windows)
