"""Images as they should not be: each is read as (H, W, 3) uint8 or refused with a message."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from helpers.tiff_files import written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rdsnet.data.images import limit_pixels, read_image

RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8))
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


def encoded(format: str, image: Image.Image = PHOTO, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
FILES = {name: encoded(name) for name in FORMATS}
TILES = {"tile": (16, 16), "photometric": "rgb"}
FILES["TIFF tiles"] = written(np.asarray(PHOTO), compression="lzw", predictor=2, **TILES)
FILES["TIFF JPEG"] = written(np.asarray(PHOTO), compression="jpeg", **TILES)
FILES["TIFF deflate"] = written(np.asarray(PHOTO)[..., 0], compression="deflate", rowsperstrip=4)
FILES["PNG 16 bit"] = imagecodecs.png_encode(np.asarray(PHOTO).astype(np.uint16) * 257)
FILES["JPEG 2000"] = imagecodecs.jpeg2k_encode(np.asarray(PHOTO).astype(np.uint16) * 257, level=0)


def is_read_or_refused(path) -> bool:
    """As (H, W, 3) uint8, or with a message that names the file. Other errors get through."""
    try:
        image = read_image(str(path), "BGR")
    except ValueError as error:
        return path.name in str(error)
    return image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        *(("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "PNG")),
        *(("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG"), ("LAB", "TIFF"), ("I", "TIFF")),
    ],
)
def test_every_mode_is_read(tmp_path, mode, format):
    path = tmp_path / "image"
    path.write_bytes(encoded(format, PHOTO.convert("L" if mode == "I" else "RGB").convert(mode)))
    assert read_image(str(path), "BGR").shape == (30, 40, 3)


def test_16_bit_keeps_its_grey_levels(tmp_path):
    path = tmp_path / "deep.png"
    levels = np.linspace(0, 65535, 1200).reshape(30, 40).astype(np.uint16)
    Image.fromarray(levels).save(path)
    assert (read_image(str(path), "RGB")[..., 0] == levels // 256).all()


def test_an_animated_gif_is_its_first_frame(tmp_path):
    path = tmp_path / "moving.gif"
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "green")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert (read_image(str(path), "RGB") == [255, 0, 0]).all()


@pytest.mark.parametrize("orientation", range(0, 11))
def test_exif_rotations_are_applied(tmp_path, orientation):
    picture = np.zeros((30, 40, 3), np.uint8)
    picture[:8, :8] = 255  # the corner that must come out on the top left
    turned = Image.fromarray(picture)
    # Orientation o is undone by this operation, so its inverse is what a camera has done.
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    if orientation in inverse:
        turned = turned.transpose(inverse[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    turned.save(path, exif=exif, quality=95)
    image = read_image(str(path), "RGB")
    assert image.shape == (30, 40, 3)
    assert image[:6, :6].min() > image[12:, 12:].max()  # JPEG blurs what is between


@pytest.mark.parametrize("size", [(1, 1), (20000, 50), (50, 20000), (1, 3000)])
def test_extreme_shapes_are_read(tmp_path, size):
    path = tmp_path / "long.png"
    Image.new("RGB", size, "red").save(path)
    assert read_image(str(path), "BGR").shape == (size[1], size[0], 3)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to have so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_size(100_000, 100_000))
    with pytest.raises(ValueError, match=r"bomb.png is refused.*INPUT.MAX_PIXELS"):
        read_image(str(path), "RGB")


def test_the_limit_of_pixels_is_configurable(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back afterwards
    path = tmp_path / "large.png"
    Image.new("L", (40, 30)).save(path)
    limit_pixels(1200)
    with pytest.warns(Image.DecompressionBombWarning):
        assert read_image(str(path), "RGB").shape == (30, 40, 3)
    limit_pixels(1000)
    with pytest.raises(ValueError, match="is refused"):
        read_image(str(path), "RGB")
    with pytest.raises(ValueError, match="INPUT.MAX_PIXELS must be at least 1"):
        limit_pixels(0)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"GIF89a", b"<svg/>", b"\0" * 100])
def test_no_images_are_refused(tmp_path, content):
    path = tmp_path / "none.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="none.jpg cannot be read"):
        read_image(str(path), "RGB")


def damaged(name: str, cut: float, changes: list[tuple[float, int]]) -> bytes:
    """A file cut off somewhere, with some bytes changed."""
    content = bytearray(FILES[name][: max(1, int(cut * len(FILES[name])))])
    for place, byte in changes:
        content[int(place * (len(content) - 1))] = byte
    return bytes(content)


damages = st.builds(
    damaged,
    st.sampled_from(sorted(FILES)),
    st.one_of(st.just(1.0), st.floats(0, 1)),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, derandomize=True, **QUIET)
@given(content=damages)
def test_a_damaged_image_is_read_or_refused(content, folder):
    path = folder / "damaged"
    path.write_bytes(content)
    assert is_read_or_refused(path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=4000, derandomize=True, **QUIET)
@given(content=damages)
def test_thousands_of_damaged_images_are_read_or_refused(content, folder):
    path = folder / "damaged"
    path.write_bytes(content)
    assert is_read_or_refused(path)
