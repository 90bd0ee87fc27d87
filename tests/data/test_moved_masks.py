"""Masks moved with their image: as if each had been augmented whole, as Detectron2 does it."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import polygons_to_bitmask

from rdsnet.config import get_cfg
from rdsnet.data.augmentations import PRESETS, with_preset
from rdsnet.data.moved_masks import MovedMasks

SIZES = [(37, 300), (270, 131)]  # one byte is not enough for a coordinate


def discs(size, count, rng):
    """(N, H, W) uint8, some of them in two pieces, some that touch the border."""
    rows, columns = np.indices(size)
    masks = []
    for n in range(count):
        mask = np.zeros(size, dtype=np.uint8)
        for _ in range(1 + n % 2):
            y, x = rng.uniform(0, size[0]), rng.uniform(0, size[1])
            mask |= np.hypot(rows - y, columns - x) < rng.uniform(0.6, 15)
        masks.append(mask)
    return np.stack(masks)


def assert_as_detectron2(masks, transforms, size):
    """Given as RLE and as arrays."""
    expected = [transforms.apply_segmentation(mask) for mask in masks]
    mover = MovedMasks(transforms, masks.shape[1:], size)
    rles = [mask_util.encode(np.asfortranarray(mask)) for mask in masks]
    for given in (rles, list(masks)):
        for found, mask in zip(mover.move(given), expected, strict=True):
            found = np.zeros(size, dtype=bool) if found is None else found
            assert found.dtype == bool and found.shape == size
            np.testing.assert_array_equal(found, mask.astype(bool))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("preset", PRESETS)
def test_each_mask_is_as_if_augmented_whole(preset, size):
    cfg = get_cfg()
    cfg.INPUT.AUGMENTATION = preset
    cfg.INPUT.CROP.ENABLED = True
    rng = np.random.default_rng(0)
    np.random.seed(0)
    resize = T.ResizeShortestEdge([30, 45], 300, "range")
    augmentations = T.AugmentationList(
        with_preset(cfg, [T.RandomCrop("absolute_range", [20, 33]), resize, T.RandomFlip()])
    )
    masks = discs(size, 12, rng)
    for _ in range(12):
        image = T.AugInput(rng.integers(0, 255, (*size, 3), dtype=np.uint8))
        transforms = augmentations(image)
        assert_as_detectron2(masks, transforms, image.image.shape[:2])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("augmentation", [T.RandomRotation(180), T.RandomExtent((0.5, 2), (1, 1))])
def test_pixels_from_beyond_the_image_belong_to_nothing(augmentation, size):
    rng = np.random.default_rng(1)
    np.random.seed(1)
    masks = discs(size, 6, rng)
    masks[0] = 1
    for _ in range(6):
        image = T.AugInput(np.zeros((*size, 3), dtype=np.uint8))
        transforms = T.AugmentationList([augmentation])(image)
        assert_as_detectron2(masks, transforms, image.image.shape[:2])


def test_polygons_are_drawn_where_their_points_have_gone():
    rng = np.random.default_rng(2)
    np.random.seed(2)
    polygons = [
        [rng.uniform(0, 100, 8) + rng.uniform(0, 150) for _ in range(1 + n % 2)] for n in range(20)
    ]
    augmentations = T.AugmentationList(
        [T.RandomCrop("absolute", (60, 70)), T.ResizeShortestEdge([90, 90], 200), T.RandomFlip()]
    )
    image = T.AugInput(np.zeros((250, 260, 3), dtype=np.uint8))
    transforms = augmentations(image)
    size = image.image.shape[:2]
    found = MovedMasks(transforms, (250, 260), size).move([list(map(list, p)) for p in polygons])
    assert None in found and any(mask is not None for mask in found)
    for mask, object_polygons in zip(found, polygons, strict=True):
        moved = [transforms.apply_coords(p.reshape(-1, 2)).reshape(-1) for p in object_polygons]
        expected = polygons_to_bitmask(moved, *size)
        np.testing.assert_array_equal(np.zeros(size, bool) if mask is None else mask, expected)


def test_objects_that_are_left_out_are_not_even_decoded(monkeypatch):
    mask = np.zeros((100, 100), dtype=np.uint8)
    mask[80:90, 80:90] = 1
    monkeypatch.setattr(mask_util, "decode", lambda _: pytest.fail("decoded"))
    mover = MovedMasks(T.TransformList([T.CropTransform(0, 0, 50, 50)]), (100, 100), (50, 50))
    assert mover.move([mask_util.encode(np.asfortranarray(mask))]) == [None]
    assert mover.move([]) == []


@pytest.mark.parametrize("without_points", [[], [[]], [[], []]])
def test_polygons_without_points_have_no_pixel(without_points):
    mover = MovedMasks(T.TransformList([]), (10, 10), (10, 10))
    triangle = [[1.0, 1.0, 8.0, 1.0, 8.0, 8.0]]
    empty, found, both = mover.move([without_points, triangle, [*without_points, *triangle]])
    assert empty is None or not empty.any()
    assert found.any() and np.array_equal(both, found)


def test_a_mask_of_another_size_is_refused_wherever_it_lies():
    mover = MovedMasks(T.TransformList([]), (100, 100), (100, 100))
    rle = mask_util.encode(np.zeros((100, 99), dtype=np.uint8, order="F"))
    for wrong in (rle, np.zeros((100, 99), dtype=bool)):
        with pytest.raises(ValueError, match=r"\(100, 99\) pixels, the image \(100, 100\)"):
            mover.move([wrong])
    with pytest.raises(ValueError, match="no 'segmentation'"):
        mover.move([None])


def test_no_objects_of_a_crop_are_an_empty_target():
    """Beside tests/data/test_mapper.py, where nothing is left out."""
    from rdsnet.data.mapper import RDSNetDatasetMapper

    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.CROP.ENABLED = True
    mapper = RDSNetDatasetMapper(cfg, is_train=True)
    transforms = T.TransformList([T.CropTransform(0, 0, 5, 5)])
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[30:, 30:] = 1
    objects = [
        {
            "bbox": [30, 30, 10, 10],
            "bbox_mode": 1,
            "category_id": 0,
            "segmentation": mask_util.encode(np.asfortranarray(mask)),
        }
    ]
    instances = mapper._instances(objects, transforms, (40, 40), (5, 5))
    assert len(instances) == 0 and instances.gt_masks.tensor.shape == (0, 5, 5)
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.dtype == torch.int64
