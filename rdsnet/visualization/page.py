"""A page of sections with figures, tables and pictures, in one HTML file that needs nothing else.

Images and figures are inside the file; it loads nothing, so it can be mailed or kept.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


@dataclass
class Figure:
    """An ``<svg>`` element and one sentence that says what it shows."""

    svg: str
    caption: str

    @property
    def markup(self) -> Markup:
        return Markup(self.svg)


@dataclass
class Picture:
    """An image as a data URI, and what it shows."""

    uri: str
    caption: str = ""
    # As wide as the page, however high.
    large: bool = False


@dataclass
class Table:
    """Rows of texts; the first column is a heading, the others are numbers.

    A row whose heading begins with "…" belongs to the one above it, and steps back.

    ``bars``: {column number: largest value}: that column also gets a bar of its value's length.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    bars: Mapping[int, float] = field(default_factory=dict)
    # Many short rows stand in several columns of the page.
    dense: bool = False


@dataclass
class Section:
    """A heading, one or two sentences, and what belongs to them, in this order."""

    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    # Rows of pictures (or figures) side by side.
    pictures: Sequence[Sequence[Picture | Figure]] = ()
    # Sentences below all of it, as a list.
    points: Sequence[str] = ()


@dataclass
class Page:
    """The whole page.

    Attributes:
        title, subtitle: at the top.
        numbers: (value, what it is), shown large.
        sections: what follows.
        facts: (name, value), at the end.
    """

    title: str
    subtitle: str
    numbers: list[tuple[str, str]] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)

    def html(self) -> str:
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template("report.html").render(page=self)


def picture_uri(image: np.ndarray, max_side: int = 720, quality: int = 85) -> str:
    """A (H, W, 3) uint8 RGB image as a JPEG inside a data URI, shrunk to ``max_side`` pixels."""
    scale = max_side / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
