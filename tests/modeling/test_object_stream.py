"""Object stream: lazy representations, positives, losses and decoding against plain definitions."""

import math

import pytest
import torch
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.structures import Boxes, Instances, pairwise_iou
from helpers.rounding import ELEMENTARY, assert_within, gamma

import rdsnet
from rdsnet.modeling import lazy_conv
from rdsnet.modeling.lazy_conv import convolve_at, is_local, locate
from rdsnet.modeling.object_stream import Positives, batch_object_index, build_object_stream

pytestmark = pytest.mark.numeric


def test_convolution_at_chosen_anchors_equals_the_dense_one_with_gradients():
    generator = torch.Generator().manual_seed(0)
    num_anchors, numbers = 3, 4
    conv = torch.nn.Conv2d(5, num_anchors * numbers, 3, padding=1).double()
    sizes = [(6, 7), (3, 4), (1, 1)]
    features = [
        torch.randn(2, 5, *s, generator=generator, dtype=torch.float64).requires_grad_()
        for s in sizes
    ]
    anchors_per_image = sum(h * w * num_anchors for h, w in sizes)
    image_index = torch.randint(0, 2, (200,), generator=generator)
    places = torch.randint(0, anchors_per_image, (200,), generator=generator)

    dense = [
        conv(f).view(2, num_anchors, numbers, *f.shape[2:]).permute(0, 3, 4, 1, 2).flatten(1, 3)
        for f in features
    ]
    expected = torch.cat(dense, dim=1)[image_index, places]
    lazy = convolve_at(conv, features, image_index, places, num_anchors)
    torch.testing.assert_close(lazy, expected)

    weights = torch.randn(lazy.shape, generator=generator, dtype=torch.float64)
    inputs = [*features, conv.weight, conv.bias]
    for a, b in zip(
        torch.autograd.grad((lazy * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("with_tower", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
def test_convolution_at_no_anchor_still_reaches_every_parameter(with_tower, at_once, monkeypatch):
    monkeypatch.setattr(lazy_conv, "_launches_cost_most", lambda feature: at_once)
    conv = torch.nn.Conv2d(2, 6, 3, padding=1)
    tower = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 3, padding=1)) if with_tower else None
    features = [torch.randn(1, 2, 4, 4, requires_grad=True)]
    none = torch.zeros(0, dtype=torch.int64)
    out = convolve_at(conv, features, none, none, 3, tower)
    out.sum().backward()
    assert out.shape == (0, 2)
    assert conv.weight.grad.eq(0).all() and features[0].grad.eq(0).all()
    assert all(p.grad.eq(0).all() for p in (tower.parameters() if with_tower else []))


# 4 of these anchors are less work than the larger maps, 300 more.
@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(("count", "whole_maps"), [(4, False), (300, True)])
def test_tower_at_chosen_anchors_equals_the_dense_one_with_gradients(
    count, whole_maps, at_once, monkeypatch
):
    torch.manual_seed(count)
    layers = [(3, 4, 3), (4, 6, 1), (6, 5, 5)]
    tower = torch.nn.Sequential()
    for inputs, outputs, kernel in layers:
        tower.append(torch.nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))
        tower.append(torch.nn.ReLU())
    conv = torch.nn.Conv2d(5, 3 * 4, 3, padding=1)
    tower, conv = tower.double(), conv.double()
    assert is_local(tower)
    whole = []
    tower.register_forward_hook(lambda module, inputs, _: whole.append(inputs[0].shape[-2:]))
    sizes = [(33, 40), (17, 20), (1, 3)]
    features = [torch.randn(2, 3, *s, dtype=torch.float64, requires_grad=True) for s in sizes]
    anchors_per_image = sum(h * w * 3 for h, w in sizes)
    image_index = torch.randint(0, 2, (count,))
    places = torch.randint(0, anchors_per_image, (count,))
    # Corners of the map, and anchors of one location.
    places[:4] = torch.tensor([0, 1, 33 * 40 * 3 - 1, anchors_per_image - 1])

    monkeypatch.setattr(lazy_conv, "_launches_cost_most", lambda feature: at_once)
    lazy = convolve_at(conv, features, image_index, places, 3, tower)
    assert (sizes[0] in whole, sizes[2] in whole) == (whole_maps or at_once, True)
    maps = [conv(tower(f)).view(2, 3, 4, *f.shape[2:]) for f in features]
    dense = torch.cat([x.permute(0, 3, 4, 1, 2).flatten(1, 3) for x in maps], dim=1)
    expected = dense[image_index, places]
    torch.testing.assert_close(lazy, expected)
    weights = torch.randn(lazy.shape, dtype=torch.float64)
    inputs = [*features, *tower.parameters(), *conv.parameters()]
    for a, b in zip(
        torch.autograd.grad((lazy * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.GroupNorm(1, 4),
        torch.nn.Conv2d(4, 4, 3, padding=1, stride=2),
        torch.nn.Conv2d(4, 4, 3),
        torch.nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        torch.nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        Conv2d(4, 4, 3, padding=1, norm=torch.nn.GroupNorm(1, 4)),
    ],
)
def test_layers_that_see_more_than_a_neighbourhood_are_evaluated_everywhere(layer):
    assert not is_local(torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1), layer))


@pytest.mark.parametrize("norm", ["", "GN"])
def test_representations_equal_the_dense_branch(norm):
    stream = small_stream(NORM=norm, NUM_CONVS=2).double()
    assert stream.head.lazy_subnet == (not norm)
    chosen = features(height=32, width=48, dtype=torch.float64)
    predictions = stream(chosen)
    image_index, places = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 100, 2000, 9215 + 2000])
    phi = stream.represent(predictions, image_index, places)
    maps = [stream.head.rep_pred(stream.head.rep_subnet(x)) for x in chosen.values()]
    dense = torch.cat([x.permute(0, 2, 3, 1).reshape(2, -1, 2, 32) for x in maps], dim=1)
    torch.testing.assert_close(phi, dense[image_index, places])


def test_a_tower_with_norms_is_evaluated_where_something_was_found_alone():
    torch.manual_seed(0)
    tower = torch.nn.Sequential(
        torch.nn.Conv2d(4, 6, 3, padding=1, bias=False), torch.nn.GroupNorm(2, 6), torch.nn.ReLU()
    ).double()
    conv = torch.nn.Conv2d(6, 3 * 4, 3, padding=1).double()
    maps = [torch.randn(3, 4, *size, dtype=torch.float64) for size in ((6, 8), (3, 4), (2, 2))]
    dense = [conv(tower(x)).permute(0, 2, 3, 1).reshape(3, -1, 4) for x in maps]
    dense = torch.cat(dense, 1)
    seen = []
    tower.register_forward_hook(lambda module, inputs, _: seen.append(tuple(inputs[0].shape)))
    image_index, places = torch.tensor([2, 0, 2]), torch.tensor([143, 7, 184])
    with torch.no_grad():
        found = convolve_at(conv, maps, image_index, places, 3, tower)
        assert seen == [(2, 4, 6, 8), (1, 4, 2, 2)]
        assert convolve_at(conv, maps, image_index[:0], places[:0], 3, tower).shape == (0, 4)
        assert len(seen) == 2
    torch.testing.assert_close(found, dense[image_index, places])
    # In training every parameter takes part.
    convolve_at(conv, maps, image_index[:0], places[:0], 3, tower).sum().backward()
    assert all(p.grad.eq(0).all() for p in (*tower.parameters(), *conv.parameters()))


def test_locate_inverts_the_order_of_anchors():
    sizes, index = [(2, 3), (1, 2)], 0
    for level, (h, w) in enumerate(sizes):
        for y in range(h):
            for x in range(w):
                for a in range(4):
                    place = torch.tensor([index])
                    assert [int(v) for v in locate(place, sizes, 4)] == [level, y, x, a]
                    index += 1


def test_sampling_keeps_at_most_so_many_of_each_image():
    positives = Positives(
        torch.tensor([0] * 5 + [1] * 2 + [2] * 9), torch.arange(16), torch.arange(16) * 2
    )
    sampled = positives.sample(4)
    assert torch.bincount(sampled.image_index).tolist() == [4, 2, 4]
    assert torch.equal(sampled.object_index, sampled.places * 2)
    torch.manual_seed(1)
    draws = {tuple(positives.sample(4).places.tolist()) for _ in range(20)}
    assert len(draws) > 1
    none = torch.zeros(0, dtype=torch.int64)
    assert len(Positives(none, none, none).sample(4)) == 0


def small_stream(num_classes=3, shared_tower=False, **retinanet):
    cfg = rdsnet.get_cfg()
    cfg.MODEL.RDSNET.SHARED_TOWER = shared_tower
    cfg.MODEL.RETINANET.NUM_CLASSES = num_classes
    cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "p4"]
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.MODEL.RETINANET.NORM = "GN"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 20], [32, 40]]
    for key, value in retinanet.items():
        setattr(cfg.MODEL.RETINANET, key, value)
    shapes = {"p3": ShapeSpec(channels=32, stride=8), "p4": ShapeSpec(channels=32, stride=16)}
    torch.manual_seed(0)
    return build_object_stream(cfg, shapes)


def features(batch=2, height=8, width=12, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return {
        "p3": torch.randn(batch, 32, height, width, generator=generator).to(dtype),
        "p4": torch.randn(batch, 32, height // 2, width // 2, generator=generator).to(dtype),
    }


def ground_truth(boxes, classes):
    return Instances(
        (64, 96),
        gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4)),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
    )


def test_losses_equal_focal_and_smooth_l1_written_out():
    stream = small_stream().double()
    predictions = stream(features(dtype=torch.float64))
    gt = [
        ground_truth([[8, 8, 30, 28], [40, 10, 80, 44]], [1, 2]),
        ground_truth([], []),
    ]
    losses, positives = stream.losses(predictions, gt)

    anchors = Boxes.cat(predictions.anchors)
    logits, deltas = torch.cat(predictions.logits, 1), torch.cat(predictions.deltas, 1)
    iou = pairwise_iou(gt[0].gt_boxes, anchors)
    best_iou, best = iou.max(0)
    positive = (best_iou >= 0.5) | (iou == iou.max(1, keepdim=True).values).any(0)
    ignored = (best_iou >= 0.4) & ~positive
    expected_cls = expected_box = 0.0
    for r in range(len(anchors)):
        for image in range(2):
            is_positive = image == 0 and bool(positive[r])
            if image == 0 and bool(ignored[r]):
                continue
            for k in range(3):
                p = torch.sigmoid(logits[image, r, k]).item()
                if is_positive and int(gt[0].gt_classes[best[r]]) == k:
                    expected_cls -= 0.25 * (1 - p) ** 2 * math.log(p)
                else:
                    expected_cls -= 0.75 * p**2 * math.log(1 - p)
        if positive[r]:
            ax1, ay1, ax2, ay2 = anchors.tensor[r].tolist()
            gx1, gy1, gx2, gy2 = gt[0].gt_boxes.tensor[best[r]].tolist()
            aw, ah, gw, gh = ax2 - ax1, ay2 - ay1, gx2 - gx1, gy2 - gy1
            target = [
                ((gx1 + gx2) - (ax1 + ax2)) / 2 / aw,
                ((gy1 + gy2) - (ay1 + ay2)) / 2 / ah,
                math.log(gw / aw),
                math.log(gh / ah),
            ]
            for got, want in zip(deltas[0, r].tolist(), target, strict=True):
                d, beta = abs(got - want), stream.smooth_l1_beta
                expected_box += 0.5 * d * d / beta if d < beta else d - 0.5 * beta
    normalizer = 0.9 * 100 + 0.1 * int(positive.sum())
    adding = gamma(logits.numel() + ELEMENTARY)  # fvcore has the focal loss in float32
    assert losses["loss_cls"].item() == pytest.approx(expected_cls / normalizer, rel=adding)
    assert losses["loss_box_reg"].item() == pytest.approx(expected_box / normalizer)
    assert stream.loss_normalizer.item() == pytest.approx(normalizer)

    assert positives.places.tolist() == positive.nonzero().flatten().tolist()
    assert positives.image_index.eq(0).all()
    assert positives.object_index.tolist() == best[positive].tolist()
    assert batch_object_index(positives, [ground_truth([[0, 0, 1, 1]], [0]), *gt]).equal(
        positives.object_index
    )


def test_scores_learn_the_overlap_with_the_quality_focal_loss():
    stream = small_stream().double()
    stream.classification_loss = "quality_focal"
    predictions = stream(features(dtype=torch.float64))
    boxes = [[8, 8, 30, 28], [40, 10, 80, 44]]
    gt = [ground_truth(boxes, [1, 2]), ground_truth([], [])]
    labels, _ = stream.label_anchors(predictions, gt)
    losses, positives = stream.losses(predictions, gt)

    expected = 0.0
    overlaps = dict.fromkeys(positives.places.tolist(), 0.0)
    for place, index in zip(positives.places.tolist(), positives.object_index.tolist()):
        delta = torch.cat(predictions.deltas, 1)[0, place][None]
        anchor = Boxes.cat(predictions.anchors).tensor[place][None]
        (x1, y1, x2, y2) = stream.box2box_transform.apply_deltas(delta, anchor)[0].tolist()
        gx1, gy1, gx2, gy2 = boxes[index]
        shared = max(0, min(x2, gx2) - max(x1, gx1)) * max(0, min(y2, gy2) - max(y1, gy1))
        areas = (x2 - x1) * (y2 - y1) + (gx2 - gx1) * (gy2 - gy1)
        overlaps[place] = shared / (areas - shared)
    for image, place, k in (labels >= 0)[..., None].expand(-1, -1, 3).nonzero().tolist():
        p = torch.sigmoid(torch.cat(predictions.logits, 1)[image, place, k]).item()
        q = overlaps[place] if int(labels[image, place]) == k else 0.0
        expected -= (p - q) ** 2 * (q * math.log(p) + (1 - q) * math.log(1 - p))
    normalizer = 0.9 * 100 + 0.1 * len(positives)
    # Overlaps are computed in float32, the smallest with sides that are differences.
    assert losses["loss_cls"].item() == pytest.approx(expected / normalizer, rel=gamma(100))
    assert 0 < max(overlaps.values()) < 1

    losses["loss_cls"].backward()  # what the scores learn is no way to change the boxes
    assert all(p.grad is None or not p.grad.any() for p in stream.head.bbox_pred.parameters())


def test_an_unknown_classification_loss_is_refused():
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file("configs/small/rdsnet_small.yaml")
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.MODEL.RDSNET.CLASSIFICATION_LOSS = "hinge"
    shapes = {f"p{i}": ShapeSpec(channels=96, stride=2**i) for i in range(3, 8)}
    with pytest.raises(ValueError, match="MODEL.RDSNET.CLASSIFICATION_LOSS.*'hinge'"):
        build_object_stream(cfg, shapes)


def test_object_index_counts_objects_of_earlier_images():
    gt = [ground_truth([[0, 0, 9, 9]] * 2, [0, 0]), ground_truth([[0, 0, 9, 9]] * 3, [0] * 3)]
    positives = Positives(torch.tensor([0, 1, 1]), torch.arange(3), torch.tensor([1, 0, 2]))
    assert batch_object_index(positives, gt).tolist() == [1, 2, 4]


def test_detections_carry_the_place_of_their_anchor():
    stream = small_stream(SCORE_THRESH_TEST=0.0, TOPK_CANDIDATES_TEST=50)
    predictions = stream(features())
    for image, detections in enumerate(stream.detect(predictions, [(64, 96)] * 2)):
        logits = torch.cat(predictions.logits, 1)[image].double()
        deltas = torch.cat(predictions.deltas, 1)[image].double()
        anchors = Boxes.cat(predictions.anchors).tensor.double()
        assert len(detections) > 10
        at = detections.places
        scores = logits[at, detections.pred_classes].sigmoid()
        assert_within(detections.scores, scores, gamma(ELEMENTARY) * scores)
        centre = (anchors[at, :2] + anchors[at, 2:]) / 2
        size = anchors[at, 2:] - anchors[at, :2]
        centre = centre + deltas[at, :2] * size
        size = size * deltas[at, 2:].exp()
        expected = torch.cat([centre - size / 2, centre + size / 2], 1)
        limits = gamma(8 + ELEMENTARY) * (centre.abs() + size).repeat(1, 2)
        assert_within(detections.pred_boxes.tensor, expected, limits)
        assert (detections.scores.diff() <= 0).all()
        for k in range(3):
            same = detections[detections.pred_classes == k].pred_boxes
            iou = pairwise_iou(same, same).fill_diagonal_(0)
            assert iou.max() <= stream.nms_threshold if len(same) else True


def test_no_detection_keeps_every_field():
    stream = small_stream(SCORE_THRESH_TEST=0.999)
    detections = stream.detect(stream(features()), [(64, 96)] * 2)[1]
    assert len(detections) == 0
    assert detections.pred_boxes.tensor.shape == (0, 4) and detections.places.shape == (0,)


def test_running_normalizer_is_part_of_a_checkpoint():
    stream = small_stream()
    stream.update_normalizer(torch.tensor([150, 50]))
    resumed = small_stream()
    assert resumed.loss_normalizer == 100
    resumed.load_state_dict(stream.state_dict())
    assert resumed.loss_normalizer == 0.9 * 100 + 0.1 * 200


def test_one_tower_may_serve_all_three_branches():
    torch.manual_seed(0)
    stream, maps = small_stream(shared_tower=True), features()
    head = stream.head
    predictions = stream(maps)
    chosen = [maps[name] for name in stream.in_features]
    towers = [head.cls_subnet(x) for x in chosen]
    assert all(torch.equal(a, b) for a, b in zip(predictions.rep_features, towers))
    deltas = [head.bbox_pred(x).permute(0, 2, 3, 1).flatten(1) for x in towers]
    assert all(torch.equal(a.flatten(1), b) for a, b in zip(predictions.deltas, deltas))
    names = {name.split(".")[0] for name, _ in head.named_parameters()}
    assert names == {"cls_subnet", "cls_score", "bbox_pred", "rep_pred"}
    places = torch.tensor([0, 7, 100])
    phi = stream.represent(predictions, torch.zeros_like(places), places)
    phi.sum().backward()
    assert head.cls_subnet[0].weight.grad.abs().sum() > 0
