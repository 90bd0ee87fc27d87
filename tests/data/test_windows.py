"""Windows of large images are the same pixels as those of the image that is read as a whole."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from rdsnet.benchmark.measure import extra_peak_mb
from rdsnet.data.images import read_image
from rdsnet.data.windows import ArrayReader, LargeImage

HEIGHT, WIDTH = 203, 317
WINDOWS = [(0, 0, 317, 203), (0, 0, 1, 1), (60, 64, 130, 128), (299, 190, 317, 203), (5, 0, 6, 203)]


def noise(*shape, most=256, dtype=np.uint8, seed=5):
    return np.random.default_rng(seed).integers(0, most, shape).astype(dtype)


LAYOUTS = {
    "tiles": (noise(HEIGHT, WIDTH, 3), {"tile": (64, 48), "compression": "deflate"}),
    "strips": (noise(HEIGHT, WIDTH, 3), {"rowsperstrip": 7, "compression": "lzw"}),
    "one strip": (noise(HEIGHT, WIDTH, 3), {}),
    "grey": (noise(HEIGHT, WIDTH), {"tile": (32, 32)}),
    "planes": (
        noise(3, HEIGHT, WIDTH),
        {"tile": (64, 64), "planarconfig": "separate", "photometric": "rgb"},
    ),
    "12 of 16 bits": (noise(HEIGHT, WIDTH, most=3000, dtype=np.uint16), {"tile": (64, 64)}),
    "16 bit colours": (
        noise(HEIGHT, WIDTH, 3, most=65536, dtype=np.uint16),
        {"rowsperstrip": 10, "photometric": "rgb"},
    ),
    "transparency": (
        noise(HEIGHT, WIDTH, 4),
        {"tile": (64, 64), "photometric": "rgb", "extrasamples": ["unassalpha"]},
    ),
    "BigTIFF, big-endian": (noise(HEIGHT, WIDTH, 3), {"tile": (64, 64)}),
    "JPEG": (noise(HEIGHT // 8, WIDTH // 8, 3).repeat(8, 0).repeat(8, 1), {"tile": (64, 64)}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_windows_of_a_tiff_are_cut_from_the_image(tmp_path, layout):
    array, options = LAYOUTS[layout]
    path = tmp_path / "large.tif"
    if layout == "JPEG":
        options = {**options, "compression": "jpeg", "photometric": "ycbcr"}
    order = ">" if "big-endian" in layout else "<"
    with tifffile.TiffWriter(path, byteorder=order, bigtiff="BigTIFF" in layout) as file:
        file.write(array, metadata=None, **options)
    whole = read_image(str(path), "BGR")
    with LargeImage(str(path)) as image:
        assert image.shape == whole.shape
        height, width = whole.shape[:2]
        for x1, y1, x2, y2 in WINDOWS:
            x2, y2 = min(x2, width), min(y2, height)
            found = image.read((min(x1, x2 - 1), min(y1, y2 - 1), x2, y2))
            assert np.array_equal(found, whole[min(y1, y2 - 1) : y2, min(x1, x2 - 1) : x2])


def test_of_a_pyramid_and_of_ome_the_full_resolution_is_read(tmp_path):
    array = noise(HEIGHT, WIDTH, 3)
    path = tmp_path / "pyramid.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        options = {"tile": (64, 64), "photometric": "rgb"}
        file.write(array, subifds=1, metadata={"axes": "YXS"}, **options)
        file.write(array[::2, ::2], subfiletype=1, **options)
    with LargeImage(str(path)) as image:
        assert image.shape == array.shape
        assert np.array_equal(image.read((40, 30, 200, 150)), array[30:150, 40:200, ::-1])


def test_of_npy_files_a_window_is_read_and_other_formats_are_decoded(tmp_path):
    array = noise(HEIGHT, WIDTH, 3)
    np.save(tmp_path / "large.npy", array)
    with LargeImage(str(tmp_path / "large.npy")) as image:
        window = image.read((10, 20, 50, 90))
        assert np.array_equal(window, array[20:90, 10:50])
        assert type(window) is np.ndarray and window.base is None  # of the file nothing is kept
    Image.fromarray(array[:, :, ::-1]).save(tmp_path / "large.png")
    with LargeImage(str(tmp_path / "large.png")) as image:
        assert np.array_equal(image.read((10, 20, 50, 90)), array[20:90, 10:50])


def test_memory_depends_on_the_window_and_not_on_the_file(tmp_path):
    size = (6000, 5000)  # 90 MB
    np.lib.format.open_memmap(tmp_path / "large.npy", "w+", np.uint8, (*size, 3))[::9] = 7

    def read_all():
        with LargeImage(str(tmp_path / "large.npy")) as image:
            for y in range(0, size[0], 500):
                assert image.read((0, y, size[1], y + 500)).max() == 7

    extra = extra_peak_mb(read_all, "cpu", repeats=1)
    assert extra is None or extra < 40


def test_a_grey_array_has_three_equal_channels():
    grey = noise(30, 40)
    assert np.array_equal(ArrayReader(grey).read((3, 4, 9, 8)), np.dstack([grey[4:8, 3:9]] * 3))


@pytest.mark.parametrize("array", [noise(9, 9, 4), noise(9), noise(9, 9, 3).astype(np.uint16)])
def test_arrays_of_another_kind_are_refused_with_what_they_are(tmp_path, array):
    np.save(tmp_path / "odd.npy", array)
    with pytest.raises(ValueError, match=r"odd\.npy.*uint8; got \(9.*"):
        LargeImage(str(tmp_path / "odd.npy"))


def test_what_is_no_image_is_refused_with_its_name(tmp_path):
    (tmp_path / "text.tif").write_text("no image")
    with pytest.raises(ValueError, match="text.tif"):
        LargeImage(str(tmp_path / "text.tif"))
    with pytest.raises(FileNotFoundError, match="missing.tif"):
        LargeImage(str(tmp_path / "missing.tif"))
