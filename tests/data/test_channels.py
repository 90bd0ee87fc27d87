"""From numbers of files to what a model is given: scaling, pictures, augmentations."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from detectron2.data import transforms as T
from PIL import Image

from rdsnet import get_cfg
from rdsnet.data.channels import (
    ArrayInput,
    Channels,
    applied,
    measured_ranges,
    picture_of,
    ranges_of,
    read_picture,
    sample,
    scaled_by,
)
from rdsnet.data.images import read_image
from rdsnet.data.mapper import build_mapper

H, W = 30, 44


def numbers(channels, dtype=np.uint16):
    rng = np.random.default_rng()
    values = rng.gamma(2, 1000, (H, W, channels))
    return values.astype(dtype)


def config(**keys):
    cfg = get_cfg()
    count = keys.get("CHANNELS", 3)
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = [100.0] * count
    for key, value in keys.items():
        cfg.INPUT[key] = value
    return cfg


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_an_image_is_scaled_by_its_own_percentiles(dtype):
    values = (numbers(4) % 201).astype(dtype)
    found = Channels(4, "image", (1, 98)).scaled(values, "x")
    assert found.dtype == np.float32
    for channel in range(4):
        low, high = np.percentile(values[..., channel], (1, 98))
        expected = ((values[..., channel] - low) / (high - low) * 255).clip(0, 255)
        np.testing.assert_allclose(found[..., channel], expected, atol=1e-2)


def test_a_data_set_has_one_range_per_channel(tmp_path):
    files = []
    for n in range(4):
        np.save(tmp_path / f"{n}.npy", numbers(3))
        files.append(str(tmp_path / f"{n}.npy"))
    ranges = measured_ranges(files, 3, (2, 97))
    pixels = np.concatenate([np.load(file).reshape(-1, 3) for file in files])
    np.testing.assert_allclose(ranges, np.percentile(pixels, (2, 97), axis=0).T)
    channels = Channels(3, "dataset", ranges=ranges)
    expected = scaled_by(np.load(files[1]), ranges)
    np.testing.assert_array_equal(channels.read(files[1], "BGR"), expected)


def test_dark_images_constant_ones_and_numbers_that_are_none():
    values = np.zeros((H, W, 3), np.float32)
    values[0, 0, 0] = 7  # one bright spot
    values[:, :, 1] = 5  # constant
    values[:, :, 2] = np.nan
    values[0, :2, 2] = 1, 3
    found = Channels(3, "image", (1, 90)).scaled(values, "x")
    assert found[0, 0, 0] == pytest.approx(255) and found[0, 1, 0] == 0
    assert (found[:, :, 1] == 0).all()
    assert found[3, 3, 2] == 0 and found[0, 1, 2] == pytest.approx(255)


def test_without_scaling_there_are_8_bits_alone(tmp_path):
    np.save(tmp_path / "x.npy", numbers(2))
    with pytest.raises(ValueError, match=r"x.npy has numbers of uint16, and INPUT.SCALING none"):
        Channels(2).read(str(tmp_path / "x.npy"), "")


def test_a_sample_is_spread_over_the_image():
    values = np.arange(100 * 200).reshape(100, 200, 1)
    assert len(sample(values, 10**5)) == 100 * 200
    some = sample(values, 300)
    assert 100 < len(some) <= 300
    low, high = ranges_of(some, (10, 90))[0]
    assert abs(low - 2000) < 1500 and abs(high - 18000) < 1500


def test_keys_that_contradict_each_other_are_named():
    for keys, message in (
        ({"CHANNELS": 0}, "INPUT.CHANNELS must be at least 1"),
        ({"SCALING": "log"}, "INPUT.SCALING must be one of"),
        ({"PERCENTILES": (99.0, 1.0)}, "INPUT.PERCENTILES"),
        ({"CHANNELS": 2, "SCALING": "dataset"}, "INPUT.SCALE_RANGES"),
    ):
        with pytest.raises(ValueError, match=message):
            Channels.of(config(**keys))
    cfg = config(CHANNELS=5)
    cfg.MODEL.PIXEL_MEAN = [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="INPUT.CHANNELS 5 needs as many numbers"):
        Channels.of(cfg)


def test_photographs_are_read_as_always(tmp_path):
    image = np.random.default_rng().integers(0, 256, (H, W, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "x.png")
    found = Channels.of(config()).read(str(tmp_path / "x.png"), "BGR")
    np.testing.assert_array_equal(found, read_image(str(tmp_path / "x.png"), "BGR"))
    np.testing.assert_array_equal(read_picture(str(tmp_path / "x.png")), image)


def test_pictures_show_grey_or_the_first_three_channels(tmp_path):
    bgr = np.random.default_rng().integers(0, 256, (H, W, 3), np.uint8)
    assert picture_of(bgr) is bgr
    image = np.random.default_rng().uniform(0, 255, (H, W, 5)).astype(np.float32)
    np.testing.assert_array_equal(picture_of(image), image[:, :, 2::-1].round())
    one, two = picture_of(image[:, :, :1]), picture_of(image[:, :, :2])
    assert (one == image[:, :, :1].round()).all()
    assert (two[:, :, 0] == 0).all() and (two[:, :, 2] == image[:, :, 0].round()).all()
    tifffile.imwrite(tmp_path / "x.tif", np.moveaxis(image * 100, -1, 0), imagej=True)
    shown = read_picture(str(tmp_path / "x.tif"))
    assert shown.shape == (H, W, 3) and shown.dtype == np.uint8
    assert np.corrcoef(shown[:, :, 0].ravel(), image[:, :, 0].ravel())[0, 1] > 0.99


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resizing_any_image_is_that_of_photographs(channels, dtype):
    image = np.random.default_rng().integers(0, 256, (H, W, channels)).astype(dtype)
    found = applied(T.ResizeTransform(H, W, 13, 71), image)
    assert found.shape == (13, 71, channels) and found.dtype == dtype
    for channel in range(channels):
        grey = Image.fromarray(image[..., channel].astype(np.uint8))
        expected = np.asarray(grey.resize((71, 13), Image.BILINEAR)).astype(float)
        assert np.abs(found[..., channel] - expected).max() <= 1


def test_one_transform_after_another_is_both():
    image = np.random.default_rng().integers(0, 256, (H, W, 5), np.uint8)
    resize, crop = T.ResizeTransform(H, W, 60, 88), T.CropTransform(7, 3, W, H, 88, 60)
    expected = applied(resize, image)[3 : 3 + H, 7 : 7 + W]
    np.testing.assert_array_equal(applied(T.TransformList([resize, crop]), image), expected)


@pytest.mark.parametrize("scaling", ["none", "image"])
@pytest.mark.parametrize("preset", ["strong", "microscopy"])
def test_training_images_are_varied_in_place_alone(tmp_path, scaling, preset):
    """Channels that are equal stay equal, in any size; flips and turns follow the masks."""
    values = np.repeat(numbers(1, np.uint8 if scaling == "none" else np.uint16), 5, axis=2)
    np.save(tmp_path / "x.npy", values)
    cfg = config(CHANNELS=5, SCALING=scaling, AUGMENTATION=preset)
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    cfg.MODEL.MASK_ON = True
    mapper = build_mapper(cfg, True)
    assert isinstance(mapper.augmentation_input(values, {}), ArrayInput)
    names = [type(a).__name__ for a in mapper.augmentations.augs]
    assert not {"RandomBrightness", "RandomContrast", "RandomSaturation"} & set(names)
    record = {"file_name": str(tmp_path / "x.npy"), "height": H, "width": W, "annotations": []}
    for _ in range(3):
        image = mapper(record)["image"].numpy()
        assert image.shape[0] == 5 and (image == image[:1]).all()
        assert image.dtype == (np.uint8 if scaling == "none" else np.float32)


def test_mappers_for_photographs_say_so():
    cfg = config(CHANNELS=2)
    cfg.DATASETS.MAPPER = "YOLACTDatasetMapper"
    with pytest.raises(ValueError, match="YOLACTDatasetMapper reads photographs alone"):
        build_mapper(cfg, True)
