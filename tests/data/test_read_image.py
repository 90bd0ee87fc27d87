"""read_image: pixels as a person sees them, of every kind of image file."""

import numpy as np
import pytest
from PIL import Image

from rdsnet.data.images import read_image

H, W = 40, 60


def test_16_bit_grey_keeps_its_levels(tmp_path):
    grey = np.linspace(0, 65535, H * W).astype(np.uint16).reshape(H, W)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    image = read_image(str(tmp_path / "deep.png"), "BGR")
    np.testing.assert_array_equal(image, np.repeat((grey // 256).astype(np.uint8)[..., None], 3, 2))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_16_bit_image_is_scaled_from_the_bits_that_it_uses(tmp_path, bits):
    grey = np.linspace(0, 2**bits - 1, H * W).astype(np.uint16).reshape(H, W)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    image = read_image(str(tmp_path / "deep.png"), "RGB")[..., 0]
    np.testing.assert_array_equal(image, grey // 2 ** (bits - 8))
    assert image.min() == 0 and image.max() == 255


def test_transparent_is_white_and_half_transparent_is_mixed(tmp_path):
    rgba = np.zeros((H, W, 4), np.uint8)
    rgba[..., 0] = 200  # red below everything
    rgba[:, 20:, 3], rgba[:, 40:, 3] = 128, 255
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    image = read_image(str(tmp_path / "clear.png"), "RGB")
    assert image[0, 0].tolist() == [255, 255, 255] and image[0, 50].tolist() == [200, 0, 0]
    mixed = 255 + (np.array([200, 0, 0]) - 255) * 128 / 255
    np.testing.assert_allclose(image[0, 30], mixed, atol=1)


def test_transparent_colour_of_a_palette_is_white(tmp_path):
    indices = Image.fromarray(np.repeat([[0, 1]], H, 0).astype(np.uint8).repeat(W // 2, 1), "P")
    indices.putpalette([10, 20, 30, 40, 50, 60])
    indices.save(tmp_path / "palette.png", transparency=0)
    image = read_image(str(tmp_path / "palette.png"), "RGB")
    assert image[0, 0].tolist() == [255, 255, 255] and image[0, -1].tolist() == [40, 50, 60]


def test_floating_point_image_is_refused(tmp_path):
    Image.fromarray(np.zeros((H, W), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="float.tif has floating-point pixels"):
        read_image(str(tmp_path / "float.tif"), "RGB")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK", "LA"])
def test_other_modes_are_converted(tmp_path, mode):
    pixels = np.zeros((H, W, 3), np.uint8)
    pixels[:, 30:] = 255
    Image.fromarray(pixels).convert(mode).save(path := str(tmp_path / "image.tif"))
    np.testing.assert_array_equal(read_image(path, "BGR"), pixels)


def test_channels_follow_the_format(tmp_path):
    pixels = np.full((H, W, 3), (200, 100, 50), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "red.png")
    assert read_image(str(tmp_path / "red.png"), "BGR")[0, 0].tolist() == [50, 100, 200]
    assert read_image(str(tmp_path / "red.png"), "RGB")[0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_exif_rotation_is_applied(tmp_path, dtype):
    pixels = np.zeros((H, W), dtype)
    pixels[0, 0] = np.iinfo(dtype).max
    exif = Image.Exif()
    exif[274] = 6  # to be shown rotated by 90 degrees, clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    image = read_image(str(tmp_path / "turned.png"), "RGB")
    assert image.shape == (W, H, 3)
    assert np.argwhere(image[..., 0] > 0).tolist() == [[0, H - 1]]


def test_image_too_large_for_pillow_is_named_with_the_remedy(tmp_path, monkeypatch):
    path = str(tmp_path / "image.png")
    Image.fromarray(np.zeros((H, W, 3), np.uint8)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="image.png is refused.*INPUT.MAX_PIXELS"):
        read_image(path, "RGB")


def test_grey_nuclei_images_are_read_as_three_equal_channels(real_data):
    path = next(
        path
        for path in sorted((real_data / "nuclei" / "images").iterdir())
        if Image.open(path).mode == "L"
    )
    image = read_image(str(path), "BGR")
    expected = np.asarray(Image.open(path))
    assert image.shape == (*expected.shape, 3)
    for channel in range(3):
        np.testing.assert_array_equal(image[..., channel], expected)
