"""Adaptive selection of positive anchors, against its description worked off object by object."""

import numpy as np
import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, Instances

import rdsnet
from rdsnet.modeling.atss import match_adaptively
from rdsnet.modeling.object_stream import build_object_stream
from rdsnet.modeling.retinanet_stream import atss_candidates

STRIDES = (4, 8, 16)


def square_anchors(height=96, width=128):
    """Per level one square of 3 strides at every location."""
    generator = DefaultAnchorGenerator(
        sizes=[[3 * s] for s in STRIDES], aspect_ratios=[1.0], strides=STRIDES, offset=0.5
    )
    features = [torch.zeros(1, 1, height // s, width // s) for s in STRIDES]
    return generator(features)


def random_boxes(rng, count, height=96, width=128):
    sides = rng.uniform(5, 60, (count, 2))
    corners = rng.uniform(0, 1, (count, 2)) * (np.array([width, height]) - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def iou_of(a, b):
    common = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return common / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common)


def by_description(levels, objects, count):
    """{anchor: object}, from the sentences of the ATSS paper."""
    claims = {}
    for m, box in enumerate(objects):
        centre, candidates, first = (box[:2] + box[2:]) / 2, [], 0
        for level in levels:
            distances = [np.hypot(*((a[:2] + a[2:]) / 2 - centre)) for a in level]
            candidates += [first + i for i in np.argsort(distances, kind="stable")[:count]]
            first += len(level)
        anchors = np.concatenate(levels)
        overlaps = np.array([iou_of(box, anchors[i]) for i in candidates])
        threshold = overlaps.mean() + overlaps.std(ddof=1)
        middles = [(anchors[i][:2] + anchors[i][2:]) / 2 for i in candidates]
        inside = [bool((c > box[:2]).all() and (c < box[2:]).all()) for c in middles]
        chosen = [k for k in range(len(candidates)) if inside[k] and overlaps[k] >= threshold]
        for k in chosen or [int(overlaps.argmax())]:
            claims.setdefault(candidates[k], []).append((overlaps[k], m))
    return {anchor: max(claim)[1] for anchor, claim in claims.items()}


@pytest.mark.parametrize("seed", range(4))
def test_selection_follows_the_description(seed):
    rng = np.random.default_rng(seed)
    # Centres a little off: no two anchors are equally near to an object.
    objects = random_boxes(rng, 12)
    levels = square_anchors()
    index, labels = match_adaptively(levels, Boxes(torch.tensor(objects).float()), 9)
    expected = by_description([level.tensor.double().numpy() for level in levels], objects, 9)
    positive = labels.nonzero().squeeze(1).tolist()
    assert positive == sorted(expected)
    assert [int(index[i]) for i in positive] == [expected[i] for i in positive]


def test_every_object_is_learnt_even_between_the_centres_of_anchors():
    # Centres lie at 2, 6, 10, ...: inside of this box there is none.
    tiny = Boxes(torch.tensor([[3.0, 3.0, 5.0, 5.0], [60.0, 60.0, 90.0, 90.0]]))
    index, labels = match_adaptively(square_anchors(), tiny, 9)
    assert set(index[labels == 1].tolist()) == {0, 1}


def test_without_objects_all_is_background():
    index, labels = match_adaptively(square_anchors(), Boxes(torch.zeros(0, 4)), 9)
    assert not labels.any() and len(index) == len(labels)


def test_fewer_anchors_than_candidates():
    levels = [Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]]))]
    index, labels = match_adaptively(levels, Boxes(torch.tensor([[1.0, 1.0, 7.0, 7.0]])), 9)
    assert labels.tolist() == [1] and index.tolist() == [0]


def test_the_config_chooses_and_refuses():
    cfg = rdsnet.get_cfg()
    assert atss_candidates(cfg) is None
    cfg.MODEL.RDSNET.ASSIGNMENT.NAME = "atss"
    assert atss_candidates(cfg) == 9
    cfg.MODEL.RDSNET.ASSIGNMENT.NAME = "nearest"
    with pytest.raises(ValueError, match="ASSIGNMENT.NAME must be 'iou' or 'atss', got 'nearest'"):
        atss_candidates(cfg)


def test_the_stream_learns_from_the_chosen_anchors():
    from detectron2.layers import ShapeSpec

    cfg = rdsnet.get_cfg()
    cfg.MODEL.RDSNET.ASSIGNMENT.NAME = "atss"
    cfg.MODEL.RETINANET.NUM_CLASSES = 2
    cfg.MODEL.RETINANET.IN_FEATURES = ["p2", "p3", "p4"]
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[3 * s] for s in STRIDES]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.5
    shapes = {f"p{k + 2}": ShapeSpec(channels=8, stride=s) for k, s in enumerate(STRIDES)}
    torch.manual_seed(0)
    stream = build_object_stream(cfg, shapes)
    features = {
        name: torch.randn(1, 8, 96 // shape.stride, 128 // shape.stride)
        for name, shape in shapes.items()
    }
    boxes = Boxes(torch.tensor(random_boxes(np.random.default_rng(5), 7)).float())
    gt = Instances((96, 128), gt_boxes=boxes, gt_classes=torch.tensor([0, 1, 0, 1, 0, 1, 1]))
    losses, positives = stream.losses(stream(features), [gt])
    index, labels = match_adaptively(square_anchors(), boxes, 9)
    assert torch.equal(positives.places, labels.nonzero().squeeze(1))
    assert torch.equal(positives.object_index, index[labels == 1])
    assert all(loss.isfinite() for loss in losses.values())
