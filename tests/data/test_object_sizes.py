"""How large the objects of a training are."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

import rdsnet
from rdsnet.data.object_sizes import ObjectSizes, measured_object_sizes, object_sizes

NAME = "object_sizes_test"


@pytest.fixture
def records():
    """A data set of two images, (H, W) 100 x 200 and 400 x 400, and crowds."""
    sides = np.arange(1, 102)  # squares: percentiles 5, 50, 95 are 6, 51, 96
    small = [{"bbox": [0, 0, s, s], "bbox_mode": BoxMode.XYWH_ABS} for s in sides]
    small.append({"bbox": [0, 0, 99, 99], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 1})
    large = [{"bbox": [10, 10, 10 + 4 * s, 10 + s], "bbox_mode": BoxMode.XYXY_ABS} for s in sides]
    content = [
        {"height": 100, "width": 200, "annotations": small},
        {"height": 400, "width": 400, "annotations": large},
    ]
    DatasetCatalog.register(NAME, lambda: content)
    yield content
    DatasetCatalog.pop(NAME)


def config(**keys):
    cfg = rdsnet.get_cfg()
    cfg.DATASETS.TRAIN = (NAME,)
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def test_they_are_percentiles_of_both_kinds_of_pixels(records):
    cfg = config(INPUT__MIN_SIZE_TEST=50, INPUT__MAX_SIZE_TEST=80)
    del records[1]
    sizes = measured_object_sizes(cfg)
    assert sizes.in_images == (6, 51, 96)
    assert sizes.in_input == (2.4, 20.4, 38.4)  # 200 px become 80
    assert sizes.scale == pytest.approx(0.4)


def test_every_image_has_its_own_scale(records):
    sizes = measured_object_sizes(config(INPUT__MIN_SIZE_TEST=100, INPUT__MAX_SIZE_TEST=1000))
    sides = np.arange(1, 102)  # sqrt(4 s^2) = 2 s, a quarter of it in the input
    expected = np.percentile(np.concatenate([sides, 2 * sides / 4]), (5, 50, 95))
    assert sizes.in_input == pytest.approx(expected, abs=0.01)
    assert sizes.in_images == pytest.approx(
        np.percentile(np.concatenate([sides, 2 * sides]), (5, 50, 95)), abs=0.01
    )
    unscaled = measured_object_sizes(config(INPUT__MIN_SIZE_TEST=0))
    assert unscaled.in_input == unscaled.in_images


def test_without_objects_there_are_none(records):
    records[:] = [{"height": 9, "width": 9, "annotations": []}, {"height": 9, "width": 9}]
    assert measured_object_sizes(config()) is None


def test_a_config_keeps_them_or_says_what_is_wrong():
    cfg = rdsnet.get_cfg()
    assert object_sizes(cfg) is None
    cfg.DATASETS.OBJECT_SIZES.IN_IMAGES = [4.0, 8.0, 16.0]
    with pytest.raises(ValueError, match=r"OBJECT_SIZES.IN_INPUT \[\] should be three sizes"):
        object_sizes(cfg)
    cfg.DATASETS.OBJECT_SIZES.IN_INPUT = [2.0, 4.0, 8.0]
    assert object_sizes(cfg) == ObjectSizes((4.0, 8.0, 16.0), (2.0, 4.0, 8.0))
    cfg.DATASETS.OBJECT_SIZES.IN_INPUT = [2.0, 1.0, 8.0]
    with pytest.raises(ValueError, match="IN_INPUT"):
        object_sizes(cfg)


def test_the_share_of_smaller_objects_is_between_the_percentiles():
    sizes = ObjectSizes((10, 20, 80), (10, 20, 80))
    assert sizes.share_below(3) == sizes.share_below(10) == 0.05
    assert sizes.share_below(np.sqrt(10 * 20)) == pytest.approx((0.05 + 0.5) / 2)
    assert sizes.share_below(20) == pytest.approx(0.5)
    assert sizes.share_below(900) == 0.95
    alike = ObjectSizes((10, 10, 10), (10, 10, 10))
    assert alike.share_below(10) == 0.05 and alike.share_below(11) == 0.95
