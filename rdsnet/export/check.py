"""Whether two ways to compute a model find the same objects in an image."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor

from rdsnet.data.shapes import draw_scene
from rdsnet.export.graph import Objects

# How far rounding may move a box (pixels) and a score, and how much of a mask it must leave.
_BOX, _SCORE, _MASK_IOU = 0.1, 1e-3, 0.99
# Where two scores or overlaps are as good as equal, rounding decides which object is kept, and
# where two pixels are equally likely as an edge, which MBRM takes.
_REQUIRED_SHARE = 0.75


def made_up_image(
    size: tuple[int, int], channels: int = 3, dtype: torch.dtype = torch.uint8
) -> Tensor:
    """Made-up shapes, (C, H, W), always the same; more than three channels repeat the first."""
    # Drawn at the least size that the generator takes, where the image is smaller.
    scene = draw_scene(np.random.default_rng(0), tuple(max(side, 64) for side in size))
    image = torch.from_numpy(scene.image).permute(2, 0, 1)
    image = image[torch.arange(channels) % 3].to(dtype)
    return image[:, : size[0], : size[1]].contiguous()


def objects_of(instances: Instances) -> Objects:
    """A model's own results, as the graph gives them."""
    masks = instances.pred_masks
    return Objects(
        instances.pred_boxes.tensor,
        instances.regressed_boxes.tensor,
        instances.scores,
        instances.pred_classes,
        masks if isinstance(masks, Tensor) else masks.dense(),
    )


def agreeing_objects(expected: Objects, found: Objects) -> Tensor:
    """Which of the N expected objects were found too, equal up to rounding: (N,) bool."""
    if not len(expected.scores) or not len(found.scores):
        return torch.zeros(len(expected.scores), dtype=torch.bool)
    far = (expected.regressed_boxes[:, None] - found.regressed_boxes).abs().amax(2)
    far = far.masked_fill(expected.classes[:, None] != found.classes, torch.inf)
    distance, nearest = far.min(1)
    boxes = (expected.boxes - found.boxes[nearest]).abs().amax(1)
    scores = (expected.scores - found.scores[nearest]).abs()
    theirs = found.masks[nearest]
    union = (expected.masks | theirs).flatten(1).sum(1)
    iou = (expected.masks & theirs).flatten(1).sum(1) / union.clamp(min=1)
    iou = torch.where(union > 0, iou, 1)
    return (distance < _BOX) & (boxes < _BOX) & (scores < _SCORE) & (iou >= _MASK_IOU)


def enough_agree(expected: Objects, found: Objects) -> bool:
    """Whether at least :data:`_REQUIRED_SHARE` of the objects of each are in the other."""
    most = max(len(expected.scores), len(found.scores))
    return int(agreeing_objects(expected, found).sum()) >= _REQUIRED_SHARE * most
