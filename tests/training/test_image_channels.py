"""What ``rdsnet train --data`` decides about channels and depth, by the files."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import tifffile

from rdsnet import get_cfg
from rdsnet.data.channels import Channels
from rdsnet.data.image_files import channel_findings, page_findings
from rdsnet.training.image_channels import channel_settings
from rdsnet.training.own_data import prepare
from rdsnet.training.settings import Wishes

SIZE = 40, 50


def write(path, channels=1, dtype=np.uint16, seed=None):
    values = np.random.default_rng(seed).integers(100, 200, (*SIZE, channels)).astype(dtype)
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix in (".png", ".jpg"):
        cv2.imwrite(str(path), values)
    else:
        tifffile.imwrite(path, np.moveaxis(values, -1, 0), imagej=True, metadata={"axes": "CYX"})
    return str(path)


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]
    return cfg


def test_photographs_stay_photographs(cfg, tmp_path):
    files = [
        write(tmp_path / "grey.png", 1, np.uint8),
        write(tmp_path / "colours.jpg", 3, np.uint8),
        write(tmp_path / "deep.png", 3),
        write(tmp_path / "deep_grey.png", 1),  # beside photographs
        str(tmp_path / "missing.png"),
    ]
    assert channel_settings(cfg, files) == ({}, "")
    assert channel_settings(cfg, files, asked=3) == ({}, "")


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_deep_files_are_scaled_by_percentiles_of_all(cfg, tmp_path, channels, dtype):
    files = [write(tmp_path / f"{n}.tif", channels, dtype) for n in range(3)]
    options, text = channel_settings(cfg, files)
    assert options["INPUT.CHANNELS"] == channels and options["INPUT.SCALING"] == "dataset"
    pixels = np.concatenate([tifffile.imread(f).reshape(channels, -1) for f in files], axis=1)
    expected = np.percentile(pixels, (0.1, 99.9), axis=1).T
    np.testing.assert_allclose(options["INPUT.SCALE_RANGES"], expected, rtol=1e-5)
    assert options.get("MODEL.PIXEL_MEAN", cfg.MODEL.PIXEL_MEAN) == [110.0] * channels
    assert text.startswith(f"{channels} (as all files have), of more than 8 bits")
    for key, value in options.items():
        cfg.merge_from_list([key, str(value)])
    assert Channels.of(cfg).count == channels


def test_several_channels_of_8_bits_are_as_they_are(cfg, tmp_path):
    files = [write(tmp_path / f"{n}.tif", 5, np.uint8) for n in range(2)]
    options, text = channel_settings(cfg, files)
    assert options["INPUT.SCALING"] == "none" and "INPUT.SCALE_RANGES" not in options
    assert text == "5 (as all files have), of 8 bits, as they are"


def test_one_channel_of_photographs_if_asked(cfg, tmp_path):
    files = [write(tmp_path / "grey.png", 1, np.uint8)]
    options, _ = channel_settings(cfg, files, asked=1)
    assert options["INPUT.CHANNELS"] == 1 and options["INPUT.SCALING"] == "none"


def test_files_that_differ_are_named(cfg, tmp_path):
    files = [write(tmp_path / f"{n}.tif", n) for n in (2, 4)]
    files.append(write(tmp_path / "more.tif", 4))
    with pytest.raises(ValueError, match=r"2: 1 file, such as .*2.tif; 4: 2 files, .*4.tif"):
        channel_settings(cfg, files)
    with pytest.raises(ValueError, match=r"2.tif has 2 channels, and the model is to have 4"):
        channel_settings(cfg, files, asked=4)
    with pytest.raises(ValueError, match=r"2.tif has 2 channels, and the model is to have 4"):
        channel_settings(cfg, files[1:], files[:1])


def test_floating_point_among_photographs_is_named(cfg, tmp_path):
    files = [write(tmp_path / "a.jpg", 3, np.uint8), write(tmp_path / "b.tif", 1, np.float32)]
    with pytest.raises(ValueError, match=r"1: 1 file, such as .*b.tif; 3: 1 file, .*a.jpg"):
        channel_settings(cfg, files)


def test_the_check_names_images_of_other_channels(tmp_path):
    counts = {"a.tif": 5, "b.tif": 2, "c.tif": 5, "d.jpg": 3}
    for name, count in counts.items():
        write(tmp_path / name, count, np.uint8)
    images = [{"id": name, "file_name": name} for name in counts]
    found = channel_findings({"images": images}, tmp_path)
    assert [f.message for f in found] == [
        "'b.tif' has 2 channels, most have 5",
        "'d.jpg' has 3 channels, most have 5",
    ]
    assert not channel_findings({"images": images[3:]}, tmp_path)
    assert not page_findings({"images": images}, tmp_path)  # channels are no pages


def test_the_command_says_and_sets_it(tmp_path):
    images = []
    for n in range(3):
        write(tmp_path / f"{n}.tif", 5)
        images.append({"id": n, "file_name": f"{n}.tif", "height": SIZE[0], "width": SIZE[1]})
    box = [5, 5, 20, 20]
    polygon = [[5, 5, 25, 5, 25, 25, 5, 25]]
    annotations = [
        {"id": n + 1, "image_id": n, "category_id": 1, "bbox": box, "area": 400, "iscrowd": 0}
        | {"segmentation": polygon}
        for n in range(3)
    ]
    categories = [{"id": 1, "name": "cell"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "a.json").write_text(json.dumps(content))
    arguments = {"config": "small", "output": str(tmp_path / "out")}
    data = str(tmp_path / "a.json"), str(tmp_path)
    _, opts, settings = prepare(data, None, wishes=Wishes(), **arguments)
    assert settings.options["INPUT.CHANNELS"] == 5
    assert len(settings.options["MODEL.PIXEL_MEAN"]) == 5
    assert dict(settings.notes)["Channels"].startswith("5 (as all files have)")
    assert opts[opts.index("INPUT.CHANNELS") + 1] == "5"
    with pytest.raises(ValueError, match=r"0.tif has 5 channels, and the model is to have 2"):
        prepare(data, None, wishes=Wishes(channels=2), **arguments)
    by_image = ["INPUT.SCALING", "image"]
    _, _, settings = prepare(data, None, wishes=Wishes(), opts=by_image, **arguments)
    assert settings.options["INPUT.SCALING"] == "image"
    assert "INPUT.SCALE_RANGES" not in settings.options
