"""SSD's augmentation: what moves together, what is cut away, what stays."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from helpers.rounding import assert_within, gamma
from PIL import Image
from torch.nn import functional as F

import rdsnet
from rdsnet.data.mapper import build_mapper
from rdsnet.projects.yolact.augmentation import (
    RandomExpand,
    RandomSampleCrop,
    Stretch,
    build_ssd_augmentation,
)


def training_config(size=100):
    cfg = rdsnet.get_cfg()
    cfg.MODEL.YOLACT.INPUT_SIZE = size
    cfg.MODEL.MASK_ON = True
    cfg.DATASETS.MAPPER = "YOLACTDatasetMapper"
    cfg.INPUT.MASK_FORMAT = "bitmask"
    return cfg


def annotation(x1, y1, x2, y2, crowd=0):
    record = {"bbox": [x1, y1, x2, y2], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    polygon = [x1, y1, x2, y1, x2, y2, x1, y2]
    if crowd:
        mask = np.zeros((80, 120), dtype=np.uint8)
        mask[y1:y2, x1:x2] = 1
        return record | {"segmentation": mask, "iscrowd": 1}
    return record | {"segmentation": [polygon], "iscrowd": 0}


@pytest.fixture
def record(tmp_path):
    """A grey image with a white object and a crowd."""
    pixels = np.full((80, 120, 3), 30, dtype=np.uint8)
    pixels[20:50, 30:70] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    annotations = [annotation(30, 20, 70, 50), annotation(80, 10, 110, 70, crowd=1)]
    return {
        **{"file_name": str(tmp_path / "a.png"), "height": 80, "width": 120, "image_id": 1},
        "annotations": annotations,
    }


def test_image_boxes_and_masks_move_together(record):
    mapper = build_mapper(training_config(), is_train=True)
    crowds = 0
    for seed in range(30):
        np.random.seed(seed)
        result = mapper(record)
        instances = result["instances"]
        assert result["image"].shape[1:] == (100, 100) == instances.image_size
        objects = instances[~instances.gt_is_crowd]
        crowds += int(instances.gt_is_crowd.sum())
        assert len(objects) == 1  # the crop leaves the centre of one object inside
        mask = objects.gt_masks.tensor[0]
        # White stays brighter than grey under every distortion of colours.
        white = result["image"].float().mean(0)
        inside = white[mask].median()
        outside = white[~mask & (white > 0)].median() if (~mask).any() else 0
        assert inside > outside
        box = objects.gt_boxes.tensor[0]
        tight = objects.gt_masks.get_bounding_boxes().tensor[0]
        assert (box - tight).abs().max() < 2.5
    assert 5 < crowds < 30  # sometimes its centre is cut away


def test_the_record_is_not_changed_and_tests_see_the_plain_image(record):
    before = repr(record)
    np.random.seed(0)
    build_mapper(training_config(), is_train=True)(record)
    assert repr(record) == before
    cfg = training_config()
    cfg.INPUT.MIN_SIZE_TEST = 0
    result = build_mapper(cfg, is_train=False)(record)
    assert result["image"].shape == (3, 80, 120) and "instances" not in result


def test_objects_whose_centre_is_cropped_away_are_left_out(record):
    mapper = build_mapper(training_config(), is_train=True)
    mapper.augmentations = T.AugmentationList([T.CropTransform(0, 0, 52, 80)])
    instances = mapper(record)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[30, 20, 52, 50]]  # cut at the image
    mapper.augmentations = T.AugmentationList([T.CropTransform(0, 0, 49, 80)])
    assert len(mapper(record)["instances"]) == 0


def test_expansion_keeps_the_image_on_a_canvas_of_the_mean_colour():
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    colour = [10.4, 20.0, 30.0]
    np.random.seed(0)
    sizes = []
    for _ in range(40):
        transform = RandomExpand(colour).get_transform(image)
        expanded = transform.apply_image(image)
        sizes.append(expanded.shape[0] / 20)
        (x1, y1), (x2, y2) = transform.apply_coords(np.array([[0.0, 0], [30, 20]])).astype(int)
        assert (expanded[y1:y2, x1:x2] == image).all()
        outside = np.ones(expanded.shape[:2], dtype=bool)
        outside[y1:y2, x1:x2] = False
        assert (expanded[outside] == [10, 20, 30]).all()
        mask = transform.apply_segmentation(np.ones((20, 30), dtype=np.uint8))
        assert mask.sum() == 600 and mask[y1:y2, x1:x2].all()
    assert 10 < sizes.count(1.0) < 30 and 2.5 < max(sizes) <= 4


def test_crops_hold_a_centre_and_keep_their_limits():
    image = np.zeros((100, 200, 3), dtype=np.uint8)
    boxes = np.array([[150.0, 60, 190, 90]])
    np.random.seed(0)
    whole = 0
    for _ in range(100):
        transform = RandomSampleCrop().get_transform(image, boxes)
        height, width = transform.apply_image(image).shape[:2]
        if (height, width) == (100, 200):
            whole += 1
            continue
        x, y = transform.apply_coords(np.array([[170.0, 75]]))[0]
        assert 0 < x < width and 0 < y < height
        assert width >= 59 and height >= 29 and 0.45 < height / width < 2.1
    assert 5 < whole < 35  # one in six


def test_stretching_is_the_models_own_resizing():
    image = np.random.default_rng(0).integers(0, 255, (40, 70, 3)).astype(np.float32)
    stretched = Stretch(33).get_transform(image).apply_image(image)
    own = F.interpolate(
        torch.from_numpy(image.transpose(2, 0, 1))[None], (33, 33), mode="bilinear"
    )[0]
    # Both look at float32 places, up to 70 px; neighbours differ by up to 255.
    limit = 2 * 2 * gamma(4) * 70 * 255
    assert_within(torch.from_numpy(stretched.transpose(2, 0, 1)), own, limit)


def test_without_a_fixed_size_the_augmentation_says_what_to_do():
    with pytest.raises(ValueError, match="MODEL.YOLACT.INPUT_SIZE, which is 0"):
        build_ssd_augmentation(training_config(size=0))
