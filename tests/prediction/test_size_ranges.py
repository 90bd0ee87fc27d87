"""Objects that are larger than what tiles overlap by are found at a coarser resolution, once."""

import cv2
import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.structures import Boxes, Instances
from helpers.blobs import blob_predictor, compact

from rdsnet.data.windows import ArrayReader, read_reduced
from rdsnet.prediction import TiledPrediction, tiled_pass
from rdsnet.prediction.size_ranges import SizeRanges, once
from rdsnet.prediction.tiled_pass import CUT, NEAR_BORDER, WHOLE

SIZE = (900, 1200)
RED, BLUE = (0, 0, 200), (200, 0, 0)


def drawn(ellipses, size=SIZE):
    """(H, W, 3) uint8 BGR, and the mask (H, W) bool of every ((x, y), (a, b), colour)."""
    picture, masks = np.zeros((*size, 3), np.uint8), []
    for centre, axes, colour in ellipses:
        mask = cv2.ellipse(np.zeros(size, np.uint8), centre, axes, 0, 0, 360, 1, -1)
        picture[mask > 0] = colour
        masks.append(mask > 0)
    return picture, masks


def small_ones(seed=0):
    """A grid of little ellipses in the lower half of SIZE, some of them blue."""
    rng = np.random.default_rng(seed)
    return [
        ((x, y), (int(rng.integers(4, 18)), int(rng.integers(4, 18))), (RED, BLUE)[x // 60 % 2])
        for x in range(30, 1180, 60)
        for y in range(560, 880, 60)
    ]


def found_by(picture, predictor, **options):
    prediction = TiledPrediction(picture, predictor, tile=256, overlap=64, **options)
    parts = list(prediction)
    return prediction, [rle for part in parts for rle in part.pred_masks.rle()]


def assert_once(found, masks, least=0.9):
    """Every mask has one of those that were found, and no other is like it."""
    assert len(found) == len(masks)
    expected = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    overlaps = coco_mask.iou(found, expected, [0] * len(expected))
    assert overlaps.max(0).min() >= least
    assert ((overlaps > 0.2).sum(0) == 1).all()


LARGE = [((300, 250), (260, 200), RED), ((850, 240), (150, 190), BLUE)]


@pytest.mark.parametrize("large", [LARGE[:1], LARGE])
def test_large_objects_are_found_whole_and_small_ones_stay(large):
    predictor = blob_predictor()
    small = small_ones()
    picture, masks = drawn(large + small)
    prediction, found = found_by(picture, predictor)
    assert_once(found, masks)
    assert prediction.too_large == 0 and prediction.found_coarser == len(large)
    # Of the same tiles alone, the large ones are in pieces.
    prediction, pieces = found_by(picture, predictor, coarser=False)
    assert prediction.too_large > len(large) and prediction.found_coarser == 0
    assert len(pieces) > len(masks)


def test_small_objects_are_those_of_the_fine_pass():
    picture, masks = drawn(LARGE + small_ones())
    _, found = found_by(picture, blob_predictor())
    fine, small = drawn(small_ones())
    _, alone = found_by(fine, blob_predictor())
    assert {rle["counts"] for rle in alone} <= {rle["counts"] for rle in found}
    assert_once(alone, small, 1.0)


def test_where_nothing_is_cut_there_is_no_second_pass():
    predictor = blob_predictor()
    picture, masks = drawn(small_ones())
    prediction, found = found_by(picture, predictor)
    assert_once(found, masks, 1.0)
    assert len(predictor.model.seen) == len(prediction.tiles)


@pytest.mark.parametrize(("score", "is_second"), [(0.19, False), (0.21, True)])
def test_pieces_that_are_hardly_certain_cause_no_second_pass(score, is_second):
    picture, _ = drawn([((600, 200), (300, 150), RED)])
    predictor = blob_predictor()
    forward = predictor.model.forward

    def uncertain(batch):
        (result,) = forward(batch)
        result["instances"].scores = torch.full_like(result["instances"].scores, score)
        return [result]

    predictor.model.forward = uncertain
    prediction, _ = found_by(picture, predictor, score_threshold=0.05)
    assert (len(predictor.model.seen) > len(prediction.tiles)) == is_second


def test_a_coarser_pass_looks_only_where_something_is_cut(monkeypatch):
    picture, masks = drawn([((210, 200), (200, 150), RED), *small_ones()])
    predictor = blob_predictor()
    prediction, found = found_by(picture, predictor)
    assert_once(found, masks)
    looked_at = len(predictor.model.seen)
    assert prediction.found_coarser == 1

    everywhere = blob_predictor()
    monkeypatch.setattr(tiled_pass, "sees_some", lambda tile, boxes: True)
    _, same = found_by(picture, everywhere)
    assert [rle["counts"] for rle in same] == [rle["counts"] for rle in found]
    assert looked_at < len(everywhere.model.seen)


@pytest.mark.parametrize("cut", [CUT, NEAR_BORDER])
@pytest.mark.parametrize(("score", "counts"), [(0.1, False), (0.3, True)])
def test_where_to_look_is_all_that_may_be_cut_and_is_certain_to_some_degree(cut, score, counts):
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [50.0, 50.0, 90.0, 90.0]])
    windows = boxes.long().tolist()
    masks = compact(windows, [np.ones((9, 9), bool), np.ones((40, 40), bool)], (100, 100))
    found = Instances((100, 100), pred_boxes=Boxes(boxes), pred_masks=masks)
    found.scores = torch.tensor([0.9, score])
    found.pred_classes, found.cut = torch.zeros(2).long(), torch.tensor([WHOLE, cut])

    class Run(list):
        limit = 64

    ranges = SizeRanges()
    list(ranges.kept(Run([found])))
    assert ranges.pieces.tolist() == boxes[1:].tolist() * counts
    assert ranges.has_cut == (counts and cut == CUT)


def test_passes_end_when_the_image_is_one_tile():
    """An object as large as the image: at 1/8, 900 x 1200 px are 113 x 150."""
    picture, masks = drawn([((600, 450), (590, 440), RED)])
    predictor = blob_predictor()
    prediction, found = found_by(picture, predictor)
    assert_once(found, masks)
    assert prediction.found_coarser == 1 and prediction.too_large == 0
    assert predictor.model.seen[-1] == (round(900 / 8), round(1200 / 8))
    assert all(max(size) <= 256 for size in predictor.model.seen)


def test_sizes_around_the_limit_are_neither_lost_nor_doubled():
    """The overlap is 64 px: what is larger may be cut, what is smaller is not."""
    ellipses = [((600, 120), (300, 100), RED)]  # so that there is a second pass
    sides = iter([21, 24, 27, 28, 29, 30, 31, 32, 33, 34, 36, 40, 45, 50] * 9)
    ellipses += [
        ((x, y), (next(sides),) * 2, RED)
        for y in range(290, 890, 111)
        for x in range(60, 1190, 107)
    ]
    picture, masks = drawn(ellipses)
    _, found = found_by(picture, blob_predictor())
    assert_once(found, masks, 0.85)


def test_what_a_coarser_pass_takes_for_another_class_explains_nothing():
    """What was cut and never found whole is still given, and counted."""
    predictor = blob_predictor()
    picture, masks = drawn([((600, 200), (300, 150), RED)])
    forward = predictor.model.forward

    def changed(batch):
        (result,) = forward(batch)
        if batch[0]["width"] > 256:  # a coarser pass takes it for something else
            result["instances"].pred_classes += 1
        return [result]

    predictor.model.forward = changed
    prediction, found = found_by(picture, predictor)
    assert prediction.found_coarser == 0 and prediction.too_large > 1
    assert len(found) > 2


def test_a_coarser_pass_is_believed_where_it_explains_a_piece():
    """(x1, x2) of squares, the pass, and how they lie in what their tile sees."""
    described = [
        ((0, 50), 0, WHOLE),
        ((60, 110), 0, WHOLE),
        ((0, 110), 1, WHOLE),  # a clump of both
        ((200, 260), 0, CUT),
        ((200, 330), 1, CUT),  # holds the piece, and is one itself
        ((200, 500), 2, WHOLE),
        ((600, 700), 0, CUT),  # nothing explains it
        ((690, 890), 1, WHOLE),  # beside it
    ]
    windows = [(x1, 0, x2, x2 - x1) for (x1, x2), _, _ in described]
    crops = [np.ones((y2, y2), bool) for _, _, _, y2 in windows]
    masks = compact(windows, crops, SIZE)
    found = Instances(SIZE, pred_boxes=Boxes(masks.windows.float()), pred_masks=masks)
    found.pred_classes = torch.zeros(len(windows), dtype=torch.int64)
    found.pass_number = torch.tensor([number for _, number, _ in described])
    found.cut = torch.tensor([cut for _, _, cut in described])
    expected = [True, True, False, False, False, True, True, False]
    assert once(found).tolist() == expected
    order = torch.tensor([5, 2, 7, 0, 6, 3, 1, 4])
    assert once(found[order]).tolist() == [expected[n] for n in order.tolist()]


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_it_holds_for_images_that_are_resized_for_the_network(scale):
    picture, masks = drawn(LARGE + small_ones())
    prediction = TiledPrediction(picture, blob_predictor(), tile=384, overlap=96, scale=scale)
    parts = list(prediction)
    found = [rle for part in parts for rle in part.pred_masks.rle()]
    assert_once(found, masks, 0.7)
    assert prediction.found_coarser == 2


@pytest.mark.parametrize("window", [(0, 0, 1200, 900), (128, 64, 701, 333), (5, 3, 6, 4)])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_a_reduced_window_is_the_mean_of_pixels(window, factor, monkeypatch):
    picture = np.random.default_rng(4).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    monkeypatch.setattr("rdsnet.data.windows._REDUCED_BYTES", 100_000)
    x1, y1, x2, y2 = window
    found = read_reduced(ArrayReader(picture), window, factor)
    cut = picture[y1:y2, x1:x2].astype(float)
    assert found.dtype == np.uint8
    assert found.shape == (-(-(y2 - y1) // factor), -(-(x2 - x1) // factor), 3)
    for y in (0, len(found) // 2, len(found) - 1):
        for x in (0, found.shape[1] // 2, found.shape[1] - 1):
            cell = cut[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
            assert np.abs(found[y, x] - cell.mean((0, 1))).max() <= 0.5


def test_numbers_that_are_no_photograph_are_reduced_too():
    class Reader:
        shape = (64, 96, 5)
        values = np.random.default_rng(1).normal(size=shape).astype(np.float32)

        def read(self, window):
            x1, y1, x2, y2 = window
            return self.values[y1:y2, x1:x2]

    found = read_reduced(Reader(), (0, 0, 96, 64), 4)
    expected = Reader.values.reshape(16, 4, 24, 4, 5).mean((1, 3))
    assert found.dtype == np.float32
    assert np.allclose(found, expected, atol=1e-6)
