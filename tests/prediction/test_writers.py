"""The formats by name, and outlines of masks as labelme shows them."""

import cv2
import numpy as np
import pycocotools.mask as coco_mask

from rdsnet.commands import predict as command
from rdsnet.prediction.writers import WRITERS
from rdsnet.prediction.writers.labelme import outlines


def polygon_mask(polygons, height, width):
    """Pixels whose centres are inside, by counting crossings of a ray to the right."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), bool)
    for polygon in polygons:
        for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            if y1 == y2:
                continue
            crosses = (np.minimum(y1, y2) <= y) & (y < np.maximum(y1, y2))
            inside ^= crosses & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
    return inside


def test_the_command_offers_every_format_that_there_is():
    assert command.FORMATS == tuple(WRITERS)


def test_outline_of_a_rectangle_and_of_a_pixel_follow_the_pixel_borders():
    mask = np.zeros((20, 30), np.uint8)
    mask[3:12, 5:25] = 1
    mask[15, 28] = 1
    polygons = outlines(mask)
    corners = [sorted(map(tuple, polygon.tolist())) for polygon in polygons]
    assert sorted(corners) == [
        [(5, 3), (5, 12), (25, 3), (25, 12)],
        [(28, 15), (28, 16), (29, 15), (29, 16)],
    ]


def test_outlines_enclose_their_masks():
    y, x = np.mgrid[:80, :100]
    blob = (((x - 40) / 30) ** 2 + ((y - 40) / 20) ** 2 < 1) | (abs(x - y) < 6)
    thin = np.zeros_like(blob)
    thin[70, 20:90] = True  # a line of one pixel
    for mask in (blob, thin):
        drawn = polygon_mask(outlines(mask.astype(np.uint8)), 80, 100)
        # Nowhere more than a pixel off.
        for one, other in ((drawn, mask), (mask, drawn)):
            grown = cv2.dilate(other.astype(np.uint8), np.ones((3, 3), np.uint8))
            assert (one <= grown.astype(bool)).all() and other.any()


def test_outline_leaves_out_holes_and_empty_masks_have_none():
    mask = np.zeros((30, 30), np.uint8)
    assert outlines(mask) == []
    mask[5:25, 5:25] = 1
    mask[10:20, 10:20] = 0
    rle = coco_mask.encode(np.asfortranarray(mask))
    polygons = outlines(coco_mask.decode(rle))
    assert len(polygons) == 1
    assert polygon_mask(polygons, 30, 30).sum() == 20 * 20
