"""Presets of ``INPUT.AUGMENTATION``: objects stay on what they show."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from rdsnet import get_cfg
from rdsnet.data.augmentations import PRESETS, RandomScale, RandomTranspose, Transpose
from rdsnet.data.mapper import build_mapper


def config(preset, crop=None):
    cfg = get_cfg()
    cfg.INPUT.AUGMENTATION = preset
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    cfg.INPUT.MIN_SIZE_TEST = 0
    if crop:
        cfg.INPUT.CROP.ENABLED = True
        cfg.INPUT.CROP.TYPE = "absolute"
        cfg.INPUT.CROP.SIZE = [crop, crop]
    return cfg


@pytest.fixture
def described(tmp_path):
    """An image with a bright object of an odd shape on black; its polygon."""
    polygon = [(30, 20), (80, 25), (70, 60), (50, 40), (28, 70)]
    image = np.zeros((90, 120, 3), np.uint8)
    cv2.fillPoly(image, [np.array(polygon)], (200, 180, 160))
    cv2.imwrite(str(tmp_path / "odd.png"), image)
    rle_mask = (image[..., 0] > 0).astype(np.uint8)
    annotation = {
        "bbox": [28, 20, 53, 51],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "iscrowd": 0,
        "segmentation": rle_mask,
    }
    return {
        "file_name": str(tmp_path / "odd.png"),
        "height": 90,
        "width": 120,
        "image_id": 1,
        "annotations": [annotation],
    }


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("crop", [None, 64])
def test_masks_and_boxes_follow_the_image(preset, crop, described):
    mapper = build_mapper(config(preset, crop), is_train=True)
    shown = 0
    for seed in range(12):
        np.random.seed(seed)
        mapped = mapper(described)
        bright = mapped["image"].float().amax(0) > 60
        instances = mapped["instances"]
        if len(instances) == 0:
            assert bright.sum() < 30
            continue
        shown += 1
        mask = instances.gt_masks.tensor[0]
        # Only the pixels at the border may differ, where resizing mixes with the black.
        border = torch.nn.functional.max_pool2d(mask[None, None].float(), 5, 1, 2)[0, 0] - (
            -torch.nn.functional.max_pool2d(-mask[None, None].float(), 5, 1, 2)[0, 0]
        )
        assert ((mask == bright) | (border > 0)).all()
        y, x = mask.nonzero().unbind(1)
        box = instances.gt_boxes.tensor[0]
        extent = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
        assert (box - extent).abs().max() <= 2
    assert shown > 4


def sizes_and_pixels(preset, described):
    mapper = build_mapper(config(preset), is_train=True)
    images = []
    for seed in range(40):
        np.random.seed(seed)
        images.append(mapper(described)["image"])
    return images


def test_presets_do_what_they_say(described):
    original = cv2.imread(described["file_name"]).transpose(2, 0, 1)
    flipped = original[:, :, ::-1]
    none = sizes_and_pixels("none", described)
    assert all(np.array_equal(image, original) for image in none)
    light = sizes_and_pixels("light", described)
    kinds = {tuple(np.array_equal(i, o) for o in (original, flipped)) for i in light}
    assert kinds == {(True, False), (False, True)}
    for preset in ("strong", "microscopy", "aerial"):
        images = sizes_and_pixels(preset, described)
        low, high = PRESETS[preset].scales
        longest = [max(image.shape[1:]) for image in images]
        assert 120 * low - 1 <= min(longest) < 108 and max(longest) == 120 < 120 * high
        upright = [image.shape[1] < image.shape[2] for image in images]
        assert all(upright) == (not PRESETS[preset].any_side_up)
        assert len({int(image.max()) for image in images}) > 5  # colours vary


def test_what_has_grown_is_cut_to_the_size_that_it_had():
    """Everywhere, the border too; what has shrunk stays whole."""
    image = np.zeros((50, 80, 3), dtype=np.uint8)
    np.random.seed(0)
    lefts, tops = set(), set()
    for _ in range(400):
        transform = RandomScale(1.1, 1.1, cut=True).get_transform(image)
        resize, crop = transform.transforms
        assert (resize.new_h, resize.new_w) == (55, 88)
        assert transform.apply_image(image).shape == image.shape
        lefts.add(crop.x0)
        tops.add(crop.y0)
    assert lefts == set(range(9)) and tops == set(range(6))
    smaller = RandomScale(0.5, 0.5, cut=True).get_transform(image)
    assert smaller.apply_image(image).shape == (25, 40, 3)
    assert RandomScale(1.5, 1.5).get_transform(image).apply_image(image).shape == (75, 120, 3)


@pytest.mark.parametrize("preset, format_", [("strong", "bitmask"), ("strong", "polygon")])
def test_boxes_of_objects_that_are_cut_are_those_of_their_masks(described, preset, format_):
    cfg = config(preset)
    cfg.INPUT.MASK_FORMAT = format_
    mapper = build_mapper(cfg, is_train=True)
    for seed in range(20):
        np.random.seed(seed)
        instances = mapper(described)["instances"]
        boxes = instances.gt_masks.get_bounding_boxes().tensor
        assert torch.equal(instances.gt_boxes.tensor, boxes)


def test_transpose_exchanges_rows_and_columns():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    transform = Transpose()
    assert np.array_equal(transform.apply_image(image)[3, 1], image[1, 3])
    assert transform.apply_coords(np.array([[1.0, 5.0]])).tolist() == [[5.0, 1.0]]
    assert transform.apply_box(np.array([[1.0, 2.0, 3.0, 7.0]])).tolist() == [[2.0, 1.0, 7.0, 3.0]]
    assert np.array_equal(transform.inverse().apply_image(transform.apply_image(image)), image)
    drawn = set()
    for seed in range(20):
        np.random.seed(seed)
        drawn.add(type(RandomTranspose().get_transform(image)))
    assert drawn == {Transpose, T.NoOpTransform}


def test_unknown_preset_is_named():
    with pytest.raises(ValueError, match="none, light, strong, microscopy, aerial, got 'wild'"):
        build_mapper(config("wild"), is_train=True)


def test_evaluation_is_not_augmented(described):
    mapper = build_mapper(config("strong"), is_train=False)
    original = cv2.imread(described["file_name"]).transpose(2, 0, 1)
    assert np.array_equal(mapper(described)["image"], original)
