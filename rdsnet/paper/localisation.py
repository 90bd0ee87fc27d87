"""Fig. 1: the worst localisation errors of the regressed boxes, and what MBRM made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog

from rdsnet.data.channels import read_picture
from rdsnet.evaluation.box_ap import ImageBoxes
from rdsnet.fitting.profiles import ImageProfiles
from rdsnet.visualization.sheet import captioned, contact_sheet

_WORST, _COLUMNS = 8, 4
# Of a picture, pixels.
WIDTH = 360
# Of its caption: readable where four stand beside each other on a page.
FONT_SIZE = 20
# A picture shows so many times the object's box.
_AROUND = 1.8
# RGB
TRUE, REGRESSED, REFINED = (40, 190, 90), (240, 140, 30), (60, 130, 255)


@dataclass(frozen=True)
class EdgeError:
    """A detection and how far its edges are from those of its object.

    Attributes:
        image_id: of its image.
        label: class, 0 .. K-1.
        true, regressed, refined: boxes, XYXY in pixels.
        before, after: the largest distance of an edge from the true one as a share of the object's
            side, regressed and refined.
    """

    image_id: int | str
    label: int
    true: list[float]
    regressed: list[float]
    refined: list[float]
    before: float
    after: float

    @property
    def size(self) -> float:
        """Square root of the area of the true box, pixels."""
        x1, y1, x2, y2 = self.true
        return ((x2 - x1) * (y2 - y1)) ** 0.5


def worst_errors(
    images: Sequence[ImageProfiles], refined: Sequence[ImageBoxes], least_size: float = 0
) -> list[EdgeError]:
    """The worst localisation error of the regressed boxes in every image, worst first.

    Only detections count that have found an object (IoU at least 0.5, same class). What the
    refinement made of them plays no part in the choice.

    Args:
        refined: the same detections.
        least_size: square root of the area of an object's box, pixels.
    """
    worst = []
    for image, after in zip(images, refined, strict=True):
        sizes = (image.gt_boxes[:, 2:] - image.gt_boxes[:, :2]).prod(1).sqrt()
        found = sizes >= least_size  # not where it is NaN: nothing found
        if not found.any():
            continue
        true = image.gt_boxes[found]
        sides = (true[:, 2:] - true[:, :2]).clamp(min=1).repeat(1, 2)
        before = ((image.boxes[found] - true) / sides).abs().amax(1)
        later = ((after.boxes[found] - true) / sides).abs().amax(1)
        n = int(before.argmax())
        boxes = (true[n], image.boxes[found][n], after.boxes[found][n])
        worst.append(
            EdgeError(
                image.image_id,
                int(image.classes[found][n]),
                *([round(x, 2) for x in box.tolist()] for box in boxes),
                before[n].item(),
                later[n].item(),
            )
        )
    return sorted(worst, key=lambda error: -error.before)


def write_fig_1(
    images: Sequence[ImageProfiles], refined: Sequence[ImageBoxes], name: str, path: Path
) -> list[dict]:
    """Write the eight worst as pictures, if there are any.

    Args:
        name: the data set's.

    Returns:
        What is shown, see :class:`EdgeError`.
    """
    errors = worst_errors(images, refined)[:_WORST]
    files = {record["image_id"]: record["file_name"] for record in DatasetCatalog.get(name)}
    cells = [_draw_error(read_picture(files[error.image_id]), error) for error in errors]
    if cells:
        rows = [cells[k : k + _COLUMNS] for k in range(0, len(cells), _COLUMNS)]
        footer = "green: true box; orange: as regressed; blue: after MBRM"
        write_jpeg(contact_sheet(rows, footer=footer, cell_width=WIDTH), path)
    return [vars(error) for error in errors]


def _draw_error(image: np.ndarray, error: EdgeError) -> np.ndarray:
    """The three boxes on the surroundings of the object."""
    boxes = (error.true, TRUE), (error.regressed, REGRESSED), (error.refined, REFINED)
    canvas = surroundings(image, error.true)
    draw_boxes(canvas, error.true, image.shape, boxes)
    text = f"off by {error.before:.0%}, then {error.after:.0%}"
    return captioned(canvas, text, WIDTH, FONT_SIZE)


def surroundings(image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """What is around a box, (WIDTH, WIDTH, 3); white where the image has ended."""
    left, top, side = _view(box, image.shape)
    scale = WIDTH / side
    # OpenCV counts from the centre of the first pixel.
    matrix = np.array(
        [[scale, 0, scale * (0.5 - left) - 0.5], [0, scale, scale * (0.5 - top) - 0.5]]
    )
    return cv2.warpAffine(
        image, matrix, (WIDTH, WIDTH), flags=cv2.INTER_LINEAR, borderValue=(255, 255, 255)
    )


def draw_boxes(
    canvas: np.ndarray,
    around: Sequence[float],
    shape: Sequence[int],
    boxes: Sequence[tuple[Sequence[float], tuple[int, int, int]]],
) -> None:
    """Draw (box, colour) onto :func:`surroundings` of the box ``around`` in an image (H, W, 3)."""
    left, top, side = _view(around, shape)
    for box, color in boxes:
        corners = [round((v - s) * WIDTH / side) for v, s in zip(box, (left, top) * 2)]
        cv2.rectangle(canvas, corners[:2], corners[2:], color, 2, cv2.LINE_AA)


def _view(box: Sequence[float], shape: Sequence[int]) -> tuple[float, float, float]:
    """Left, top and side of the square that is shown, pixels: inside the image where it can be."""
    x1, y1, x2, y2 = box
    height, width = shape[:2]
    side = min(_AROUND * max(x2 - x1, y2 - y1, 8), max(height, width))
    left, top = (
        min(max((start + end - side) / 2, 0), length - side)
        if side < length
        else (length - side) / 2
        for start, end, length in ((x1, x2, width), (y1, y2, height))
    )
    return left, top, side


def write_jpeg(sheet: np.ndarray, path: Path) -> None:
    """Write a (H, W, 3) uint8 RGB picture."""
    path.write_bytes(cv2.imencode(".jpg", sheet[:, :, ::-1])[1].tobytes())
