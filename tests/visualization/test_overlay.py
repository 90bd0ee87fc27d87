"""What overlays and contact sheets show, read back from their pixels."""

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import Visualizer

from rdsnet.visualization import (
    Objects,
    contact_sheet,
    draw_objects,
    match_colors,
    objects_from_annotations,
    objects_from_instances,
)
from rdsnet.visualization.overlay import MASK_OPACITY, MAX_LABELS

HEIGHT, WIDTH = 80, 120
RED, GREEN = (255, 0, 0), (0, 255, 0)
GREY = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)


def rectangle(x1, y1, x2, y2):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


def objects(masks, boxes, labels=None, colors=None, regressed=None):
    return Objects(
        boxes=np.array(boxes, dtype=float).reshape(-1, 4),
        rles=[coco_mask.encode(np.asfortranarray(mask)) for mask in masks],
        labels=labels or [""] * len(masks),
        colors=colors or [RED, GREEN][: len(masks)],
        regressed_boxes=regressed,
    )


def instances(count=2):
    masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    masks[0, 10:30, 10:40] = True
    masks[1, 40:70, 60:110] = True
    boxes = torch.tensor([[10.0, 10, 40, 30], [60, 40, 110, 70]])
    return Instances(
        (HEIGHT, WIDTH),
        pred_boxes=Boxes(boxes[:count]),
        regressed_boxes=Boxes(boxes[:count] + 2),
        scores=torch.tensor([0.876, 0.5])[:count],
        pred_classes=torch.tensor([1, 0])[:count],
        pred_masks=masks[:count],
    )


def draw(drawn, image=GREY):
    return draw_objects(image, drawn, min_side=1)


def test_mask_is_blended_inside_and_nothing_changes_outside():
    picture = draw(objects([rectangle(20, 20, 60, 60)], [(10, 10, 70, 70)]))
    blended = [(1 - MASK_OPACITY) * 100 + MASK_OPACITY * value for value in RED]
    assert picture.shape == GREY.shape
    assert np.abs(picture[40, 40] - np.array(blended)).max() <= 1
    assert (picture[40, 65] == 100).all()  # in the box, not in the mask
    assert (picture[:5] == 100).all() and (picture[:, 80:] == 100).all()
    assert (GREY == 100).all()  # the image itself is left alone


def test_hole_of_a_mask_stays_open():
    mask = rectangle(20, 20, 60, 60) - rectangle(35, 35, 45, 45)
    picture = draw(objects([mask], [(20, 20, 60, 60)]))
    assert (picture[40, 40] == 100).all()
    assert picture[27, 27, 0] > 150


def test_box_is_drawn_along_the_pixel_borders_of_its_edges():
    picture = draw(objects([rectangle(0, 0, 0, 0)], [(10, 20, 70, 60)])).astype(int)
    redness = picture[..., 0] - picture[..., 1]
    rows, columns = np.nonzero(redness > 100)
    # Continuous coordinate 10 is the border between columns 9 and 10, and so on.
    assert (columns.min(), columns.max() + 1) == pytest.approx((10, 70), abs=2)
    assert (rows.min(), rows.max() + 1) == pytest.approx((20, 60), abs=2)
    assert redness[30:50, 20:60].max() == 0


def test_regressed_box_is_dashed_and_white():
    regressed = np.array([[30.0, 15, 100, 70]])
    picture = draw(objects([rectangle(0, 0, 0, 0)], [(10, 20, 60, 60)], regressed=regressed))
    edge = picture[69:72, 40:90].max(axis=2).max(axis=0)  # along the lower edge, y = 70
    assert (edge > 150).any() and (edge <= 100).any()


def test_small_objects_are_drawn_over_large_ones():
    masks = [rectangle(40, 30, 60, 50), rectangle(10, 10, 110, 70)]
    picture = draw(objects(masks, [(40, 30, 60, 50), (10, 10, 110, 70)], colors=[RED, GREEN]))
    assert picture[40, 50, 0] > picture[40, 50, 1]
    assert picture[40, 80, 1] > picture[40, 80, 0]


def test_small_image_is_enlarged_with_its_objects():
    picture = draw_objects(GREY, objects([rectangle(30, 20, 60, 60)], [(0, 0, 0, 0)]), min_side=480)
    assert picture.shape == (320, 480, 3)
    assert picture[160, 180, 0] > 150 and picture[160, 100, 0] == 100


def test_no_objects_leave_the_image_as_it_is():
    assert (draw(objects_from_instances(instances(0))) == GREY).all()


@pytest.mark.parametrize(
    ("shape", "expected"), [((1, 1), (8, 8)), ((1, 320), (2, 640)), ((2000, 3), (2000, 3))]
)
def test_image_of_any_shape_can_be_drawn_on(shape, expected):
    mask = np.ones(shape, np.uint8)
    drawn = objects(
        [mask], [(-1e6, -5, 1e7, 3)], ["thing"], regressed=np.array([[-1e6, 0, 1e6, 1]])
    )
    picture = draw_objects(np.zeros((*shape, 3), np.uint8), drawn)
    assert picture.shape == (*expected, 3)


def test_labels_are_left_out_where_they_would_hide_the_picture():
    box, mask = (10, 30, 12, 32), rectangle(0, 0, 0, 0)

    def text_pixels(count):
        named, unnamed = (
            draw(objects([mask] * count, [box] * count, [label] * count, [RED] * count))
            for label in ("label", "")
        )
        return (named != unnamed).any(axis=2).sum()

    assert text_pixels(1) > 0
    assert text_pixels(MAX_LABELS + 1) == 0


def test_labels_of_predictions_are_class_and_score():
    drawn = objects_from_instances(instances(), ["disc", "bar"])
    assert drawn.labels == ["bar 88%", "disc 50%"]
    assert objects_from_instances(instances()).labels == ["class 1 88%", "class 0 50%"]
    # The name of the only class says nothing, and would cover the objects.
    assert objects_from_instances(instances(), ["disc"]).labels == ["88%", "50%"]
    assert (drawn.mask(0) == instances().pred_masks[0].numpy()).all()
    assert drawn.regressed_boxes[1].tolist() == [62, 42, 112, 72]


def test_annotations_of_every_kind_are_drawn_but_crowds():
    rle = coco_mask.encode(np.asfortranarray(rectangle(60, 40, 110, 70)))
    uncompressed = {"size": [HEIGHT, WIDTH], "counts": [0, 5, HEIGHT * WIDTH - 5]}
    polygon = [[10, 10, 40, 10, 40, 30, 10, 30]]
    annotations = [
        {"bbox": [10, 10, 30, 20], "segmentation": polygon, "category_id": 0, "iscrowd": 0},
        {"bbox": [60, 40, 50, 30], "segmentation": rle, "category_id": 1},
        {"bbox": [0, 0, 1, 5], "segmentation": uncompressed, "category_id": 1},
        {"bbox": [0, 0, 9, 9], "segmentation": rle, "category_id": 1, "iscrowd": 1},
    ]
    for annotation in annotations:
        annotation["bbox_mode"] = BoxMode.XYWH_ABS
    record = {"height": HEIGHT, "width": WIDTH, "annotations": annotations}
    drawn = objects_from_annotations(record, ["disc", "bar"])
    assert drawn.labels == ["disc", "bar", "bar"]
    assert drawn.boxes.tolist() == [[10, 10, 40, 30], [60, 40, 110, 70], [0, 0, 1, 5]]
    assert (drawn.mask(0) == rectangle(10, 10, 40, 30)).all()
    assert (drawn.mask(1) == rectangle(60, 40, 110, 70)).all()
    assert (drawn.mask(2) == rectangle(0, 0, 1, 5)).all()


def test_prediction_takes_the_colour_of_the_object_it_covers():
    a, b = rectangle(10, 10, 40, 40), rectangle(60, 10, 90, 40)
    truth = objects([a, b], [(10, 10, 40, 40), (60, 10, 90, 40)], colors=[RED, GREEN])
    found = objects([rectangle(62, 12, 90, 40), rectangle(0, 60, 20, 80)], [(0, 0, 1, 1)] * 2)
    colors = match_colors(found, truth).colors
    assert colors[0] == GREEN
    assert colors[1] not in (RED, GREEN)


def test_contact_sheet_keeps_pictures_in_rows_and_columns():
    def picture(value, height):
        return np.full((height, 50, 3), value, np.uint8)

    rows = [[picture(10, 50), picture(60, 100)], [picture(110, 50)]]
    sheet = contact_sheet(rows, cell_width=100, margin=10)
    assert sheet.shape == (10 + 200 + 10 + 100 + 10, 10 + 100 + 10 + 100 + 10, 3)
    assert (sheet[60, 60] == 10).all() and (sheet[60, 170] == 60).all()
    assert (sheet[270, 60] == 110).all() and (sheet[270, 170] == 255).all()
    with_titles = contact_sheet(rows, ["one", "two"], footer="foot", cell_width=100, margin=10)
    assert with_titles.shape[0] > sheet.shape[0]


def test_contact_sheet_without_pictures_is_refused():
    with pytest.raises(ValueError, match="no picture"):
        contact_sheet([])


@pytest.mark.parametrize("count", [0, 2])
def test_detectron2_visualizer_draws_our_instances_unchanged(count):
    metadata = Metadata(name="test", thing_classes=["disc", "bar"])
    np.random.seed(0)  # the Visualizer draws colours at random; some are hardly other than grey
    drawn = Visualizer(GREY, metadata).draw_instance_predictions(instances(count)).get_image()
    assert drawn.shape == GREY.shape
    changed = (np.abs(drawn.astype(int) - 100) > 20).any(axis=2)
    assert changed[10:30, 10:40].mean() > 0.5 if count else not changed.any()
