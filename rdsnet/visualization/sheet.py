"""Pictures arranged in a grid with titles."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from rdsnet.visualization.text import Line


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str] = (),
    *,
    footer: str = "",
    cell_width: int = 480,
    margin: int = 10,
) -> np.ndarray:
    """Arrange pictures in rows and columns on white.

    Args:
        rows: rows of (H, W, 3) uint8 RGB pictures of any size; each is brought to the width of a
            column, a row is as high as its highest picture.
        titles: one per column, above it.
        footer: a line below.
        cell_width, margin: pixels.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: if there is nothing to show.
    """
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise ValueError("contact_sheet: there is no picture to arrange")
    cells = [[_to_width(picture, cell_width) for picture in row] for row in rows]
    heights = [max((len(cell) for cell in row), default=0) for row in cells]
    font_size = max(12, cell_width // 22)
    line = round(1.8 * font_size)
    top = margin + (line if titles else 0)
    height = top + sum(heights) + margin * len(rows) + (line if footer else 0)
    width = margin + columns * (cell_width + margin)
    sheet = Image.new("RGB", (width, height), "white")
    for k, title in enumerate(titles):
        x = margin + k * (cell_width + margin)
        Line(title, font_size).draw(sheet, x, margin + line / 2, "black")
    y = top
    for row, row_height in zip(cells, heights, strict=True):
        for k, cell in enumerate(row):
            sheet.paste(Image.fromarray(cell), (margin + k * (cell_width + margin), y))
        y += row_height + margin
    if footer:
        Line(footer, font_size).draw(sheet, margin, y + line / 2 - margin / 2, "#444")
    return np.array(sheet)


def write_sheet(sheet: np.ndarray, path: str | os.PathLike) -> None:
    """Write a (H, W, 3) uint8 RGB picture as PNG; its folder is made if missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", sheet[:, :, ::-1])[1].tobytes())


def captioned(
    picture: np.ndarray, text: str, width: int = 480, font_size: int | None = None
) -> np.ndarray:
    """A picture for a contact sheet with a line of text below it.

    Args:
        picture: (H, W, 3) uint8 RGB, brought to ``width`` pixels, or to that height where it is
            higher than wide: the sheet then has no rows of mostly white.
        text: is cut off where it is too long.
        font_size: pixels; None: by the width.
    """
    shape = picture.shape
    picture = _to_width(picture, max(1, round(width * min(1, shape[1] / shape[0]))))
    missing = (0, 0), (0, width - picture.shape[1]), (0, 0)
    picture = np.pad(picture, missing, constant_values=255)
    font_size = font_size or max(12, width // 30)
    strip = Image.new("RGB", (width, round(1.6 * font_size)), "white")
    while text and Line(text, font_size).width > width:
        text = text[:-2] + "…" if len(text) > 2 else ""
    Line(text, font_size).draw(strip, 0, strip.height / 2, "black")
    return np.concatenate([picture, np.array(strip)])


def _to_width(picture: np.ndarray, width: int) -> np.ndarray:
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    shrinking = width < picture.shape[1]
    method = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return cv2.resize(picture, (width, height), interpolation=method)
