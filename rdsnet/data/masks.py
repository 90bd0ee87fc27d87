"""Ground-truth masks as tensors, whatever form they were annotated in."""

from __future__ import annotations

import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import Tensor


def dense_ground_truth_masks(instances: Instances) -> Tensor:
    """Masks of an image's objects at the resolution of the network's input.

    Args:
        instances: with ``gt_masks`` as BitMasks, PolygonMasks or (M, H, W) tensor; the field may
            be missing when there are no objects.

    Returns:
        (M, H, W) bool, on the device of ``gt_boxes``.

    Raises:
        ValueError: if there are objects without masks, or masks of another size than the image.
    """
    size, device = instances.image_size, instances.gt_boxes.device
    if len(instances) == 0:
        return torch.zeros(0, *size, dtype=torch.bool, device=device)
    if not instances.has("gt_masks"):
        raise ValueError(
            "training needs masks, but the ground truth has no gt_masks. Set MODEL.MASK_ON True "
            "and give every annotation a 'segmentation' (polygons or RLE)."
        )
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *size)
    masks = (masks.tensor if isinstance(masks, BitMasks) else masks).to(device, torch.bool)
    if tuple(masks.shape) != (len(instances), *size):
        raise ValueError(
            f"gt_masks must have shape {(len(instances), *size)} like the image, "
            f"got {tuple(masks.shape)}"
        )
    return masks
