"""Masks, boxes and names drawn onto an image.

Solid boxes are the final ones; detections also have dashed white boxes, as they were regressed
before MBRM. Small images are enlarged, so that a move of one pixel can be seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import pycocotools.mask as coco_mask
from PIL import Image, ImageDraw

from rdsnet.visualization.objects import Color, Objects
from rdsnet.visualization.text import Line

MASK_OPACITY = 0.45
# Names on more objects than this would hide the picture.
MAX_LABELS = 40
# Bits behind the point of the coordinates handed to OpenCV.
_SUBPIXEL_BITS = 4


def draw_objects(image: np.ndarray, objects: Objects, *, min_side: int = 640) -> np.ndarray:
    """Draw objects onto a copy of an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        objects: what to draw; its masks and boxes are in pixels of the image.
        min_side: an image whose longer side is shorter than this many pixels is enlarged, at most
            eightfold.

    Returns:
        (s H, s W, 3) uint8 RGB with the enlargement s >= 1.
    """
    height, width = image.shape[:2]
    scale = min(max(min_side / max(height, width), 1.0), 8.0)
    size = round(width * scale), round(height * scale)
    canvas = np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC))
    line = max(1, round(max(size) / 500))
    if objects.rles is not None:
        _draw_masks(canvas, objects, line)
    boxes = np.asarray(objects.boxes, dtype=np.float64) * scale
    # From large to small, so that small objects are not drawn over.
    order = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(1), kind="stable")
    if objects.regressed_boxes is not None:  # below: seen where MBRM has moved an edge
        for box in np.asarray(objects.regressed_boxes, dtype=np.float64) * scale:
            _draw_dashed_box(canvas, box, line)
    for n in order:
        _draw_box(canvas, boxes[n], objects.colors[n], line + 1)
    if len(objects) <= MAX_LABELS:
        canvas = _draw_labels(canvas, objects, boxes, order)
    return canvas


def _draw_masks(canvas: np.ndarray, objects: Objects, line: int) -> None:
    """Blend masks into the canvas, large ones first, each with its outline."""
    height, width = canvas.shape[:2]
    areas = [int(coco_mask.area(rle)) for rle in objects.rles]
    for n in sorted(range(len(areas)), key=lambda n: -areas[n]):
        mask = objects.mask(n) * np.uint8(255)  # one at a time: images can be large
        # Interpolating the mask gives a smooth outline at the enlarged size.
        soft = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)
        inside = (soft > 127).astype(np.uint8)
        x, y, w, h = cv2.boundingRect(inside)
        if w == 0:
            continue
        region = canvas[y : y + h, x : x + w]
        chosen = inside[y : y + h, x : x + w] > 0
        color = np.array(objects.colors[n])
        region[chosen] = ((1 - MASK_OPACITY) * region[chosen] + MASK_OPACITY * color).astype("u1")
        outlines, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, objects.colors[n], line, cv2.LINE_AA)


def _fixed_point(x: float, y: float) -> tuple[int, int]:
    """Continuous coordinates as OpenCV's, which count from the centre of the first pixel."""
    limit = 1 << 20  # also keeps absurd boxes within the range of OpenCV's integers
    factor = 1 << _SUBPIXEL_BITS
    x, y = (min(max(v - 0.5, -limit), limit) for v in (x, y))
    return round(x * factor), round(y * factor)


def _line(
    canvas: np.ndarray, start: Sequence[float], end: Sequence[float], color: Color, thickness: int
) -> None:
    start, end = _fixed_point(*start), _fixed_point(*end)
    cv2.line(canvas, start, end, color, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)


def _corners(box: np.ndarray) -> list[tuple[float, float]]:
    x1, y1, x2, y2 = box.tolist()
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def _draw_box(canvas: np.ndarray, box: np.ndarray, color: Color, thickness: int) -> None:
    corners = _corners(box)
    for k in range(4):
        _line(canvas, corners[k - 1], corners[k], color, thickness)


def _draw_dashed_box(canvas: np.ndarray, box: np.ndarray, thickness: int) -> None:
    """White dashes with a dark rim, visible on any background."""
    height, width = canvas.shape[:2]
    box = box.clip([-9, -9, -9, -9], [width + 9, height + 9, width + 9, height + 9])
    corners = _corners(box)
    dash = 5 * thickness + 2
    for color, extra in (((30, 30, 30), 1), ((255, 255, 255), 0)):
        for k in range(4):
            start, end = np.array(corners[k - 1]), np.array(corners[k])
            length = float(np.abs(end - start).max())
            step = (end - start) / max(length, 1e-6)
            for at in np.arange(0, length, 2 * dash):
                until = min(at + dash, length)
                _line(canvas, start + at * step, start + until * step, color, thickness + extra)


def _draw_labels(
    canvas: np.ndarray, objects: Objects, boxes: np.ndarray, order: np.ndarray
) -> np.ndarray:
    """Write each label at its box, where it covers no other label if there is such a place."""
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    font_size = max(13, round(max(canvas.shape[:2]) / 46))
    pad = max(2, font_size // 5)
    taken: list[tuple[float, float, float, float]] = []
    for n in order[::-1]:  # small objects choose first
        text = objects.labels[n]
        if not text:
            continue
        line = Line(text, font_size)
        width = line.width + 2 * pad
        height = font_size + 2 * pad
        x, y = _place(boxes[n], (width, height), canvas.shape[:2], taken)
        taken.append((x, y, x + width, y + height))
        color = objects.colors[n]
        draw.rectangle((x, y, x + width, y + height), fill=color)
        bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
        line.draw(picture, x + pad, y + height / 2, (0, 0, 0) if bright else "white")
    return np.array(picture)


def _place(
    box: np.ndarray,
    size: tuple[float, float],
    canvas_size: tuple[int, int],
    taken: list[tuple[float, float, float, float]],
) -> tuple[float, float]:
    """Where a label goes: the first place at its box that no other has taken, else the usual one.

    Args:
        box: x1, y1, x2, y2.
        size: (width, height) of the label.
        canvas_size: (H, W).
        taken: x1, y1, x2, y2 of the labels before.
    """
    (x1, y1, x2, y2), (width, height), (rows, columns) = box, size, canvas_size
    places = [
        (x1, y1 - height),
        (x2 - width, y1 - height),
        (x1, y2),
        (x2 - width, y2),
        (x1, y1),
        (x2 - width, y2 - height),
    ]
    places = [
        (min(max(x, 0), max(columns - width, 0)), min(max(y, 0), max(rows - height, 0)))
        for x, y in places
    ]
    for x, y in places:
        free = all(
            x + width <= left or right <= x or y + height <= top or bottom <= y
            for left, top, right, bottom in taken
        )
        if free:
            return x, y
    return places[0]
