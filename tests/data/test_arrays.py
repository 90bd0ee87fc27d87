"""Files of any channels and depth, read back as the numbers that were written."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from rdsnet.data.arrays import ArrayFile, Kind, kind_of
from rdsnet.data.images import limit_pixels

H, W = 13, 21


def numbers(channels, dtype=np.uint16):
    """(H, W, C), fresh ones."""
    rng = np.random.default_rng()
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 1e4, (H, W, channels)).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, (H, W, channels), dtype, endpoint=True)


def read(path, channels=None, page=0):
    with ArrayFile(str(path), channels) as file:
        return file.read(page)


# How programs lay out (H, W, C): the array that is written, and tifffile's options for it.
TIFFS = {
    "pages without a word": ("CYX", {"metadata": None}),
    "array": ("CYX", {}),
    "ImageJ": ("CYX", {"imagej": True, "metadata": {"axes": "CYX"}}),
    "OME": ("CYX", {"ome": True, "metadata": {"axes": "CYX"}}),
    "OME, other order": (
        "CZYX",
        {"ome": True, "metadata": {"axes": "CZYX"}, "compression": "zlib"},
    ),
    "rows": ("YXC", {"metadata": {"axes": "YXC"}}),
    "samples": ("YXC", {"photometric": "minisblack", "planarconfig": "contig"}),
    "planes": ("CYX", {"photometric": "minisblack", "planarconfig": "separate"}),
    "tiles": (
        "YXC",
        {"photometric": "minisblack", "planarconfig": "contig", "tile": (16, 16)},
    ),
    "packed": ("CYX", {"compression": "zlib", "predictor": True}),
    "big-endian": ("CYX", {"byteorder": ">"}),
    "BigTIFF": ("CYX", {"bigtiff": True}),
}


def write_tiff(path, values, layout, options):
    axes = {"CYX": (2, 0, 1), "YXC": (0, 1, 2), "CZYX": (2, 0, 1)}[layout]
    values = values.transpose(axes)
    tifffile.imwrite(path, values[:, None] if layout == "CZYX" else values, **options)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("layout", TIFFS)
@pytest.mark.parametrize("channels", [2, 5, 8])
def test_tiff_in_any_layout(tmp_path, layout, channels, dtype):
    values = numbers(channels, dtype)
    if dtype == np.float32 and "predictor" in TIFFS[layout][1]:
        pytest.skip("a predictor is for whole numbers")
    write_tiff(tmp_path / "x.tif", values, *TIFFS[layout])
    found = read(tmp_path / "x.tif", channels)
    np.testing.assert_array_equal(found, values)
    assert found.dtype == dtype
    expected = 1 if layout == "pages without a word" else channels
    assert kind_of(str(tmp_path / "x.tif")).channels == expected


def test_images_of_a_stack_are_pages(tmp_path):
    stack = np.stack([[numbers(3) for _ in range(2)] for _ in range(4)])  # T, Z, Y, X, C
    options = {"imagej": True, "metadata": {"axes": "TZCYX"}}
    tifffile.imwrite(tmp_path / "x.tif", np.moveaxis(stack, -1, 2), **options)
    with ArrayFile(str(tmp_path / "x.tif"), 3) as file:
        assert len(file) == 8 and file.size == (H, W)
        for page in np.random.default_rng().permutation(8):
            np.testing.assert_array_equal(file.read(page), stack.reshape(8, H, W, 3)[page])
        with pytest.raises(ValueError, match="no page 8"):
            file.read(8)


@pytest.mark.parametrize("axes", ["YXC", "CYX"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.int32])
def test_numpy(tmp_path, axes, dtype):
    values = numbers(5, dtype)
    np.save(tmp_path / "x.npy", values.transpose((0, 1, 2) if axes == "YXC" else (2, 0, 1)))
    np.testing.assert_array_equal(read(tmp_path / "x.npy", 5), values)
    assert kind_of(str(tmp_path / "x.npy")) == Kind(
        5, dtype != np.uint8, False, np.dtype(dtype).kind != "f"
    )


def test_numpy_of_one_channel_and_of_no_image(tmp_path):
    values = numbers(1)
    np.save(tmp_path / "x.npy", values[:, :, 0])
    np.testing.assert_array_equal(read(tmp_path / "x.npy", 1), values)
    np.save(tmp_path / "y.npy", np.zeros((H, W, 9)))
    with pytest.raises(ValueError, match=r"y.npy is an array \(13, 21, 9\)"):
        read(tmp_path / "y.npy")
    assert read(tmp_path / "y.npy", 9).shape == (H, W, 9)
    np.save(tmp_path / "z.npy", np.array([{"a": 1}], object))
    with pytest.raises(ValueError, match="z.npy"):  # nothing in it is run
        read(tmp_path / "z.npy")


def test_numpy_is_not_taken_where_formats_are_named(tmp_path):
    content = io.BytesIO()
    np.save(content, np.zeros((H, W)))
    content.seek(0)
    with pytest.raises(ValueError, match="cannot be read"):
        ArrayFile("x.npy", 1, content, ["PNG"])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_png(tmp_path, dtype):
    values = numbers(1, dtype)
    cv2.imwrite(str(tmp_path / "x.png"), values)
    found = read(tmp_path / "x.png", 1)
    np.testing.assert_array_equal(found, values)
    assert found.dtype == dtype
    assert kind_of(str(tmp_path / "x.png")) == Kind(1, dtype == np.uint16, dtype == np.uint8)


def test_deep_colours_of_png(tmp_path):
    values = numbers(3)
    cv2.imwrite(str(tmp_path / "x.png"), values[:, :, ::-1])
    np.testing.assert_array_equal(read(tmp_path / "x.png", 3), values)
    assert kind_of(str(tmp_path / "x.png")).is_photograph  # as always


def test_palettes_and_turned_images_are_refused_as_arrays(tmp_path):
    image = Image.fromarray(numbers(3, np.uint8))
    image.convert("P").save(tmp_path / "x.tif")
    tifffile.imwrite(tmp_path / "y.tif", numbers(1)[:, :, 0], extratags=[(274, 3, 1, 6)])
    for name, reason in ("x.tif", "palette"), ("y.tif", "turned"):
        with pytest.raises(ValueError, match=f"{name} .*{reason}"):
            read(tmp_path / name, 1)


def test_float_of_pillow(tmp_path):
    values = numbers(1, np.float32)
    Image.fromarray(values[:, :, 0]).save(tmp_path / "x.tif")
    np.testing.assert_array_equal(read(tmp_path / "x.tif", 1), values)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "1"])
def test_photographs_are_known_as_such(tmp_path, mode):
    Image.fromarray(numbers(3, np.uint8)).convert(mode).save(tmp_path / "x.tif")
    Image.fromarray(numbers(3, np.uint8)).convert("RGB").save(tmp_path / "x.jpg")
    assert kind_of(str(tmp_path / "x.tif")).is_photograph
    assert kind_of(str(tmp_path / "x.jpg")) == Kind(3, False, True)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_equal_colours_are_one_channel(tmp_path, mode):
    grey = numbers(1, np.uint8)
    Image.fromarray(grey[:, :, 0]).convert(mode).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read(tmp_path / "x.png", 1), grey)
    colours = Image.fromarray(numbers(3, np.uint8)).convert(mode)
    colours.save(tmp_path / "y.png")
    message = r"y.png has 3 channels, and the model expects 1 \(INPUT.CHANNELS\)"
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "y.png", 1)


def test_transparency_that_hides_something_is_refused(tmp_path):
    values = numbers(4, np.uint8)
    Image.fromarray(values, "RGBA").save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="x.png has transparency"):
        read(tmp_path / "x.png", 3)
    np.testing.assert_array_equal(read(tmp_path / "x.png", 4), values)


@pytest.mark.parametrize(("written", "wanted"), [(5, 3), (5, 4), (3, 5), (2, 1)])
def test_another_number_of_channels_is_said(tmp_path, written, wanted):
    write_tiff(tmp_path / "x.tif", numbers(written), *TIFFS["ImageJ"])
    message = f"x.tif has {written} channels, and the model expects {wanted}"
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "x.tif", wanted)


@pytest.mark.parametrize("layout", ["ImageJ", "packed", "samples"])
def test_a_file_that_is_cut_off_is_said(tmp_path, layout):
    values = numbers(5)
    write_tiff(tmp_path / "x.tif", values, *TIFFS[layout])
    content = (tmp_path / "x.tif").read_bytes()
    for share in (0.3, 0.6, 0.95):
        (tmp_path / "x.tif").write_bytes(content[: int(share * len(content))])
        try:  # entries of pages may stand behind all numbers
            found = read(tmp_path / "x.tif", 5)
        except ValueError as error:
            assert "x.tif" in str(error)
        else:
            assert share > 0.9
            np.testing.assert_array_equal(found, values)


def test_too_many_pixels_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((H, W)))
    limit_pixels(100)
    with pytest.raises(ValueError, match=r"x.npy is refused.*INPUT.MAX_PIXELS"):
        read(tmp_path / "x.npy", 1)


def test_no_file_and_no_image(tmp_path):
    with pytest.raises(FileNotFoundError, match="x.npy"):
        read(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        read(tmp_path / "x.npy")
    np.save(tmp_path / "c.npy", np.zeros((H, W), complex))
    with pytest.raises(ValueError, match="complex"):
        read(tmp_path / "c.npy")
