"""Training images put together from parts of four."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from PIL import Image

from rdsnet import get_cfg
from rdsnet.data.mapper import build_mapper
from rdsnet.data.mosaic import MosaicMapper, with_mosaics
from rdsnet.data.seeding import seeded

CLASSES = {"a": 0, "b": 1, "c": 2, "d": 3}


def mapped(name, height=20, width=30, masks=True):
    """An image of one value with an object of the same value's class in its middle."""
    value = CLASSES[name]
    instances = Instances((height, width))
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, 5 : height - 5, 5 : width - 5] = True
    instances.gt_boxes = BitMasks(mask).get_bounding_boxes()
    instances.gt_classes = torch.tensor([value])
    if masks:
        instances.gt_masks = BitMasks(mask)
    image = torch.full((3, height, width), 10 * (value + 1), dtype=torch.uint8)
    image[:, mask[0]] += 1
    return {"file_name": name, "image": image, "instances": instances}


def test_masks_lie_where_the_objects_do():
    for seed in range(30):
        random.seed(seed)
        result = MosaicMapper(mapped, "abcd", 1.0)("a")
        image, instances = result["image"][0], result["instances"]
        assert result["file_name"] == "a" and image.shape == (20, 30)
        assert instances.image_size == (20, 30)
        assert (image[:10, :15] // 10 == 1).all()  # its own quarter
        seen = torch.zeros(20, 30, dtype=torch.bool)
        for mask, kind in zip(instances.gt_masks.tensor, instances.gt_classes):
            assert (image[mask] == 10 * (kind + 1) + 1).all()
            seen |= mask
        assert torch.equal(seen, image % 10 == 1)
        expected = instances.gt_masks.get_bounding_boxes().tensor
        assert torch.equal(instances.gt_boxes.tensor, expected)


def test_without_masks_boxes_are_cut():
    for seed in range(10):
        random.seed(seed)
        cut = MosaicMapper(lambda name: mapped(name, masks=False), "abcd", 1.0)("a")["instances"]
        random.seed(seed)
        expected = MosaicMapper(mapped, "abcd", 1.0)("a")["instances"]
        assert torch.equal(cut.gt_boxes.tensor, expected.gt_boxes.tensor)
        assert torch.equal(cut.gt_classes, expected.gt_classes)


def test_smaller_images_leave_black():
    sizes = {"a": (21, 31), "b": (6, 8), "c": (40, 12), "d": (9, 50)}
    for seed in range(10):
        random.seed(seed)
        result = MosaicMapper(lambda name: mapped(name, *sizes[name]), "bcd", 1.0)("a")
        image, instances = result["image"][0], result["instances"]
        assert image.shape == (21, 31)
        assert torch.equal(instances.gt_masks.tensor.any(0), image % 10 == 1)


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_how_many_are_mosaics(probability):
    random.seed(0)
    mapper = MosaicMapper(mapped, "bcd", probability)
    whole = [bool((mapper("a")["image"] // 10 == 1).all()) for _ in range(500)]
    assert abs(1 - np.mean(whole) - probability) < 0.1


def test_refused_images_make_no_mosaic():
    assert MosaicMapper(lambda name: None, "a", 1.0)("a") is None
    only = MosaicMapper(lambda name: mapped(name) if name == "a" else None, "b", 1.0)("a")
    assert torch.equal(only["image"], mapped("a")["image"])


def test_the_config_decides(tmp_path):
    """On files, with polygons, and the same for the same seed."""
    records = []
    for number in range(4):
        file = tmp_path / f"{number}.png"
        Image.fromarray(np.full((40, 60, 3), 50 * number + 5, np.uint8)).save(file)
        polygon = [10.0, 10.0, 50.0, 10.0, 50.0, 30.0, 10.0, 30.0]
        annotation = {"bbox": [10, 10, 40, 20], "bbox_mode": 1, "category_id": number}
        annotation["segmentation"] = [polygon]
        record = {"file_name": str(file), "height": 40, "width": 60, "annotations": [annotation]}
        records.append(record)
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    cfg.INPUT.MASK_FORMAT = "polygon"
    plain = build_mapper(cfg, True)
    assert with_mosaics(cfg, plain, records) is plain
    cfg.INPUT.MOSAIC = 1.0
    mapper = with_mosaics(cfg, build_mapper(cfg, True), records)
    results = []
    for _ in range(2):
        with seeded(3):
            results.append(mapper(records[0]))
    first, second = results
    assert torch.equal(first["image"], second["image"])
    assert len(first["image"].unique()) > 1
    for mask, kind in zip(first["instances"].gt_masks.tensor, first["instances"].gt_classes):
        assert (first["image"][:, mask] == 50 * kind + 5).all()


@pytest.mark.parametrize("probability", [-0.1, 1.5])
def test_it_is_a_probability(probability):
    cfg = get_cfg()
    cfg.INPUT.MOSAIC = probability
    with pytest.raises(ValueError, match="INPUT.MOSAIC must be a probability from 0 to 1"):
        with_mosaics(cfg, mapped, [])


def test_polygons_are_refused():
    def mapper(name):
        result = mapped(name)
        square = np.array([5.0, 5.0, 9.0, 5.0, 9.0, 9.0, 5.0, 9.0])
        result["instances"].gt_masks = PolygonMasks([[square]])
        return result

    with pytest.raises(ValueError, match="set INPUT.MASK_FORMAT bitmask"):
        MosaicMapper(mapper, "b", 1.0)("a")


def test_objects_outside_are_left_out():
    def mapper(name):
        result = mapped(name)
        if name == "b":
            result["instances"].gt_masks.tensor[:] = False
            result["instances"].gt_masks.tensor[:, 0, 0] = True
            result["instances"].gt_boxes = Boxes(torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
        return result

    random.seed(1)  # no part of b begins at its corner
    instances = MosaicMapper(mapper, "b", 1.0)("a")["instances"]
    assert 1 not in instances.gt_classes.tolist()
