"""Polygons inside others: noticed, and cut out when the user says that they are holes."""

import json

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from helpers.coco_masks import HEIGHT, WIDTH

from rdsnet.cli import main
from rdsnet.data.checks import check_coco
from rdsnet.data.holes import hole_findings, inner_polygons, inner_polygons_as_holes, with_holes

SIZE = (90, 120)


def square(x1, y1, x2, y2, turned=False):
    points = [x1, y1, x2, y1, x2, y2, x1, y2]
    return points if not turned else [v for k in (0, 3, 2, 1) for v in points[2 * k : 2 * k + 2]]


def drawn(polygon):
    """(H, W) bool, as pycocotools draws one polygon."""
    return mask_util.decode(mask_util.frPyObjects([polygon], *SIZE))[..., 0].astype(bool)


def mask(polygons):
    rle = with_holes(polygons, SIZE)
    assert isinstance(rle["counts"], str) and rle["size"] == list(SIZE)
    return mask_util.decode(rle).astype(bool)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_hole_is_cut_out_whatever_its_direction_and_place_in_the_list(turned, order):
    outer, hole = square(10, 8, 70, 60), square(25.3, 20.7, 51.2, 44.9, turned)
    polygons = [(outer, hole)[k] for k in order]
    assert inner_polygons(polygons) == 1
    np.testing.assert_array_equal(mask(polygons), drawn(outer) & ~drawn(hole))


def test_islands_in_holes_are_part_of_the_object():
    """Four nested squares and one aside: nested ones change the side at each border."""
    nested = [square(5 + 8 * k, 5 + 7 * k, 85 - 8 * k, 80 - 7 * k) for k in range(4)]
    aside = square(95, 10, 110, 30)
    polygons = [nested[2], aside, nested[0], nested[3], nested[1]]
    assert inner_polygons(polygons) == 3
    expected = np.logical_xor.reduce([drawn(polygon) for polygon in polygons])
    np.testing.assert_array_equal(mask(polygons), expected)


def test_every_part_keeps_its_own_holes():
    parts = [square(2, 2, 50, 50), square(60, 2, 110, 50)]
    holes = [square(10, 10, 20, 20), square(30, 30, 40, 40), square(70, 12, 90, 40)]
    assert inner_polygons([*parts, *holes]) == 3
    expected = np.logical_or.reduce([drawn(p) for p in parts])
    expected &= ~np.logical_or.reduce([drawn(p) for p in holes])
    np.testing.assert_array_equal(mask([*holes, *parts]), expected)


def test_a_hole_is_not_cut_out_of_another_part_that_reaches_into_it():
    outer, hole, other = square(5, 5, 60, 60), square(15, 15, 50, 50), square(40, 20, 100, 40)
    assert inner_polygons([outer, hole, other]) == 1
    expected = drawn(outer) & ~drawn(hole) | drawn(other)
    np.testing.assert_array_equal(mask([outer, hole, other]), expected)


def test_a_hole_of_two_parts_that_overlap_is_one():
    """It lies in both, which is no island: neither of the two lies in the other."""
    a, b, hole = square(5, 5, 60, 60), square(20, 10, 90, 70), square(30, 20, 50, 50)
    expected = (drawn(a) | drawn(b)) & ~drawn(hole)
    np.testing.assert_array_equal(mask([a, b, hole]), expected)


@pytest.mark.parametrize(
    "other",
    [
        square(40, 10, 60, 40),  # side by side
        square(30, 20, 60, 50),  # overlapping
        square(10, 20, 30, 30),  # inside, along the border
        square(50, 50, 70, 70),  # apart
        square(10, 10, 40, 40),  # the same
        [10, 10, 25, 15, 20, 25],  # inside, touching at a corner
    ],
)
def test_polygons_that_touch_overlap_or_lie_apart_are_no_holes(other):
    assert inner_polygons([square(10, 10, 40, 40), other]) == 0


def test_polygons_that_cross_themselves_are_taken_as_they_are_drawn():
    bow = [10, 10, 70, 70, 70, 10, 10, 70]  # two triangles that meet at (40, 40)
    assert inner_polygons([bow, square(60, 35, 66, 45)]) == 1  # in the right one
    assert inner_polygons([bow, square(35, 60, 45, 66)]) == 0  # below
    assert inner_polygons([[5, 5, 50, 50, 80, 80], square(20, 20, 24, 24)]) == 0  # no area


def test_the_outlines_that_opencv_finds_give_the_mask_again():
    """A ring with an island; contours run through the outermost pixels of the object."""
    truth = np.zeros(SIZE, np.uint8)
    cv2.circle(truth, (60, 45), 40, 1, -1)
    cv2.circle(truth, (60, 45), 26, 0, -1)
    cv2.circle(truth, (60, 45), 12, 1, -1)
    contours, _ = cv2.findContours(truth, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    polygons = [contour.reshape(-1).astype(float).tolist() for contour in contours]
    assert len(polygons) == 3 and inner_polygons(polygons) == 2
    filled = np.logical_or.reduce([drawn(p) for p in polygons])
    # Drawn contours lose half a pixel all around, so the border of pixels is not compared.
    near = cv2.dilate(truth, np.ones((3, 3))) != cv2.erode(truth, np.ones((3, 3)))
    np.testing.assert_array_equal(mask(polygons)[~near], truth.astype(bool)[~near])
    assert (filled != truth)[~near].sum() > 1000  # as it was read before


def ring(coco, id_):
    """Give an annotation of the fixture, a square of 20 x 15, a hole."""
    coco.annotation(id_)["segmentation"].append([15, 9, 25, 9, 25, 16, 15, 16])


def test_check_data_warns_and_the_repair_cuts_the_holes_out(coco, tmp_path, capsys):
    ring(coco, 11)
    ring(coco, 18)
    findings = list(hole_findings(coco.content))
    assert [f.where for f in findings] == ["annotation 11 of image 7", "annotation 18 of image 9"]
    arguments = [coco.write(), coco.image_root, "--sheet", str(tmp_path / "s.png")]
    assert main(["check-data", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "polygon inside another: 2" in printed and "annotation 11 of image 7" in printed

    fixed = tmp_path / "fixed.json"
    assert main(["check-data", *arguments, "--fix", str(fixed)]) == 0
    unchanged = {a["id"]: a["segmentation"] for a in json.loads(fixed.read_text())["annotations"]}
    assert unchanged[11] == coco.annotation(11)["segmentation"]

    fixed.unlink()
    words = ["--fix", str(fixed), "--inner-polygons-are-holes"]
    assert main(["check-data", *arguments, *words]) == 0
    assert "2 objects with holes written as RLE" in capsys.readouterr().out
    after = {a["id"]: a for a in check_coco(fixed, coco.image_root)["annotations"]}
    ring_mask = mask_util.decode(after[11]["segmentation"])
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[5:20, 10:30] = 1
    expected[9:16, 15:25] = 0
    np.testing.assert_array_equal(ring_mask, expected)
    assert after[11]["area"] == 20 * 15 - 10 * 7 and after[11]["bbox"] == [10, 5, 20, 15]
    assert after[15]["segmentation"] == coco.annotation(15)["segmentation"]


def test_an_object_that_would_vanish_stays_as_it_is(coco):
    """A frame of a tenth of a pixel: both of its outlines are drawn as the same pixels."""
    frame = [[10, 5, 30, 5, 30, 20, 10, 20], [10.1, 5.1, 29.9, 5.1, 29.9, 19.9, 10.1, 19.9]]
    coco.annotation(11)["segmentation"] = frame
    assert inner_polygons(frame) == 1
    content, count = inner_polygons_as_holes(coco.content)
    assert count == 0 and content == coco.content
