"""read_image: pixels as a person sees them, of every kind of image file."""

import os
import struct
import zlib
from types import SimpleNamespace

import cv2
import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageSequence, features

from rdsnet.data.image_formats import pillow_formats
from rdsnet.data.images import ImageFile, read_image

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


NOISE = np.random.default_rng(5).integers(0, 65536, (H, W, 4)).astype(np.uint16)


def png16(colour_type: int, samples: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16 bits, written by hand, with more chunks before its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    body = b"".join(chunk(*more) for more in chunks)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + pixels + chunk(b"IEND", b"")


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


def read_bytes(tmp_path, content: bytes) -> np.ndarray:
    (tmp_path / "image").write_bytes(content)
    return read_image(str(tmp_path / "image"), "RGB")


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("format", ["png", "ppm", "jp2"])
def test_colours_of_16_bits_are_scaled_as_grey_is(tmp_path, format, bits):
    samples = NOISE[..., :3] >> (16 - bits)
    samples[0, 0, 1] = 2**bits - 1
    encode = {
        "png": lambda: png16(2, samples),
        "ppm": lambda: b"P6 %d %d 65535\n" % (W, H) + samples.astype(">u2").tobytes(),
        "jp2": lambda: imagecodecs.jpeg2k_encode(samples, level=0, reversible=True),
    }
    image = read_bytes(tmp_path, encode[format]())
    np.testing.assert_array_equal(image, samples // 2 ** (bits - 8))


@pytest.mark.parametrize("bits", [9, 12, 16])
def test_jpeg_2000_is_on_the_scale_of_its_levels(tmp_path, bits):
    samples = NOISE[..., :3] >> (16 - bits)
    depth = next(n for n in (10, 12, 14, 16) if n >= bits)
    options = {"level": 0, "reversible": True, "bitspersample": bits}
    image = read_bytes(tmp_path, imagecodecs.jpeg2k_encode(samples, **options))
    np.testing.assert_array_equal(image, samples // 2 ** (depth - 8))


@pytest.mark.parametrize("white", [300, 1000, 4095])
def test_white_of_a_pnm_is_the_number_that_it_names(tmp_path, white):
    samples = NOISE[..., :3] % (white + 1)
    samples[0, 0] = white
    image = read_bytes(tmp_path, b"P6 %d %d %d\n" % (W, H, white) + samples.astype(">u2").tobytes())
    np.testing.assert_allclose(image, samples * (255 / white), atol=1)
    grey = b"P5 %d %d %d\n" % (W, H, white) + samples[..., 0].astype(">u2").tobytes()
    np.testing.assert_array_equal(read_bytes(tmp_path, grey)[..., 0], image[..., 0])


def test_transparency_of_16_bits_is_laid_onto_white(tmp_path):
    high = NOISE // 256
    colours = read_bytes(tmp_path, png16(6, NOISE))
    np.testing.assert_allclose(colours, on_white(high[..., :3], high[..., 3]), atol=1)
    grey = read_bytes(tmp_path, png16(4, NOISE[..., :2]))
    expected = on_white(np.repeat(high[..., :1], 3, 2), high[..., 1])
    np.testing.assert_allclose(grey, expected, atol=1)


def test_the_transparent_colour_of_a_16_bit_png_is_white(tmp_path):
    samples = NOISE[..., :3].copy()
    samples[5:9, 5:9] = samples[0, 0]
    expected = (samples // 256).astype(np.uint8)
    expected[(samples == samples[0, 0]).all(-1)] = 255
    colour = struct.pack(">HHH", *samples[0, 0].tolist())
    image = read_bytes(tmp_path, png16(2, samples, (b"tRNS", colour)))
    np.testing.assert_array_equal(image, expected)
    expected = (samples[..., 0] // 256).astype(np.uint8)
    expected[samples[..., 0] == samples[0, 0, 0]] = 255
    grey = png16(0, samples[..., :1], (b"tRNS", colour[:2]))
    np.testing.assert_array_equal(read_bytes(tmp_path, grey)[..., 0], expected)


def test_negative_and_endless_levels_are_refused(tmp_path):
    Image.fromarray(np.full((H, W), -7, np.int32)).save(tmp_path / "below.im")
    with pytest.raises(ValueError, match="below.im has negative levels .*-7.*Convert"):
        read_image(str(tmp_path / "below.im"), "RGB")


LOSSLESS = {
    "webp": lambda a: imagecodecs.webp_encode(a, lossless=True),
    "avif": lambda a: imagecodecs.avif_encode(a, level=100),
    "jp2": lambda a: imagecodecs.jpeg2k_encode(a, level=0, reversible=True),
    "qoi": imagecodecs.qoi_encode,
    "bmp": lambda a: cv2.imencode(".bmp", a[..., ::-1])[1].tobytes(),
    "png": lambda a: cv2.imencode(".png", a[..., ::-1])[1].tobytes(),
    "ppm": lambda a: cv2.imencode(".ppm", a[..., ::-1])[1].tobytes(),
    "ras": lambda a: cv2.imencode(".ras", a[..., ::-1])[1].tobytes(),
    "tif": lambda a: cv2.imencode(".tif", a[..., ::-1])[1].tobytes(),
}


@pytest.mark.parametrize("format", LOSSLESS)
def test_what_other_libraries_write_is_read_to_the_last_bit(tmp_path, format):
    if format == "avif" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    colours = np.ascontiguousarray(NOISE[..., :3] // 256).astype(np.uint8)
    np.testing.assert_array_equal(read_bytes(tmp_path, LOSSLESS[format](colours)), colours)


@pytest.mark.parametrize("ending", [".jpg", ".webp", ".avif", ".jp2"])
def test_lossy_files_are_read_as_opencv_reads_them(tmp_path, ending):
    y, x = np.mgrid[:H, :W]
    waves = [128 + 90 * np.sin(x / (9 + k)) * np.cos(y / 11) for k in range(3)]
    encoded = cv2.imencode(ending, np.stack(waves, -1).astype(np.uint8))[1].tobytes()
    other = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_allclose(read_bytes(tmp_path, encoded), other, atol=3)


LOSSY = ("AVIF", "JPEG")
SCALED = ("ICNS",)  # holds the picture in other sizes alone
WRITTEN = sorted(set(pillow_formats()) & set(Image.SAVE) - set(SCALED))


@pytest.mark.parametrize("format", WRITTEN)
def test_every_format_that_pillow_writes_is_read_as_it_was_written(tmp_path, format):
    """In colours, or in black and white where there are no colours."""
    side = 64  # icons are square
    y, x = np.mgrid[:side, :side]
    smooth = np.stack([x * 3, y * 3, 255 - x - y], -1).astype(np.uint8)
    image = Image.fromarray(smooth)
    options = {"lossless": True} if format == "WEBP" else {}
    if format == "GIF":
        image = image.quantize(64)
    try:
        image.save(tmp_path / "image", format, **options)
    except (OSError, ValueError):
        image = image.convert("P" if format == "BLP" else "1")
        image.save(tmp_path / "image", format, **options)
    if format == "SPIDER":
        with pytest.raises(ValueError, match="has floating-point pixels"):
            read_image(str(tmp_path / "image"), "RGB")
        return
    read = read_image(str(tmp_path / "image"), "RGB")
    expected = np.asarray(image.convert("RGB"))
    if format not in LOSSY:
        np.testing.assert_array_equal(read, expected)
        return
    # How much is lost is the encoder's choice: nothing turned, mirrored or with swapped channels.
    others = [expected[..., ::-1], expected[::-1], expected[:, ::-1], expected.transpose(1, 0, 2)]
    distances = [np.abs(read.astype(int) - other).mean() for other in (expected, *others)]
    assert distances[0] < min(distances[1:])


def colours(number):
    """So many flat pictures of different colours."""
    return [Image.new("RGB", (W, H), (40 * k, 255 - 40 * k, 90)) for k in range(number)]


@pytest.mark.parametrize("format", ["gif", "png", "webp", "tiff"])
def test_every_page_of_a_file_is_read(tmp_path, format):
    path = str(tmp_path / "moving")
    first, *others = colours(5)
    options = {"lossless": True} if format == "webp" else {}
    first.save(path, format, save_all=True, append_images=others, **options)
    with ImageFile(path) as file:
        assert len(file) == 5 and not file.has_side_images
        for k in (3, 0, 4, 1, 2):  # in any order
            expected = np.asarray(colours(5)[k])
            np.testing.assert_allclose(file.read("RGB", k), expected, atol=1)
    with Image.open(path) as other:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(other)]
    for k, frame in enumerate(frames):
        np.testing.assert_array_equal(read_image(path, "RGB", k), frame)


def test_the_pictures_of_a_stereo_photograph_are_sides_of_it(tmp_path):
    path = str(tmp_path / "photo.jpg")
    first, *others = colours(2)
    first.save(path, "MPO", save_all=True, append_images=others)
    with ImageFile(path) as file:
        assert len(file) == 2 and file.has_side_images
        np.testing.assert_allclose(file.read("RGB", 1), np.asarray(others[0]), atol=3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is PostScript.*Convert it"),
        (b"SIMPLE  =                    T" + bytes(90), "is a FITS file.*Convert it"),
        (b"P7 332 thumbnail", "is a thumbnail of the program xv"),
        (b"\0\0\0\x18ftypheic" + bytes(60), "is a HEIC photo.*pip install pillow-heif"),
        (b"\0\0\0\x18ftypisom" + bytes(60), "of no known format"),
        (b"<svg/>", "of no known format"),
    ],
)
def test_no_image_is_refused_with_the_reason(tmp_path, content, words, monkeypatch):
    monkeypatch.setattr("rdsnet.data.images.pillow_formats", lambda: ("PNG", "JPEG", "EPS")[:2])
    with pytest.raises(ValueError, match=f"image .*photo.png.*{words}"):
        (tmp_path / "photo.png").write_bytes(content)
        read_image(str(tmp_path / "photo.png"), "RGB")


def test_what_is_no_file_is_told_from_what_is_not_there(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("../annex/key.png")
    os.mkfifo(tmp_path / "pipe.png")
    cases = {
        "folder.png": (IsADirectoryError, "folder.png is a folder"),
        "link.png": (FileNotFoundError, "link.png does not exist.*a link to ../annex/key.png"),
        "nothing.png": (FileNotFoundError, "nothing.png does not exist. Check the image folder"),
        "pipe.png": (ValueError, "pipe.png is no regular file"),  # reading would wait for ever
    }
    for name, (kind, words) in cases.items():
        with pytest.raises(kind, match=words):
            read_image(str(tmp_path / name), "RGB")


def test_a_file_without_permission_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "secret.png"
    Image.new("RGB", (4, 4)).save(path)
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser reads everything

        def forbid(path, *_):
            raise PermissionError(13, "Permission denied", path)

        monkeypatch.setattr("rdsnet.data.images.PathManager", SimpleNamespace(open=forbid))
    with pytest.raises(PermissionError, match="secret.png may not be read.*permission"):
        read_image(str(path), "RGB")


def test_a_name_that_is_no_text_is_shown_with_escapes(tmp_path):
    path = os.fsencode(tmp_path) + b"/line\nbr\xe9ak.png"
    with open(path, "wb") as file:
        file.write(b"no image")
    with pytest.raises(ValueError, match=r"line\\nbr\\xe9ak.png cannot be read"):
        read_image(os.fsdecode(path), "RGB")
