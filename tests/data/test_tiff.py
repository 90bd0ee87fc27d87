"""TIFF: every layout that is read is compared with what was written, and with a second reader."""

import itertools
import zlib

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from helpers.tiff_files import by_hand, written
from PIL import Image, ImageOps

from rdsnet.data.images import read_image

H, W = 44, 61
RNG = np.random.default_rng(7)
DEEP = RNG.integers(0, 65536, (H, W, 4)).astype(np.uint16)
DEEP[0, 0] = 65535
HIGH = (DEEP >> 8).astype(np.uint8)
LOSSLESS = (None, "lzw", "deflate", "adobe_deflate", "packbits", "zstd", "lzma")
BITS = {258: (8,) * 3, 262: (2,), 277: (3,)}  # tags of RGB, for by_hand


@pytest.fixture
def read(tmp_path):
    """Writes bytes into a file and reads it, as RGB."""

    def call(content: bytes, page: int = 0) -> np.ndarray:
        path = tmp_path / "image.tif"
        path.write_bytes(content)
        return read_image(str(path), "RGB", page)

    return call


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """By the formula, in floating point; colours not multiplied."""
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


@pytest.mark.parametrize("compression", LOSSLESS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_colours_are_read_as_they_were_written(compression, bits, planes, read):
    samples = (HIGH if bits == 8 else DEEP)[..., :3]
    stored = np.ascontiguousarray(np.moveaxis(samples, -1, 0)) if planes == "separate" else samples
    predictors = (None, 2) if compression in ("lzw", "deflate", "zstd") else (None,)
    for order, tile, predictor, big in itertools.product(
        "<>", (None, (16, 32)), predictors, (False, True)
    ):
        options = {"byteorder": order, "tile": tile, "predictor": predictor, "bigtiff": big}
        rows = {} if tile else {"rowsperstrip": 7}
        options |= {"compression": compression, "planarconfig": planes, **rows}
        image = read(written(stored, photometric="rgb", **options))
        np.testing.assert_array_equal(image, HIGH[..., :3], err_msg=str(options))


@pytest.mark.parametrize("compression", LOSSLESS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["minisblack", "miniswhite", "palette"])
def test_grey_and_palettes_are_read_as_they_were_written(compression, bits, kind, read):
    samples = (HIGH if bits == 8 else DEEP)[..., 0]
    table = np.random.default_rng(bits).integers(0, 65536, (3, 2**bits)).astype(np.uint16)
    expected = {
        "minisblack": three(HIGH[..., 0]),
        "miniswhite": three(255 - HIGH[..., 0]),
        "palette": (table.T >> 8).astype(np.uint8)[samples],
    }
    options = {"compression": compression, "photometric": kind}
    if kind == "palette":
        options["colormap"] = table
    for order in "<>":
        image = read(written(samples, byteorder=order, **options))
        np.testing.assert_array_equal(image, expected[kind])


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_transparency_is_laid_onto_white(bits, planes, read):
    samples, high = (HIGH, HIGH) if bits == 8 else (DEEP, HIGH)
    straight = on_white(high[..., :3], high[..., 3])
    multiplied = samples.copy()
    multiplied[..., :3] = np.minimum(samples[..., :3], samples[..., 3:])
    scale = 2 ** (bits - 8)
    expected = {
        "unassalpha": straight,
        "assocalpha": multiplied[..., :3] // scale + (255 - high[..., 3:].astype(int)),
        "unspecified": high[..., :3],  # another channel, such as infrared
    }
    for kind, colours in expected.items():
        stored = multiplied if kind == "assocalpha" else samples
        if planes == "separate":
            stored = np.ascontiguousarray(np.moveaxis(stored, -1, 0))
        options = {"photometric": "rgb", "planarconfig": planes, "extrasamples": [kind]}
        image = read(written(stored, **options))
        np.testing.assert_allclose(image, colours, atol=1, err_msg=kind)


def test_grey_with_transparency_and_a_fourth_channel_without_a_word(read):
    grey = written(HIGH[..., :2], photometric="minisblack", extrasamples=["unassalpha"])
    expected = on_white(three(HIGH[..., 0]), HIGH[..., 1])
    np.testing.assert_allclose(read(grey), expected, atol=1)
    four = by_hand(W, H, HIGH.tobytes(), {258: (8,) * 4, 262: (2,), 277: (4,)})
    np.testing.assert_allclose(read(four), on_white(HIGH[..., :3], HIGH[..., 3]), atol=1)


def test_cmyk_and_lab_are_what_pillow_makes_of_them(read, tmp_path):
    cmyk = Image.frombytes("CMYK", (W, H), HIGH.tobytes())
    for planes in ("contig", "separate"):
        stored = np.moveaxis(HIGH, -1, 0) if planes == "separate" else HIGH
        stored = np.ascontiguousarray(stored)
        image = read(written(stored, photometric="separated", planarconfig=planes))
        np.testing.assert_array_equal(image, np.asarray(cmyk.convert("RGB")))
    deep = np.ascontiguousarray(np.moveaxis(DEEP, -1, 0))
    image = read(written(deep, photometric="separated", planarconfig="separate"))
    np.testing.assert_array_equal(image, np.asarray(cmyk.convert("RGB")))
    lab = Image.frombytes("LAB", (W, H), HIGH[..., :3].tobytes())
    lab.save(tmp_path / "lab.tif")
    image = read((tmp_path / "lab.tif").read_bytes())
    np.testing.assert_array_equal(image, np.asarray(lab.convert("RGB")))


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("fill_order", [1, 2])
def test_packed_bits_are_read_as_they_were_packed(bits, fill_order, read, tmp_path):
    values = RNG.integers(0, 2**bits, (H, W))
    shifts = np.arange(bits)[::-1]
    rows = ((values[..., None] >> shifts) & 1).reshape(H, -1).astype(np.uint8)
    packed = np.packbits(rows, axis=1)
    if fill_order == 2:
        packed = np.packbits(np.unpackbits(packed[..., None], axis=-1)[..., ::-1], axis=-1)[..., 0]
    table = RNG.integers(256, 65536, (3, 2**bits))
    grey = three(values * 255 // (2**bits - 1))
    expected = {0: 255 - grey, 1: grey, 3: (table.T // 256)[values]}
    for photometric, shown in expected.items():
        tags = {258: (bits,), 262: (photometric,), 266: (fill_order,)}
        if photometric == 3:
            tags[320] = tuple(table.reshape(-1).tolist())
        image = read(by_hand(W, H, packed.tobytes(), tags))
        np.testing.assert_array_equal(image, shown)
        if photometric != 3 or fill_order == 1:  # Pillow knows no palettes from right to left
            with Image.open(tmp_path / "image.tif") as other:
                np.testing.assert_array_equal(image, np.asarray(other.convert("RGB")))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("most", [255, 700, 1023, 4000, 16383, 40000, 65535])
def test_the_scale_is_that_of_the_levels_for_grey_and_for_colours(most, order, read):
    bits = max(8, next(n for n in (8, 10, 12, 14, 16) if most < 2**n))
    levels = RNG.integers(0, most + 1, (H, W, 3)).astype(np.uint16)
    levels[..., 0][0, 0] = most  # the other channels may be darker
    levels[..., 1:] //= 2
    expected = levels // 2 ** (bits - 8)
    for stored, options in ((levels, {}), (np.moveaxis(levels, -1, 0), {"planarconfig": 2})):
        image = read(written(stored.copy(), photometric="rgb", byteorder=order, **options))
        np.testing.assert_array_equal(image, expected)
    image = read(written(levels[..., 0].copy(), photometric="minisblack", byteorder=order))
    np.testing.assert_array_equal(image, three(expected[..., 0]))
    wide = levels[..., 0].astype(np.uint32)
    image = read(written(wide, photometric="minisblack", byteorder=order))
    np.testing.assert_array_equal(image, three(expected[..., 0]))


def test_12_bits_in_a_row_and_32_bits_keep_their_upper_8(read):
    values = RNG.integers(0, 4096, (H, 62))
    values[0, 0] = 4095
    rows = ((values[..., None] >> np.arange(12)[::-1]) & 1).reshape(H, -1).astype(np.uint8)
    image = read(by_hand(62, H, np.packbits(rows, axis=1).tobytes(), {258: (12,)}))
    np.testing.assert_array_equal(image, three(values // 16))
    wide = RNG.integers(0, 2**32, (H, W)).astype(np.uint32)
    image = read(written(wide, photometric="minisblack"))
    np.testing.assert_array_equal(image, three(wide // 2**24))


def photograph() -> np.ndarray:
    """(80, 112, 3) without hard edges, which JPEG would blur."""
    y, x = np.mgrid[:80, :112]
    waves = [128 + 90 * np.sin(x / (19 + k)) * np.cos(y / (23 - k)) for k in range(3)]
    return np.stack(waves, -1).astype(np.uint8)


@pytest.mark.parametrize("tile", [None, (32, 48)])
@pytest.mark.parametrize("sampling", [(1, 1), (2, 1), (2, 2)])
def test_jpeg_in_tiff_is_read_as_pillow_and_opencv_read_it(tile, sampling, read, tmp_path):
    photo = photograph()
    content = written(
        photo,
        photometric="rgb",
        compression="jpeg",
        compressionargs={"level": 95},
        tile=tile,
        subsampling=sampling,
    )
    image = read(content)
    np.testing.assert_allclose(image, photo, atol=12)  # lossy
    other = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_allclose(image, other, atol=2)  # decoders round differently
    with Image.open(tmp_path / "image.tif") as third:
        np.testing.assert_allclose(image, np.asarray(third.convert("RGB")), atol=2)


@pytest.mark.parametrize("bits", [8, 16])
def test_jpeg_2000_and_webp_in_tiff_are_read_as_they_were_written(bits, read):
    samples = (HIGH if bits == 8 else DEEP)[..., :3]
    lossless = {"level": 0, "reversible": True}
    options = {"photometric": "rgb", "compression": "jpeg2000", "compressionargs": lossless}
    np.testing.assert_array_equal(read(written(samples, **options)), HIGH[..., :3])
    webp = {"photometric": "rgb", "compression": "webp", "compressionargs": {"lossless": True}}
    np.testing.assert_array_equal(read(written(HIGH[..., :3], **webp)), HIGH[..., :3])


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", "packbits", "tiff_lzw"])
def test_black_and_white_is_read_as_it_was_written(compression, read, tmp_path):
    if 4 not in tifffile.TIFF.DECOMPRESSORS and compression not in ("packbits", "tiff_lzw"):
        pytest.skip(f"tifffile {tifffile.__version__} cannot unpack faxes")
    bits = photograph()[..., 0] > 130
    Image.fromarray(bits).save(tmp_path / "fax.tif", compression=compression)
    np.testing.assert_array_equal(read((tmp_path / "fax.tif").read_bytes()), three(bits * 255))


@pytest.mark.parametrize("orientation", range(0, 10))
def test_a_page_is_turned_as_its_orientation_says(orientation, read, tmp_path):
    content = by_hand(W, H, HIGH[..., :3].tobytes(), {**BITS, 274: (orientation,)})
    image = read(content)
    with Image.open(tmp_path / "image.tif") as other:
        expected = np.asarray(ImageOps.exif_transpose(other).convert("RGB"))
    np.testing.assert_array_equal(image, expected)


def test_a_palette_of_8_bit_numbers_is_not_black(read):
    table = RNG.integers(0, 256, (3, 256))
    tags = {262: (3,), 320: tuple(table.reshape(-1).tolist())}
    image = read(by_hand(W, H, HIGH[..., 0].tobytes(), tags))
    np.testing.assert_array_equal(image, table.T[HIGH[..., 0]])


REFUSED = {
    "floating-point pixels": written(np.zeros((9, 9), np.float32), photometric="minisblack"),
    "complex pixels": written(np.zeros((9, 9), np.complex64), photometric="minisblack"),
    "negative levels": written(np.full((9, 9), -3, np.int16), photometric="minisblack"),
    "YCbCr colours outside of JPEG": by_hand(5, 5, bytes(75), {**BITS, 262: (6,)}),
    "does not say what its numbers mean": by_hand(5, 5, bytes(75), {**BITS, 262: None}),
    "camera's raw file": by_hand(5, 5, bytes(25), {262: (32803,)}),
    "raw file: develop": by_hand(5, 5, bytes(25), {50706: (1, 4, 0, 0)}),
    "reduced copy": by_hand(5, 5, bytes(25), {254: (1,)}),
    "compression JBIG": by_hand(5, 5, bytes(25), {259: (34661,)}),
    "3 channels that are called MINISBLACK": by_hand(5, 5, bytes(75), {**BITS, 262: (1,)}),
    "inks other than CMYK": by_hand(
        5, 5, bytes(100), {258: (8,) * 4, 262: (5,), 277: (4,), 332: (2,)}
    ),
    "Lab colours of 16 bits": by_hand(5, 5, bytes(150), {**BITS, 258: (16,) * 3, 262: (8,)}),
    "40 channels that are called RGB": by_hand(
        5, 5, bytes(1000), {258: (8,) * 40, 262: (2,), 277: (40,), 338: (0,) * 37}
    ),
    r"samples of \(5, 6, 5\) bits": by_hand(5, 5, bytes(75), {**BITS, 258: (5, 6, 5)}),
    "predictor with the compression PACKBITS": by_hand(5, 5, bytes(25), {259: (32773,), 317: (2,)}),
    "palette and the compression JPEG": by_hand(
        5, 5, bytes(25), {262: (3,), 259: (7,), 320: (0,) * 768}
    ),
    "big-endian with JPEG 2000": by_hand(5, 5, bytes(25), {258: (16,), 259: (34712,)}, ">"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_certain_is_refused_with_the_reason(reason, read):
    with pytest.raises(ValueError, match=f"image.tif .*{reason}.*[A-Z]") as error:
        read(REFUSED[reason])
    assert "damaged" not in str(error.value)


CUT = {
    "plain": {},
    "strips": {"compression": "lzw", "rowsperstrip": 8},
    "tiles": {"compression": "jpeg", "tile": (32, 32)},
    "planes": {"compression": "deflate", "planarconfig": "separate"},
}


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.98])
def test_a_file_that_is_cut_off_is_refused(kind, share, read):
    photo = photograph()
    stored = np.moveaxis(photo, -1, 0).copy() if kind == "planes" else photo
    content = written(stored, photometric="rgb", **CUT[kind])
    with pytest.raises(ValueError, match="image.tif cannot be read.*damaged"):
        read(content[: int(share * len(content))])


def test_a_page_of_too_many_pixels_is_refused_before_it_is_unpacked(read, monkeypatch):
    huge = by_hand(60_000, 60_000, zlib.compress(b"\0" * 1000), {259: (8,)})
    with pytest.raises(ValueError, match="60000 x 60000 pixels.*INPUT.MAX_PIXELS"):
        read(huge)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", H * W // 2)
    assert read(written(HIGH[: H - 1, :, 0], photometric="minisblack")).shape == (H - 1, W, 3)
    with pytest.raises(ValueError, match="is refused"):
        read(written(np.zeros((H + 1, W), np.uint8), photometric="minisblack"))


def test_data_that_unpack_to_more_than_their_page_are_refused(read):
    """Each is 16 x 16 pixels by its directory, and hundreds of times as many by its data."""
    zeros = np.zeros((3000, 3000, 3), np.uint8)
    grey = zeros[..., 0].copy()
    bombs = {
        8: zlib.compress(bytes(50_000_000)),
        32773: b"\x81\0" * 100_000,
        50000: imagecodecs.zstd_encode(bytes(50_000_000)),
        7: imagecodecs.jpeg8_encode(grey),
        34712: imagecodecs.jpeg2k_encode(grey),
        50001: imagecodecs.webp_encode(zeros),
    }
    for compression, data in bombs.items():
        tags = {**(BITS if compression == 50001 else {}), 259: (compression,)}
        with pytest.raises(ValueError, match="cannot be read"):
            read(by_hand(16, 16, data, tags))


def test_tiles_that_are_far_larger_than_the_picture_are_refused(read):
    tags = {259: (8,), 322: (60_000,), 323: (60_000,), 324: (8,), 325: (1000,)}
    tags |= {273: None, 278: None, 279: None}
    with pytest.raises(ValueError, match="its tiles of .* are larger than the picture"):
        read(by_hand(16, 16, zlib.compress(bytes(10**6)), tags))
    small = written(HIGH[..., 0], photometric="minisblack", tile=(1024, 1024), compression="lzw")
    np.testing.assert_array_equal(read(small), three(HIGH[..., 0]))
