"""A line of text on a picture, in whatever script the names of classes and files are written.

DejaVu Sans, which comes with matplotlib, has Latin, Greek, Cyrillic, Arabic, Hebrew and more. What
it lacks (Chinese, Devanagari, emoji, ...) is written in an installed font that has it; where there
is none, DejaVu's empty box stands in its place, and a warning says once what to install.
"""

from __future__ import annotations

import logging
import unicodedata
from functools import cache, lru_cache
from pathlib import Path

import matplotlib
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont, features

logger = logging.getLogger(__name__)

DEFAULT = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
# Debian's packages of fonts for what DejaVu lacks, by words in the characters' Unicode names.
_CJK = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH")
# Pixel sizes of fonts that are pictures: Google's emoji, Apple's.
_BITMAP_SIZES = (109, 128, 136, 160)
# An installed font is the more likely to be legible, the fewer of these are in its name.
_UNUSUAL = ("Bold", "Italic", "Oblique", "Light", "Thin", "Black", "Condensed", "Mono", "Serif")


Color = str | tuple[int, int, int]
"""As Pillow takes it: a name such as "white" or "#444", or RGB."""


class Line:
    """One line of text, measured and ready to be drawn.

    Args:
        text: line breaks and other characters without a picture are drawn as spaces.
        size: of the font, pixels.

    Attributes:
        width: pixels.
    """

    def __init__(self, text: str, size: int) -> None:
        self._runs = [_Run(part, path, size) for part, path in _split(_printable(text))]
        self._ascent, self._descent = _font(DEFAULT, size).getmetrics()
        self.width = sum(run.width for run in self._runs)

    def draw(self, picture: Image.Image, x: float, middle: float, color: Color) -> None:
        """Draw from ``x`` on, with the middle of the line at the height ``middle``."""
        baseline = middle + (self._ascent - self._descent) / 2
        for run in self._runs:
            run.draw(picture, x, baseline, color)
            x += run.width


class _Run:
    """A part of a line in one font."""

    def __init__(self, text: str, path: str, size: int) -> None:
        self._text, self._font = text, _font(path, size)
        # Fonts that are pictures come in one size.
        self._scale = size / self._font.size
        self.width = self._font.getlength(text) * self._scale

    def draw(self, picture: Image.Image, x: float, baseline: float, color: Color) -> None:
        if self._scale == 1:
            pen = ImageDraw.Draw(picture)
            pen.text((x, baseline), self._text, font=self._font, fill=color, anchor="ls")
            return
        ascent, descent = self._font.getmetrics()
        glyphs = Image.new("RGBA", (round(self.width / self._scale), ascent + descent))
        pen = ImageDraw.Draw(glyphs)
        pen.text((0, ascent), self._text, font=self._font, embedded_color=True, anchor="ls")
        size = [max(1, round(side * self._scale)) for side in glyphs.size]
        glyphs = glyphs.resize(size, Image.Resampling.LANCZOS)
        picture.paste(glyphs, (round(x), round(baseline - ascent * self._scale)), glyphs)


def _split(text: str) -> list[tuple[str, str]]:
    """Parts of a text, each with the path of a font that has its characters.

    A single font where there is one: only inside of a part do characters stand in their right
    order and shape (Arabic from right to left, Devanagari joined).
    """
    _warn_of_layout(text)
    needed = {c for c in text if not (c.isspace() or _is_joining(c))}
    missing = needed - _characters(DEFAULT)
    if not missing:
        return [(text, DEFAULT)]
    chosen = {c: _installed_font(c) for c in sorted(missing)}
    for path in dict.fromkeys(path for path in chosen.values() if path):
        if needed <= _characters(path) and not _is_bitmap(path):
            return [(text, path)]
    parts: list[tuple[str, str]] = []
    for c in text:
        before, its_path = parts[-1] if parts else ("", DEFAULT)
        path = its_path if _is_joining(c) else chosen.get(c) or DEFAULT
        if parts and path == its_path:
            parts[-1] = before + c, path
        else:
            parts.append((c, path))
    return parts


@cache
def _installed_font(character: str) -> str | None:
    """The path of an installed font that has a character; warns where there is none."""
    for path in _installed():
        if character in _characters(path):
            return path
    _warn_of_missing(_package(character), character)
    return None


@cache
def _installed() -> list[str]:
    """Paths of the fonts of this machine, the plain ones first."""
    paths = [path for path in findSystemFonts() if "lastresort" not in path.lower()]
    return sorted(paths, key=lambda path: (sum(word in Path(path).stem for word in _UNUSUAL), path))


@cache
def _characters(path: str) -> frozenset[str]:
    """What a font has; nothing where it cannot be used."""
    try:
        characters = frozenset(map(chr, FT2Font(path).get_charmap()))
        _font(path, 16)
    except (OSError, RuntimeError, ValueError):
        return frozenset()
    return characters


@lru_cache(maxsize=64)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    """A font in this size; one that is pictures in its own.

    Raises:
        OSError: the file is no font, or one of pictures of an unknown size.
    """
    for number in (size, *_BITMAP_SIZES):
        try:
            return ImageFont.truetype(path, number)
        except OSError as error:
            failure = error
    raise failure


def _is_bitmap(path: str) -> bool:
    return _font(path, 16).size != 16


def _printable(text: str) -> str:
    """With spaces for line breaks and the like, and a mark for half characters.

    (Python reads file names that are no UTF-8 as halves of characters.)
    """
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in whole)


def _is_joining(character: str) -> bool:
    """Whether a character only says how the one before it looks: joiners, variant selectors."""
    return "\ufe00" <= character <= "\ufe0f" or unicodedata.category(character) == "Cf"


def _package(character: str) -> str:
    """The package of Debian and Ubuntu whose fonts are likely to have a character."""
    name = unicodedata.name(character, "")
    if name.startswith(_CJK):
        return "fonts-noto-cjk"
    is_symbol = unicodedata.category(character).startswith("S")
    return "fonts-noto-color-emoji" if is_symbol else "fonts-noto-core"


@cache
def _warned(_subject: str) -> list[str]:
    """A list of its own for every subject: empty until something was said about it."""
    return []


def _warn_of_missing(package: str, character: str) -> None:
    if not _warned(package):
        _warned(package).append(character)
        logger.warning(
            f"No installed font has the character '{character}', and maybe others: pictures show "
            "boxes in their place. Install one that has them; on Debian and Ubuntu: apt-get "
            f"install {package}"
        )


def _warn_of_layout(text: str) -> None:
    """Without Raqm, Pillow writes every script from left to right, and letters side by side."""
    if features.check("raqm") or _warned("layout"):
        return
    needs_it = any(
        unicodedata.bidirectional(c) in ("R", "AL") or unicodedata.category(c) == "Mc" for c in text
    )
    if needs_it:
        _warned("layout").append(text)
        logger.warning(
            f"Pillow cannot arrange the letters of '{text}': it needs Raqm and FriBidi. On Debian "
            "and Ubuntu: apt-get install libraqm0 libfribidi0"
        )
