"""TIFF files of several pages: what counts as a page, and files that end before their last one."""

import numpy as np
import pytest
import tifffile

from rdsnet.data.images import ImageFile, read_image


def stack(path, *pages, **options) -> None:
    """A file of pages; each is an array, or an array and more options of tifffile."""
    with tifffile.TiffWriter(path, **options) as file:
        for page in pages:
            array, more = page if isinstance(page, tuple) else (page, {})
            file.write(array, photometric="minisblack", metadata=None, **more)


def flat(level: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.full((height, width), level, np.uint8)


def levels_of(path) -> list[int]:
    with ImageFile(str(path)) as file:
        return [int(file.read("RGB", k)[0, 0, 0]) for k in range(len(file))]


def test_pages_are_pictures_and_not_their_thumbnails_masks_and_sub_images(tmp_path):
    reduced, mask, inside = {"subfiletype": 1}, {"subfiletype": 4}, {"subifds": 1}
    stack(
        tmp_path / "stack.tif",
        (flat(200, 5, 7), reduced),
        flat(10),
        (flat(201, 5, 7), reduced),
        (flat(11), inside),
        (flat(202, 10, 15), reduced),  # the sub-image of 11
        flat(12, 40, 50),
        (np.ones((20, 30), bool), mask),
        flat(13),
    )
    assert levels_of(tmp_path / "stack.tif") == [10, 11, 12, 13]
    with ImageFile(str(tmp_path / "stack.tif")) as file:
        assert file.read("RGB", 2).shape == (40, 50, 3)
        assert file.read("RGB", 0).shape == (20, 30, 3)
    assert read_image(str(tmp_path / "stack.tif"), "RGB").max() == 10


@pytest.mark.parametrize("options", [{}, {"compression": "lzw"}, {"truncate": True}])
@pytest.mark.parametrize("order", "<>")
def test_a_stack_in_one_entry_has_its_pages_all_the_same(options, order, tmp_path):
    levels = np.arange(4, dtype=np.uint16)[:, None, None] * 256 + np.full((4, 9, 11), 60000)
    tifffile.imwrite(
        tmp_path / "stack.tif",
        levels.astype(np.uint16),
        photometric="minisblack",
        byteorder=order,
        **options,
    )
    assert levels_of(tmp_path / "stack.tif") == [60000 // 256 + k for k in range(4)]


@pytest.mark.parametrize(
    ("kind", "axes", "channels"),
    [
        ("ome", "TCYX", 2),
        ("ome", "ZTYX", 1),
        ("ome", "CZYX", 3),
        ("ome", "TYXS", 1),
        ("imagej", "TCYX", 2),
        ("imagej", "TZYX", 1),
        ("imagej", "TYXS", 1),
    ],
)
def test_channels_are_told_from_other_pages(kind, axes, channels, tmp_path):
    shape = (6, 9, 11, 3) if axes == "TYXS" else (3, 2, 9, 11)
    tifffile.imwrite(
        tmp_path / "stack.tif",
        np.zeros(shape, np.uint8),
        photometric="rgb" if axes == "TYXS" else "minisblack",
        metadata={"axes": axes},
        **{kind: True},
    )
    with ImageFile(str(tmp_path / "stack.tif")) as file:
        assert (file.channels, len(file)) == (channels, 6)


def test_a_stack_that_is_cut_off_is_not_taken_for_a_shorter_one(tmp_path):
    stack(tmp_path / "whole.tif", *(flat(k) for k in range(6)))
    content = (tmp_path / "whole.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(content[: len(content) * 2 // 3])
    with ImageFile(str(tmp_path / "cut.tif")) as file:
        left = len(file)
        assert 1 < left < 6
        assert [file.read("RGB", k).max() for k in range(left - 1)] == list(range(left - 1))
        with pytest.raises(ValueError, match=f"cut.tif cannot be read: .* after page {left - 1}"):
            file.check_whole()
    with ImageFile(str(tmp_path / "whole.tif")) as file:
        file.check_whole()
