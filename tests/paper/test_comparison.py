"""Fig. 4: which objects are shown, and what of each model."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from helpers.image_profiles import image

from rdsnet.paper.comparison import _cell, _chosen, _find
from rdsnet.paper.localisation import REFINED, TRUE, WIDTH, EdgeError

ERROR = EdgeError(7, 2, [20, 20, 60, 60], [10, 20, 60, 60], [20, 20, 60, 60], 0.25, 0.0)
RECORD = {
    "height": 100,
    "width": 100,
    "annotations": [
        {
            "bbox": [20, 20, 40, 40],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 2,
            "segmentation": [[20, 20, 60, 20, 60, 60, 20, 60]],
        }
    ],
}


def model(boxes, classes):
    """Finds these boxes; their masks fill them."""
    instances = Instances((100, 100))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    instances.pred_classes = torch.tensor(classes)
    instances.pred_masks = torch.zeros(len(boxes), 100, 100, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(instances.pred_masks, boxes):
        mask[y1:y2, x1:x2] = True
    return lambda inputs: [{"instances": instances}]


def test_large_objects_come_first_and_small_ones_where_there_are_no_others():
    small = image(1, [[0, 0, 10, 14]], [[0, 0, 10, 10]])  # off by 40 %
    large = image(2, [[0, 0, 100, 110]], [[0, 0, 100, 100]])  # by 10 %
    assert [error.image_id for error in _chosen([small[0], large[0]])] == [2]
    assert [error.image_id for error in _chosen([small[0]])] == [1]
    assert _chosen([]) == []


def test_the_best_detection_of_the_objects_class_is_shown():
    boxes = [[20, 20, 60, 60], [20, 20, 60, 50], [0, 0, 60, 60]]
    found = _find(model(boxes, [1, 2, 2]), {}, RECORD, ERROR, "pred_boxes")
    assert found.box == [20, 20, 60, 50]
    assert (found.box_iou, found.mask_iou) == (pytest.approx(0.75), pytest.approx(0.75))
    assert _find(model(boxes[2:], [2]), {}, RECORD, ERROR, "pred_boxes") is None  # IoU 0.44


def test_a_cell_shows_box_and_mask_and_says_what_was_not_found():
    found = _find(model([[20, 20, 60, 50]], [2]), {}, RECORD, ERROR, "pred_boxes")
    photograph = np.zeros((100, 100, 3), np.uint8)
    cell = _cell(photograph, ERROR, found, "RDSNet")
    assert cell.shape[1] == WIDTH
    # The object takes 1 / 1.8 of the width: its box ends at 280 px, what was found at 230.
    assert (cell[278:283, 100:260] == TRUE).all(-1).any()
    assert tuple(cell[150, 180]) != (0, 0, 0)
    assert tuple(cell[250, 180]) == (0, 0, 0)
    assert (cell == REFINED).all(-1).any()
    missing = _cell(photograph, ERROR, None, "RDSNet")
    assert not (missing == REFINED).all(-1).any()
