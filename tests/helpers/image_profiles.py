"""Profiles of an image made by hand."""

import torch

from rdsnet.evaluation.box_ap import ImageBoxes
from rdsnet.fitting.profiles import ImageProfiles, PackedProfiles


def image(image_id, boxes, gt_boxes):
    """Detections of class 0 without masks, and their boxes as if refined to the true ones."""
    boxes, gt_boxes = (torch.tensor(x, dtype=torch.float32) for x in (boxes, gt_boxes))
    n = len(boxes)
    empty = PackedProfiles(
        torch.zeros(0), torch.zeros(n, dtype=torch.long), torch.zeros(n + 1, dtype=torch.long)
    )
    ones, classes = torch.ones(n), torch.zeros(n, dtype=torch.long)
    profiles = ImageProfiles(image_id, (100, 100), boxes, ones, classes, gt_boxes, empty, empty)
    return profiles, ImageBoxes(image_id, gt_boxes.clone(), ones, classes)
