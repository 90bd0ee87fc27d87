"""The overview of a large image: everything is where it was, and the fullest part as it is."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from helpers.blobs import compact
from helpers.predicting import picture

from rdsnet.data.windows import LargeImage
from rdsnet.prediction.sources import Frame
from rdsnet.prediction.writers import build_writers
from rdsnet.prediction.writers.overview import fullest
from rdsnet.visualization.objects import strong_color


@pytest.mark.parametrize("size", [(1300, 2100), (300, 200), (512, 513), (700, 512)])
def test_the_fullest_part_is_that_of_all_places_on_the_grid(size):
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 9, (-(-size[0] // 128), -(-size[1] // 128)))
    x1, y1, x2, y2 = fullest(counts, size)
    assert (x2 - x1, y2 - y1) == (min(size[1], 512), min(size[0], 512))
    assert 0 <= x1 and x2 <= size[1] and 0 <= y1 and y2 <= size[0]
    rows, columns = counts.shape
    best = max(counts[r : r + 4, c : c + 4].sum() for r in range(rows) for c in range(columns))
    # At the end of the image the part begins before its first cell, so that it is no smaller.
    row, column = -(-y1 // 128), -(-x1 // 128)
    assert counts[row : row + 4, column : column + 4].sum() == best


def squares(corners, side, size, category=0):
    windows = [(x, y, x + side, y + side) for x, y in corners]
    masks = compact(windows, [np.ones((side, side), bool)] * len(windows), size)
    boxes = Boxes(masks.windows.float())
    classes = torch.full((len(windows),), category)
    return Instances(size, pred_boxes=boxes, pred_masks=masks, pred_classes=classes)


def test_outlines_lie_on_the_objects_in_both_pictures(tmp_path):
    size = (1500, 4500)
    image = np.clip(picture(*size), 0, 99)
    np.save(tmp_path / "image.npy", image)
    full = [(4010 + 40 * k, 900 + 40 * k) for k in range(6)]
    (writer,) = build_writers(["overview"], tmp_path, (None, [1, 2]))
    empty = np.broadcast_to(np.uint8(0), image.shape)
    with writer, LargeImage(str(tmp_path / "image.npy")) as file:
        for part, found in enumerate(
            [squares([(300, 300)], 90, size, 1), squares([], 1, size), squares(full, 24, size)]
        ):
            frame = Frame("image", Path("image.npy"), empty, part=part, file=file)
            writer.write(frame, found)
    sheet = cv2.imread(str(tmp_path / "overview" / "image.png"))
    factor = 3  # 4500 px become 1500
    shrunk, inset = sheet[:500, :1500], sheet[:512, 1516 : 1516 + 512]
    assert sheet.shape == (512 + 36, 1516 + 512, 3)
    first, second = (np.array(strong_color(k)[::-1]) for k in (0, 1))
    is_first, is_second = ((shrunk == c).all(2) for c in (first, second))
    rows, columns = np.nonzero(is_second)
    assert (rows.min(), rows.max() + 1) == (300 // factor, 390 // factor)
    assert (columns.min(), columns.max() + 1) == (300 // factor, 390 // factor)
    assert not is_second[110:120, 110:120].any()  # an outline, not the inside
    for x, y in full:
        assert is_first[y // factor, x // factor]
    # The first place that holds all six centres. It is cut from the image, but for the outlines.
    x1, y1 = 3712, 640
    expected = image[y1 : y1 + 512, x1 : x1 + 512]
    drawn = (inset == first).all(2)
    beyond = full[-1][0] + 24 - (x1 + 512)  # of the last square, columns that lie outside
    assert drawn.sum() == 6 * (4 * 24 - 4) - 24 - 2 * (beyond - 1)
    assert np.array_equal(inset[~drawn], expected[~drawn])
    for x, y in full:
        assert drawn[y - y1, x - x1 : min(x - x1 + 24, 512)].all()
    # Elsewhere the shrunk image has the means of pixels.
    mean = image[600:603, 900:903].mean((0, 1))
    assert np.abs(shrunk[200, 300] - mean).max() <= 0.5


def test_an_image_that_is_there_as_a_whole_is_not_shrunk(tmp_path):
    image = np.clip(picture(100, 160), 0, 99)
    (writer,) = build_writers(["overview"], tmp_path, (None, [1]))
    with writer:
        writer.write(Frame("a", Path("a.png"), image), squares([(20, 30)], 10, (100, 160)))
        writer.write(Frame("b", Path("b.png"), image), squares([], 1, (100, 160)))
    for name, outline in (("a", 36), ("b", 0)):
        sheet = cv2.imread(str(tmp_path / "overview" / f"{name}.png"))
        colour = np.array(strong_color(0)[::-1])
        assert (sheet[:100, :160] == colour).all(2).sum() == outline
