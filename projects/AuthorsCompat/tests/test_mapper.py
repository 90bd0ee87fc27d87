"""The data pipeline on real images, against what the authors' pipeline made of them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from helpers.golden_data import golden, masks_from_bits, tensor
from helpers.rounding import assert_within, gamma

from rdsnet.projects.authors_compat import to_continuous
from rdsnet.projects.authors_compat.mapper import AuthorsDatasetMapper

FILES = [("e2e_train_r50", 0), ("e2e_train_r50", 1), ("e2e_train_mixed_r50", 1), ("targets", 0)]


def dataset_dict(image_id: int) -> dict:
    """The dataset dict of an image of tiny_coco, made here from the json."""
    if "RDSNET_DATA" not in os.environ:
        pytest.skip("RDSNET_DATA is not set: the folder with tiny_coco/")
    folder = Path(os.environ["RDSNET_DATA"]) / "tiny_coco"
    for split in ("train2017", "val2017"):
        content = json.loads((folder / f"annotations/instances_{split}.json").read_text())
        for image in content["images"]:
            if image["id"] == image_id:
                classes = sorted(c["id"] for c in content["categories"])
                return {
                    "file_name": str(folder / split / image["file_name"]),
                    "height": image["height"],
                    "width": image["width"],
                    "annotations": [
                        {
                            **{k: a[k] for k in ("bbox", "iscrowd", "segmentation")},
                            "bbox_mode": BoxMode.XYWH_ABS,
                            "category_id": classes.index(a["category_id"]),
                        }
                        for a in content["annotations"]
                        if a["image_id"] == image_id
                    ],
                }
    raise AssertionError(f"image {image_id} is not in tiny_coco")


@pytest.mark.parametrize("name, image", FILES)
def test_ground_truth_is_the_authors(name, image):
    data = golden(name)
    entry = dataset_dict(int(data[f"img{image}_coco_id"]))
    size = tuple(data[f"img{image}_img_shape"].tolist())
    mapper = AuthorsDatasetMapper(min_size=(min(size),), max_size=10**6)
    mapped = mapper(entry)
    assert mapped["scale_factor"] == pytest.approx(float(data[f"img{image}_scale_factor"]))
    gt = mapped["instances"]
    assert gt.image_size == size == tuple(mapped["image"].shape[1:])
    expected = to_continuous(tensor(data[f"img{image}_gt_boxes"]))
    assert_within(gt.gt_boxes.tensor, expected, gamma(8) * max(size))  # scaled and clipped
    assert torch.equal(gt.gt_classes + 1, tensor(data[f"img{image}_gt_labels"]))
    padded = masks_from_bits(data[f"img{image}_gt_masks_bits"], *data[f"img{image}_pad_shape"])
    assert torch.equal(gt.gt_masks.tensor, padded[:, : size[0], : size[1]])


@pytest.mark.parametrize("name, image", FILES[:3])
def test_image_is_the_authors(name, image):
    data = golden(name)
    entry = dataset_dict(int(data[f"img{image}_coco_id"]))
    expected = data[f"img{image}_image"]
    mapper = AuthorsDatasetMapper(
        min_size=(min(expected.shape[:2]),), max_size=10**6, with_objects=False
    )
    mapped = mapper(entry)
    assert "instances" not in mapped
    difference = np.abs(mapped["image"].permute(1, 2, 0).numpy().astype(int) - expected)
    # JPEG decoders may round differently.
    assert difference.max() <= 2 and difference.mean() < 0.05


def synthetic(tmp_path) -> dict:
    from PIL import Image

    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10:20, 5:15, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "image.png")
    square = [[5, 10, 15, 10, 15, 20, 5, 20]]
    objects = [([5, 10, 10, 10], 0), ([0, 0, 0.5, 10], 0), ([0, 0, 30, 30], 1)]
    return {
        "file_name": str(tmp_path / "image.png"),
        "height": 40,
        "width": 60,
        "annotations": [
            {
                "bbox": box,
                "bbox_mode": BoxMode.XYWH_ABS,
                "iscrowd": crowd,
                "category_id": 3,
                "segmentation": square,
            }
            for box, crowd in objects
        ],
    }


def test_crowds_and_objects_below_one_pixel_are_left_out(tmp_path):
    mapper = AuthorsDatasetMapper(min_size=(40,), max_size=1000)
    gt = mapper(synthetic(tmp_path))["instances"]
    assert gt.gt_boxes.tensor.tolist() == [[5, 10, 15, 20]]  # continuous
    assert gt.gt_masks.tensor[0].nonzero().amin(0).tolist() == [10, 5]


def test_a_flip_moves_image_box_and_mask_together(tmp_path):
    mapper = AuthorsDatasetMapper(min_size=(80,), max_size=1000, flip_probability=1.0)
    mapped = mapper(synthetic(tmp_path))
    gt = mapped["instances"]
    # Inclusive 10..28 in an image of 120 px, x2 = (5 + 10 - 1) * 2, becomes 91..109.
    assert gt.gt_boxes.tensor.tolist() == [[91, 20, 110, 39]]
    mask = gt.gt_masks.tensor[0]
    assert mask.any(0).nonzero().flatten()[[0, -1]].tolist() == [90, 109]
    red = mapped["image"][0] > 127
    assert torch.equal(red, mask)


def test_the_longer_side_is_limited(tmp_path):
    mapper = AuthorsDatasetMapper(min_size=(100,), max_size=90)
    assert mapper(synthetic(tmp_path))["image"].shape == (3, 60, 90)
