"""The format "overview": a large image shrunk to a picture, and its fullest part as it is."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import pycocotools.mask as coco_mask
from detectron2.structures import Instances

from rdsnet.data.channels import picture_of
from rdsnet.data.findings import counted
from rdsnet.data.windows import Box, read_reduced
from rdsnet.prediction.sources import Frame
from rdsnet.prediction.writers.masks import bits_in_window
from rdsnet.prediction.writers.writer import Writer
from rdsnet.visualization.objects import strong_color

# The longer side of the shrunk image at most, and the side of the part that is shown as it is;
# where it may begin, pixels.
_SIDE, _INSET, _STEP = 2048, 512, 128
# Between and below the two pictures, pixels.
_GAP, _CAPTION = 16, 36
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)


class OverviewWriter(Writer):
    """``overview/NAME.png``: the whole image, of at most 2048 px, with the outlines of its objects,
    and beside it the 512 x 512 px with most objects, a pixel for a pixel.

    Colours are those of the classes. A frame in the shrunk image shows where the part lies. Run
    lengths of all objects of an image are kept until it is done, some hundred bytes each.
    """

    files = ("overview/",)
    takes_parts = True
    reads_images = True

    def begin(self) -> None:
        self._frame: Frame | None = None

    def end(self) -> None:
        if self._frame is not None:
            self._write()

    def add(self, frame: Frame, instances: Instances) -> None:
        if not frame.part:
            self.end()
            self._begin(frame)
        if instances.has("pred_masks"):
            for n in range(len(instances)):
                self._add(instances, n)
        if frame.part is None:
            self.end()

    def _begin(self, frame: Frame) -> None:
        self._frame = frame
        height, width = frame.image.shape[:2]
        self._factor = -(-max(height, width) // _SIDE)
        reader = frame.file or _Pixels(frame.image)
        shrunk = picture_of(read_reduced(reader, (0, 0, width, height), self._factor))
        self._picture = np.array(shrunk)  # the image itself is for other writers, too
        self._counts = np.zeros((-(-height // _STEP), -(-width // _STEP)), np.int64)
        self._windows: list[Box] = []
        self._rles: list[dict] = []
        self._classes: list[int] = []

    def _add(self, instances: Instances, n: int) -> None:
        """Draw an object into the shrunk image, and keep it for the part as it is."""
        bits, x, y = bits_in_window(instances.pred_masks, n)
        if not bits.any():
            return
        category = int(instances.pred_classes[n])
        _draw(self._picture, bits, (x, y), strong_color(category), self._factor)
        height, width = bits.shape
        self._windows.append((x, y, x + width, y + height))
        self._rles.append(coco_mask.encode(np.asfortranarray(bits.astype(np.uint8))))
        self._classes.append(category)
        rows, columns = self._counts.shape
        row, column = (y + height // 2) // _STEP, (x + width // 2) // _STEP
        self._counts[min(row, rows - 1), min(column, columns - 1)] += 1

    def _write(self) -> None:
        frame, self._frame = self._frame, None
        height, width = frame.image.shape[:2]
        window = x1, y1, x2, y2 = fullest(self._counts, (height, width))
        if frame.file is None:
            pixels = frame.image[y1:y2, x1:x2]
        else:
            with frame.file.reopened() as image:
                pixels = image.read(window)
        inset = np.array(picture_of(pixels))
        for place, rle, category in zip(self._windows, self._rles, self._classes):
            if place[0] < x2 and x1 < place[2] and place[1] < y2 and y1 < place[3]:
                corner = place[0] - x1, place[1] - y1
                _draw(inset, coco_mask.decode(rle) > 0, corner, strong_color(category), 1)
        shrunk = self._picture
        for colour, grown in ((_BLACK, 1), (_WHITE, 0)):
            first = x1 // self._factor - grown, y1 // self._factor - grown
            last = (x2 - 1) // self._factor + grown, (y2 - 1) // self._factor + grown
            cv2.rectangle(shrunk, first, last, colour)
        scale = "as it is" if self._factor == 1 else f"1/{self._factor} of {width} x {height} px"
        objects = counted(len(self._windows), "object")
        where = f"fullest part, as it is: x {x1} to {x2}, y {y1} to {y2}"
        sheet = beside([(shrunk, f"{objects}; {scale}"), (inset, where)])
        folder = self.output / "overview"
        folder.mkdir(exist_ok=True)
        encoded = cv2.imencode(".png", sheet)[1]
        (folder / f"{frame.name}.png").write_bytes(encoded.tobytes())
        self._windows, self._rles, self._classes = [], [], []


class _Pixels:
    """A reader of an image that is there as a whole."""

    def __init__(self, image: np.ndarray) -> None:
        self._image, self.shape = image, image.shape

    def read(self, window: Box) -> np.ndarray:
        x1, y1, x2, y2 = window
        return self._image[y1:y2, x1:x2]


def fullest(counts: np.ndarray, size: tuple[int, int]) -> Box:
    """Of parts of 512 x 512 px, or of the whole image, the one with most objects.

    Args:
        counts: (h, w) objects per cell of 128 px.
        size: (H, W) of the image.
    """
    cells = _INSET // _STEP
    sums = np.pad(counts.cumsum(0).cumsum(1), ((1, cells), (1, cells)), mode="edge")
    sums[0], sums[:, 0] = 0, 0
    inside = sums[cells:, cells:] - sums[:-cells, cells:] - sums[cells:, :-cells]
    inside += sums[:-cells, :-cells]
    row, column = np.unravel_index(inside.argmax(), inside.shape)
    y1, x1 = (max(min(n * _STEP, side - _INSET), 0) for n, side in zip((row, column), size))
    return int(x1), int(y1), min(int(x1) + _INSET, size[1]), min(int(y1) + _INSET, size[0])


def beside(pictures: Sequence[tuple[np.ndarray, str]]) -> np.ndarray:
    """Pictures (h, w, 3) beside each other on white, each with a line of text below."""
    height = max(len(picture) for picture, _ in pictures) + _CAPTION
    columns = []
    for picture, text in pictures:
        (text_width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
        width = max(picture.shape[1], text_width) + _GAP
        column = np.full((height, width, 3), 255, np.uint8)
        column[: len(picture), : picture.shape[1]] = picture
        place = (0, len(picture) + 22)
        cv2.putText(column, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, _BLACK, 1, cv2.LINE_AA)
        columns.append(column)
    return np.concatenate(columns, axis=1)[:, :-_GAP]


def _draw(
    picture: np.ndarray, bits: np.ndarray, corner: tuple[int, int], rgb: Sequence[int], factor: int
) -> None:
    """The outline of a mask (h, w) bool at ``corner`` (x, y), shrunk by ``factor``."""
    outlines, _ = cv2.findContours(
        bits.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=corner
    )
    shrunk = [np.floor_divide(points, factor).astype(np.int32) for points in outlines]
    cv2.polylines(picture, shrunk, True, rgb[::-1], 1)
