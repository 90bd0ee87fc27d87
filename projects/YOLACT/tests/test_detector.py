"""YOLACT's detector against its definition: anchors, matching, box coding, losses, Fast NMS."""

import copy
import math
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, pairwise_iou
from helpers.rounding import ELEMENTARY, assert_within, gamma

import rdsnet
from rdsnet.projects.yolact import fast_nms, hard_negatives, match_anchors
from rdsnet.projects.yolact.anchors import SquareAnchorGenerator
from rdsnet.projects.yolact.matching import BACKGROUND, FOREGROUND, IGNORED
from rdsnet.projects.yolact.object_stream import YOLACTPredictions

pytestmark = pytest.mark.numeric

CONFIGS = Path(__file__).parents[1] / "configs"
K = 3


@pytest.fixture(scope="module")
def stream():
    """The object stream of the small RDSNet_s, K = 3 classes."""
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file(str(CONFIGS / "rdsnet_s_small_nuclei.yaml"))
    cfg.MODEL.RETINANET.NUM_CLASSES = K
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    return build_model(cfg).object_stream


def random_boxes(count, size=200.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator) * size
    return torch.cat([corners.amin(1), corners.amax(1) + 1], dim=1)


# ----------------------------------------------------------------------------- anchors


def test_a_550_px_image_has_19248_anchors_at_the_centres_of_its_cells():
    generator = SquareAnchorGenerator(
        input_size=550,
        sizes=[[24], [48], [96], [192], [384]],
        aspect_ratios=[[1.0, 0.5, 2.0]],
        strides=[8, 16, 32, 64, 128],
    )
    grids = [69, 35, 18, 9, 5]  # 550 halved and rounded up, three to seven times
    levels = generator([torch.zeros(1, 1, n, n) for n in grids])
    assert sum(map(len, levels)) == 3 * sum(n * n for n in grids) == 19248

    expected = []
    for n, size in zip(grids, (24, 48, 96, 192, 384)):
        for y in range(n):
            for x in range(n):
                for ratio in (1, 1 / 2, 2):
                    half = size * math.sqrt(ratio) / 2  # squares, by the released code
                    cx, cy = (x + 0.5) / n * 550, (y + 0.5) / n * 550
                    expected.append((cx - half, cy - half, cx + half, cy + half))
    anchors = Boxes.cat(levels).tensor
    expected = torch.tensor(expected, dtype=torch.float64)
    assert_within(anchors, expected, gamma(8) * (550 + 384))  # float32 coordinates of that size
    first = torch.tensor([550 / 138 - 12, 550 / 138 - 12, 550 / 138 + 12, 550 / 138 + 12])
    assert_within(anchors[0], first, gamma(8) * 24)


def test_without_a_fixed_input_size_anchors_are_a_stride_apart(stream):
    levels = stream.anchor_generator([torch.zeros(1, 1, 4, 6)] + [torch.zeros(1, 1, 1, 1)] * 4)
    centres = levels[0].get_centers()
    assert centres[0].tolist() == [4, 4] and centres[-1].tolist() == [44, 28]


# ---------------------------------------------------------------------------- matching


def test_iou_decides_between_foreground_ignored_and_background():
    anchors = Boxes(
        torch.tensor(
            [
                [0.0, 0, 10, 10],  # the object's own
                [0, 0, 10, 5],  # IoU 0.5
                [0, 0, 10, 4.9],  # 0.49
                [0, 0, 10, 4],  # 0.4
                [0, 0, 10, 3.9],  # 0.39
            ]
        )
    )
    labels, matched = match_anchors(Boxes(torch.tensor([[0.0, 0, 10, 10]])), anchors)
    assert labels.tolist() == [FOREGROUND, FOREGROUND, IGNORED, IGNORED, BACKGROUND]
    assert matched[labels == FOREGROUND].tolist() == [0, 0]


def test_every_object_gets_an_anchor_of_its_own():
    # Both objects like anchor 0 best; the one with the larger IoU has it, the other takes the next.
    anchors = Boxes(torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [8, 0, 40, 10]]))
    objects = Boxes(torch.tensor([[0.0, 0, 9, 3], [0, 0, 10, 9], [100, 100, 101, 101]]))
    labels, matched = match_anchors(objects, anchors)
    assert matched[0] == 1
    assert sorted(matched.tolist()) == [0, 1, 2] and (labels == FOREGROUND).all()


def naive_match(objects, anchors, low=0.4, high=0.5):
    """The released code's procedure, anchor by anchor and object by object."""
    iou = pairwise_iou(Boxes(objects), Boxes(anchors)).tolist()
    labels, matched = [], []
    for r in range(len(anchors)):
        column = [row[r] for row in iou]
        best = max(column)
        matched.append(column.index(best))
        labels.append(FOREGROUND if best >= high else IGNORED if best >= low else BACKGROUND)
    free_objects, free_anchors = set(range(len(objects))), set(range(len(anchors)))
    while free_objects:
        _, m, r = max((iou[m][r], -m, -r) for m in free_objects for r in free_anchors)
        labels[-r], matched[-r] = FOREGROUND, -m
        free_objects.remove(-m)
        free_anchors.remove(-r)
    return labels, matched


@pytest.mark.parametrize("seed", range(5))
def test_matching_follows_the_definition(seed):
    objects, anchors = random_boxes(7, seed=seed), random_boxes(60, seed=100 + seed)
    labels, matched = match_anchors(Boxes(objects), Boxes(anchors))
    expected_labels, expected_matched = naive_match(objects, anchors)
    assert labels.tolist() == expected_labels
    foreground = labels == FOREGROUND
    assert matched[foreground].tolist() == torch.tensor(expected_matched)[foreground].tolist()


def test_anchors_inside_a_crowd_are_ignored_unless_they_have_an_object():
    anchors = Boxes(torch.tensor([[0.0, 0, 10, 10], [50, 0, 60, 10], [57, 0, 67, 10]]))
    crowd = Boxes(torch.tensor([[0.0, 0, 60, 100]]))  # holds all, all, and 0.3 of the anchors
    labels, _ = match_anchors(Boxes(torch.tensor([[0.0, 0, 10, 10]])), anchors, crowd)
    assert labels.tolist() == [FOREGROUND, IGNORED, BACKGROUND]


def test_where_objects_outnumber_anchors_every_anchor_has_one():
    objects, anchors = random_boxes(9, seed=5), random_boxes(4, seed=6)
    labels, matched = match_anchors(Boxes(objects), Boxes(anchors))
    assert (labels == FOREGROUND).all() and len(set(matched.tolist())) == 4
    best = pairwise_iou(Boxes(objects), Boxes(anchors)).flatten().argmax()
    assert matched[best % 4] == best // 4


def test_ground_truth_with_crowds_keeps_the_numbers_of_its_objects(stream):
    predictions = predictions_for(stream)
    boxes = torch.tensor([[0.0, 0, 64, 64], [10, 10, 22, 22], [40, 40, 52, 52]])
    gt = Instances((64, 64), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([0, 1, 2]))
    gt.gt_is_crowd = torch.tensor([True, False, False])
    labels, object_index = stream.label_anchors(predictions, [gt])
    assert object_index[labels == FOREGROUND].unique().tolist() == [1, 2]
    assert (labels == BACKGROUND).sum() < (labels == IGNORED).sum()


# ------------------------------------------------------------------------------ losses


def predictions_for(stream, images=1, seed=0, cells=8, dtype=torch.float32):
    """Random predictions for 64 x 64 px images."""
    generator = torch.Generator().manual_seed(seed)
    grids = [(cells, cells), (4, 4), (2, 2), (1, 1), (1, 1)]
    anchors = stream.anchor_generator([torch.zeros(images, 1, *grid) for grid in grids])
    rand = [torch.randn(images, len(a), K + 5, generator=generator).to(dtype) for a in anchors]
    return YOLACTPredictions(
        [x[..., : K + 1].clone().requires_grad_() for x in rand],
        [x[..., K + 1 :].clone().requires_grad_() for x in rand],
        [],
        anchors,
        torch.randn(images, K, cells, cells, generator=generator).to(dtype),
    )


def two_objects(size=64):
    masks = torch.zeros(2, size, size, dtype=torch.bool)
    masks[0, 8:24, 8:24] = True
    masks[1, 30:60, 20:52] = True
    return Instances(
        (size, size),
        gt_boxes=Boxes(torch.tensor([[8.0, 8, 24, 24], [20, 30, 52, 60]])),
        gt_classes=torch.tensor([2, 0]),
        gt_masks=masks,
    )


def test_hard_negatives_are_the_least_sure_background_of_each_image():
    labels = torch.tensor([[1, 0, 0, 0, -1, 0, 0], [0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, -1, -1, 0]])
    loss = torch.tensor([[9.0, 1, 5, 2, 9, 4, 3]]).repeat(3, 1)
    chosen = hard_negatives(loss, labels, per_positive=3)
    assert chosen[0].nonzero().squeeze(1).tolist() == [2, 5, 6]  # not 0 (positive), not 4 (ignored)
    assert not chosen[1].any()  # nothing found, nothing to balance
    assert chosen[2].nonzero().squeeze(1).tolist() == [2, 3, 6]  # all there are, not 3 x 2


def test_detection_losses_are_those_of_the_definition(stream):
    predictions = predictions_for(stream, images=2, dtype=torch.float64)
    nothing = two_objects()[torch.zeros(2, dtype=torch.bool)]
    gts = [two_objects(), nothing]
    losses, positives = stream.losses(predictions, gts)

    anchors = Boxes.cat(predictions.anchors).tensor.double()
    logits, deltas = (torch.cat(x, 1)[0] for x in (predictions.logits, predictions.deltas))
    labels, matched = naive_match(gts[0].gt_boxes.tensor, anchors.float())
    found = [r for r, label in enumerate(labels) if label == FOREGROUND]
    assert positives.image_index.tolist() == [0] * len(found)
    assert positives.places.tolist() == found
    assert positives.object_index.tolist() == [matched[r] for r in found]

    cls = box = 0.0
    for r in found:
        g = gts[0].gt_boxes.tensor[matched[r]].double()
        a = anchors[r]
        wa, ha, wg, hg = a[2] - a[0], a[3] - a[1], g[2] - g[0], g[3] - g[1]
        target = torch.stack(
            [
                ((g[0] + g[2]) / 2 - (a[0] + a[2]) / 2) / wa / 0.1,
                ((g[1] + g[3]) / 2 - (a[1] + a[3]) / 2) / ha / 0.1,
                (wg / wa).log() / 0.2,
                (hg / ha).log() / 0.2,
            ]
        )
        distance = (deltas[r] - target).abs()
        box += torch.where(distance < 1, distance**2 / 2, distance - 0.5).sum()
        cls -= logits[r].softmax(0)[gts[0].gt_classes[matched[r]]].log()
    background = [r for r, label in enumerate(labels) if label == BACKGROUND]
    losses_as_background = sorted(
        (-logits[r].softmax(0)[K].log() for r in background), reverse=True
    )
    cls += sum(losses_as_background[: 3 * len(found)])
    expected = {
        "loss_box_reg": (1.5 * box / len(found)).item(),
        "loss_cls": (cls / len(found)).item(),
    }
    # Targets are of float32 boxes: coordinates up to 64 px, in tenths of an anchor's side.
    smallest = (anchors[:, 2:] - anchors[:, :2]).min().item()
    targets = gamma(8 + ELEMENTARY) * 64 / smallest / 0.1
    limit = 1.5 * 4 * targets
    assert losses["loss_box_reg"].item() == pytest.approx(expected["loss_box_reg"], abs=limit)
    assert losses["loss_cls"].item() == pytest.approx(expected["loss_cls"])


def test_semantic_loss_is_the_definition_on_p3(stream):
    predictions = predictions_for(stream, dtype=torch.float64)
    gt = two_objects()
    loss = float(stream.semantic_loss(predictions, [gt]))
    # A cell of 8 x 8 px is of a class when bilinear interpolation at its centre exceeds 0.5.
    targets = torch.zeros(K, 8, 8)
    for mask, category in zip(gt.gt_masks, gt.gt_classes):
        for y in range(8):
            for x in range(8):
                middle = mask[8 * y + 3 : 8 * y + 5, 8 * x + 3 : 8 * x + 5]
                if middle.float().mean() > 0.5:
                    targets[category, y, x] = 1
    p = predictions.semantic[0].sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum() / 64
    assert targets.sum() > 10 and loss == pytest.approx(float(expected))


def test_crowds_have_no_semantic_class(stream):
    predictions = predictions_for(stream)
    gt = two_objects()
    gt.gt_is_crowd = torch.tensor([True, False])
    plain = gt[torch.tensor([False, True])]
    assert stream.semantic_loss(predictions, [gt]) == stream.semantic_loss(predictions, [plain])


def test_box_coding_round_trip_with_ssd_variances(stream):
    anchors, boxes = random_boxes(50, seed=1), random_boxes(50, seed=2)
    deltas = stream.box2box_transform.get_deltas(anchors, boxes)
    decoded = stream.box2box_transform.apply_deltas(deltas, anchors)
    # Deltas are off by some roundings of a coordinate in sides of the anchor, which an exp brings
    # back as so many of the side.
    sizes = boxes[:, 2:] - boxes[:, :2] + anchors[:, 2:] - anchors[:, :2]
    assert_within(decoded, boxes, 2 * gamma(8 + ELEMENTARY) * (200 + sizes.repeat(1, 2)))
    # a tenth of the width to the right and e^0.2 times as wide: 1 and 1
    anchor = torch.tensor([[0.0, 0, 10, 10]])
    half = 5 * math.exp(0.2)
    decoded = stream.box2box_transform.apply_deltas(torch.tensor([[1.0, 0, 1, 0]]), anchor)
    assert_within(decoded, torch.tensor([[6 - half, 0, 6 + half, 10]]), gamma(8 + ELEMENTARY) * 20)


# ---------------------------------------------------------------------------- Fast NMS


def naive_fast_nms(boxes, scores, classes, threshold, top_k):
    kept = []
    for category in set(classes.tolist()):
        own = [n for n in range(len(boxes)) if classes[n] == category]
        own = sorted(own, key=lambda n: -scores[n])[:top_k]
        for place, n in enumerate(own):
            better = [
                float(pairwise_iou(Boxes(boxes[n][None]), Boxes(boxes[m][None]))) for m in own
            ]
            if all(iou <= threshold for iou in better[:place]):
                kept.append(n)
    return sorted(kept, key=lambda n: -scores[n])


@pytest.mark.parametrize(("top_k", "threshold"), [(200, 0.5), (6, 0.3), (1, 0.5)])
def test_fast_nms_follows_its_definition(top_k, threshold):
    boxes = random_boxes(60, size=60, seed=3)
    generator = torch.Generator().manual_seed(4)
    scores = torch.rand(60, generator=generator)
    classes = torch.randint(0, 4, (60,), generator=generator) * 7
    kept = fast_nms(boxes, scores, classes, threshold, top_k).tolist()
    assert kept == naive_fast_nms(boxes, scores, classes, threshold, top_k)
    assert 1 < len(kept) < 60


def test_in_fast_nms_a_removed_box_still_removes():
    # A overlaps B, B overlaps C, A does not overlap C: greedy NMS keeps C, Fast NMS does not.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 3, 10, 13], [0, 6, 10, 16]])
    scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64)
    assert fast_nms(boxes, scores, classes, 0.5).tolist() == [0]
    assert fast_nms(boxes[:0], scores[:0], classes[:0]).tolist() == []


def test_detections_are_those_above_the_threshold_after_fast_nms(stream):
    predictions = predictions_for(stream)
    (detections,) = stream.detect(predictions, [(64, 64)])
    probabilities = torch.cat(predictions.logits, 1)[0].softmax(1)
    own = probabilities[detections.places, detections.pred_classes]
    assert_within(detections.scores, own, gamma(2 * ELEMENTARY))
    assert len(detections) > 10 and (detections.scores > stream.score_threshold).all()
    assert (detections.scores.diff() <= 0).all()
    anchors = Boxes.cat(predictions.anchors).tensor[detections.places]
    deltas = torch.cat(predictions.deltas, 1)[0][detections.places]
    decoded = stream.box2box_transform.apply_deltas(deltas, anchors)
    limit = gamma(8 + ELEMENTARY) * decoded.abs().max()
    assert_within(detections.pred_boxes.tensor, decoded, limit)


def test_representations_are_the_dense_convolution(stream):
    grids = [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]
    features = [torch.randn(2, 96, *grid).double() for grid in grids]
    stream = copy.deepcopy(stream).double()
    predictions = YOLACTPredictions([], [], features, [])
    places = torch.tensor([0, 5, 191, 192, 250, 257])
    image_index = torch.tensor([0, 1, 0, 1, 0, 1])
    dense = torch.cat(
        [stream.head.rep_pred(f).permute(0, 2, 3, 1).reshape(2, -1, 2, 32) for f in features], 1
    )
    phi = stream.represent(predictions, image_index, places)
    torch.testing.assert_close(phi, dense[image_index, places])
