"""Slides that OpenSlide reads, as a Hamamatsu VMS that is made up, and as a stand-in."""

from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image

from rdsnet.data.images import read_image
from rdsnet.data.slides import SlideReader
from rdsnet.data.windows import LargeImage
from rdsnet.prediction.sources import find_sources

WIDTH, HEIGHT = 320, 208  # whole cells of the JPEG

VMS = """[Virtual Microscope Specimen]
NoLayers=1
NoJpegColumns=1
NoJpegRows=1
ImageFile=slide.jpg
MapFile=map.jpg
MacroImage=map.jpg
OptimisationFile=slide.opt
SourceLens=40
"""


@pytest.fixture
def openslide():
    return pytest.importorskip(
        "openslide", reason="needs openslide-python and openslide-bin", exc_type=ImportError
    )


@pytest.fixture
def slide(openslide, tmp_path):
    """A slide, and its pixels as Pillow decodes them, BGR."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    colours = np.stack([x * 255 // WIDTH, y * 255 // HEIGHT, (x // 32 + y // 16) % 2 * 200], 2)
    picture = Image.fromarray(colours.astype(np.uint8))
    folder = tmp_path / "scans"
    folder.mkdir()
    picture.save(folder / "slide.jpg", quality=95, restart_marker_rows=1, subsampling=0)
    small = picture.resize((WIDTH // 4, HEIGHT // 4))
    small.save(folder / "map.jpg", restart_marker_rows=1)
    (folder / "slide.opt").touch()
    path = folder / "slide.vms"
    path.write_text(VMS)
    return path, read_image(str(folder / "slide.jpg"), "BGR").astype(int)


@pytest.mark.parametrize("window", [(0, 0, WIDTH, HEIGHT), (31, 40, 250, 97), (319, 207, 320, 208)])
def test_windows_of_a_slide_are_its_pixels(slide, window):
    path, pixels = slide
    with LargeImage(str(path)) as image:
        assert image.shape == (HEIGHT, WIDTH, 3)
        x1, y1, x2, y2 = window
        read = image.read(window)
        assert read.dtype == np.uint8
        assert abs(read - pixels[y1:y2, x1:x2]).max() <= 2  # two decoders of JPEG
        with image.reopened() as again:
            assert np.array_equal(again.read(window), read)


def test_what_was_not_scanned_is_white():
    regions = {}

    def read_region(corner, level, size):
        regions["asked"] = corner, level, size
        pixels = np.zeros((size[1], size[0], 4), np.uint8)
        pixels[:, 0] = 10, 20, 30, 255
        return Image.fromarray(pixels, "RGBA")

    reader = SlideReader(SimpleNamespace(dimensions=(900, 700), read_region=read_region))
    assert reader.shape == (700, 900, 3)
    pixels = reader.read((5, 6, 8, 10))
    assert regions["asked"] == ((5, 6), 0, (3, 4))
    assert (pixels[:, 0] == (30, 20, 10)).all() and (pixels[:, 1:] == 255).all()


def test_a_damaged_slide_is_refused_with_its_name(slide):
    path, _ = slide
    (path.parent / "slide.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"slide\.vms cannot be read: .*damaged"):
        LargeImage(str(path))


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError(name="openslide"), ImportError("no library"), OSError("too old")]
)
def test_without_openslide_slides_alone_are_refused_and_the_remedy_said(
    tmp_path, monkeypatch, error
):
    def fails(name):
        raise error

    monkeypatch.setattr("rdsnet.data.slides.import_module", fails)
    (tmp_path / "scan.mrxs").write_text("a slide")
    words = rf"scan\.mrxs.*pip install openslide-python openslide-bin.*{error}"
    with pytest.raises(ValueError, match=words):
        LargeImage(str(tmp_path / "scan.mrxs"))
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    with LargeImage(str(tmp_path / "photo.png")) as image:
        assert image.shape == (30, 40, 3)


def test_a_tiff_that_cannot_be_read_in_parts_is_left_to_openslide(openslide, tmp_path, monkeypatch):
    monkeypatch.setattr("rdsnet.data.windows._LARGEST_SEGMENT", 100)
    pixels = np.random.default_rng(1).integers(0, 256, (96, 128, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "scan.tif", pixels, tile=(32, 32), photometric="rgb")
    with LargeImage(str(tmp_path / "scan.tif")) as image:
        assert np.array_equal(image.read((10, 20, 90, 80)), pixels[20:80, 10:90, ::-1])
    tifffile.imwrite(tmp_path / "strips.tif", pixels, photometric="rgb")  # no slide
    with pytest.raises(ValueError, match=r"strips\.tif is compressed as one piece.*in tiles"):
        LargeImage(str(tmp_path / "strips.tif"))


def test_a_name_alone_makes_no_slide(openslide, tmp_path):
    path = tmp_path / "scan.mrxs"
    Image.new("RGB", (40, 30)).save(path, "JPEG")
    with pytest.raises(ValueError, match=r"scan\.mrxs is called like a slide.*4\..* no such"):
        LargeImage(str(path))


@pytest.mark.parametrize(("name", "format"), [("a.mrxs", "JPEG"), ("a.scn", "TIFF"), ("a.dcm", "")])
def test_what_lies_in_the_place_of_a_slide_is_not_taken_for_it(tmp_path, name, format):
    """The file of a MIRAX slide is a JPEG, with the slide in a folder beside it."""
    path = tmp_path / name
    path.write_bytes(bytes(200))
    if format:
        Image.new("RGB", (40, 30)).save(path, format)
    with pytest.raises(ValueError, match=rf"{name} is called like a slide.*predict --tile auto"):
        read_image(str(path), "BGR")


def test_a_picture_may_be_called_like_other_slides(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.czi", "PNG")
    assert read_image(str(tmp_path / "photo.czi"), "BGR").shape == (30, 40, 3)


def test_of_a_folder_the_files_that_are_slides_are_taken(tmp_path):
    """Where several files are one slide, it is named; the folder does not give its parts twice."""
    for name in ("scan.mrxs", "scan.czi", "level.dcm", "scan.vms"):
        (tmp_path / name).write_bytes(bytes(200))
    found = find_sources([str(tmp_path)])
    assert [source.path.name for source in found.sources] == ["scan.czi", "scan.mrxs"]
    assert found.left_out == {".dcm": 1, ".vms": 1}
    assert find_sources([str(tmp_path / "level.dcm")]).sources[0].path.name == "level.dcm"
