"""Text in scripts that DejaVu Sans lacks, with fonts made for the purpose."""

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, features

from rdsnet.visualization import captioned, contact_sheet, draw_objects, text
from rdsnet.visualization.objects import Objects
from rdsnet.visualization.text import DEFAULT, Line

UNITS = 1000


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No font is installed, and nothing was said yet."""
    caches = (text._installed_font, text._installed, text._characters, text._warned)
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr(text, "findSystemFonts", list)
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def said(monkeypatch):
    """The warnings."""
    messages = []
    monkeypatch.setattr(text.logger, "warning", messages.append)
    return messages


def rectangle(width, height):
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, height), (width, height), (width, 0)):
        pen.lineTo(point)
    pen.closePath()
    return pen.glyph()


def make_font(path, characters, width=1000, height=700):
    """A font in which all these characters are the same black rectangle on the baseline."""
    builder = FontBuilder(UNITS, isTTF=True)
    builder.setupGlyphOrder([".notdef", "block"])
    builder.setupCharacterMap({ord(c): "block" for c in characters})
    builder.setupGlyf({".notdef": rectangle(100, 100), "block": rectangle(width, height)})
    builder.setupHorizontalMetrics({".notdef": (200, 0), "block": (width, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, sTypoDescender=-200)
    builder.setupPost()
    builder.save(path)
    return str(path)


def install(monkeypatch, *paths):
    monkeypatch.setattr(text, "findSystemFonts", lambda: list(paths))


def drawn(content, size=40, width=400):
    """(H, W) bool: where there is ink."""
    picture = Image.new("RGB", (width, 3 * size), "white")
    Line(content, size).draw(picture, 0, 1.5 * size, "black")
    return np.asarray(picture)[..., 0] < 128


def test_a_character_that_dejavu_lacks_comes_from_an_installed_font(tmp_path, monkeypatch):
    install(monkeypatch, make_font(tmp_path / "Blocks-Regular.ttf", "犬鳥"))
    ink = drawn("犬")
    rows, columns = np.nonzero(ink)
    # The rectangle of 1000 x 700 units of a font of 40 pixels per 1000 units.
    assert abs(np.ptp(columns) + 1 - 40) <= 1 and abs(np.ptp(rows) + 1 - 28) <= 1
    assert ink[rows.min() : rows.max(), columns.min() : columns.max()].all()
    assert Line("犬鳥", 40).width == pytest.approx(80)


def test_what_dejavu_has_stays_in_dejavu(tmp_path, monkeypatch):
    expected = drawn("Käse 95% жук")
    install(monkeypatch, make_font(tmp_path / "All.ttf", "Käse 95%жук犬"))
    assert (drawn("Käse 95% жук") == expected).all()


def test_a_text_is_in_one_font_where_one_has_it_all(tmp_path, monkeypatch):
    some = make_font(tmp_path / "A.ttf", "犬")
    everything = make_font(tmp_path / "B.ttf", "犬馬7%")
    install(monkeypatch, some, everything)
    assert text._split("馬 7%") == [("馬 7%", everything)]
    # Of two fonts, each gives what it has; spaces and signs are DejaVu's.
    assert text._split("犬é 馬") == [("犬", some), ("é ", DEFAULT), ("馬", everything)]
    # What only changes the character before it stays with that.
    assert text._split("犬\ufe0f\u200d犬é")[0] == ("犬\ufe0f\u200d犬", some)


def test_plain_fonts_come_first_and_broken_ones_are_passed_over(tmp_path, monkeypatch):
    bold = make_font(tmp_path / "A-Bold.ttf", "犬")
    plain = make_font(tmp_path / "Z-Regular.ttf", "犬")
    broken = tmp_path / "0.ttf"
    broken.write_bytes(b"no font")
    placeholder = make_font(tmp_path / "LastResort.ttf", "犬")
    install(monkeypatch, placeholder, bold, str(broken), str(tmp_path / "gone.ttf"), plain)
    assert text._split("犬") == [("犬", plain)]


def test_a_missing_font_is_named_once_with_its_package(said):
    box = drawn("\U0010fffe")  # a character that nobody has
    assert box.any()
    for content in ("猫 95%", "犬 12%", "猫 95%", "ねこ"):
        drawn(content)
    assert len(said) == 2 and "fonts-noto-cjk" in said[1]
    said.clear()
    for content in ("बिल्ली", "🦑", "고양이"):
        drawn(content)
    assert len(said) == 1 and "'🦑'" in said[0]
    assert "apt-get install fonts-noto-color-emoji" in said[0]


def test_packages_follow_the_script():
    assert {text._package(c) for c in "猫ねネ고㐀ㄅ"} == {"fonts-noto-cjk"}
    assert {text._package(c) for c in "🦑🐈"} == {"fonts-noto-color-emoji"}
    assert {text._package(c) for c in "बแবகመ"} == {"fonts-noto-core"}


@pytest.mark.parametrize("content", ["two\nlines", "tab\there", "\r\n", "half \udcff", "", "\0"])
def test_any_text_can_be_drawn(content):
    line = Line(content, 20)
    line.draw(Image.new("RGB", (300, 60)), 0, 30, "white")
    assert line.width == Line(text._printable(content), 20).width
    assert (drawn("two\nlines") == drawn("two lines")).all()


@pytest.mark.skipif(not features.check("raqm"), reason="this Pillow was built without Raqm")
def test_arabic_is_joined_and_hebrew_runs_from_right_to_left():
    apart = sum(Line(letter, 40).width for letter in "قطة")
    assert Line("قطة", 40).width < 0.95 * apart
    # The first of two letters is the right one: a narrow vav before a broad shin.
    narrow, word = round(Line("ו", 40).width), round(Line("וש", 40).width)
    alone, both = drawn("ו")[:, :narrow], drawn("וש")
    right, left = both[:, word - narrow : word], both[:, :narrow]
    assert (right != alone).sum() < (left != alone).sum()


def test_without_raqm_it_is_said_once_that_letters_are_out_of_order(monkeypatch, said):
    monkeypatch.setattr(text.features, "check", lambda _: False)
    for content in ("cat", "قطة", "חתול"):
        Line(content, 20)
    assert len(said) == 1 and "'قطة'" in said[0] and "libraqm0" in said[0]


def test_overlays_and_contact_sheets_use_these_fonts(tmp_path, monkeypatch):
    grey = np.full((200, 300, 3), 200, np.uint8)
    objects = Objects(
        np.array([[20.0, 90, 150, 180]]), rles=None, labels=["犬 9%"], colors=[(20, 20, 20)]
    )

    def pictures():
        picture = draw_objects(grey, objects)
        return [picture, captioned(grey, "犬.jpg"), contact_sheet([[grey]], ["犬"], footer="犬")]

    boxes = pictures()
    text._installed_font.cache_clear()
    text._installed.cache_clear()
    install(monkeypatch, make_font(tmp_path / "Blocks.ttf", "犬"))
    for before, after in zip(boxes, pictures(), strict=True):
        assert before.shape == after.shape and (before != after).any()
