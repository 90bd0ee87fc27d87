"""FCOS stream: against Detectron2's own FCOS, and lazy against dense representations."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from helpers.rounding import ELEMENTARY, assert_within, gamma

import rdsnet
from rdsnet.modeling.object_stream import build_object_stream, matched_boxes
from rdsnet.modeling.retinanet_stream import group_norm
from rdsnet.projects.fcos import match_locations
from rdsnet.projects.fcos.object_stream import centerness_targets

pytestmark = pytest.mark.numeric
CHANNELS, CLASSES = 32, 3
SHAPES = {f"p{i}": ShapeSpec(channels=CHANNELS, stride=2**i) for i in (3, 4, 5)}
SIZE = (96, 128)


def make_stream(threshold=0.05, norm="GN"):
    cfg = rdsnet.get_cfg()
    cfg.MODEL.RDSNET.OBJECT_STREAM = "FCOSStream"
    cfg.MODEL.RETINANET.NUM_CLASSES = CLASSES
    cfg.MODEL.RETINANET.IN_FEATURES = list(SHAPES)
    cfg.MODEL.RETINANET.NUM_CONVS = 2
    cfg.MODEL.RETINANET.NORM = norm
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = threshold
    cfg.MODEL.RETINANET.NMS_THRESH_TEST = 0.6
    torch.manual_seed(0)
    stream = build_object_stream(cfg, SHAPES)
    # Detections of an untrained head are all alike: spread them.
    for conv in (stream.head.cls_score, stream.head.ctrness, stream.head.bbox_pred):
        torch.nn.init.normal_(conv.weight, std=0.1)
    torch.nn.init.constant_(stream.head.bbox_pred.bias, 1.0)
    return stream


class Backbone(torch.nn.Module):
    def output_shape(self):
        return SHAPES


def make_reference(stream, norm="GN"):
    """Detectron2's FCOS with the weights of the stream."""
    head = FCOSHead(
        input_shape=list(SHAPES.values()),
        num_classes=CLASSES,
        conv_dims=[CHANNELS] * 2,
        norm=group_norm if norm else "",
    )
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()  # biases that the stream's head does without
    theirs = head.state_dict()
    ours = {k: v for k, v in stream.head.state_dict().items() if k in theirs}
    assert set(theirs) - set(ours) <= {k for k in theirs if "subnet" in k and "bias" in k}
    head.load_state_dict(ours, strict=False)
    fcos = FCOS(
        backbone=Backbone(),
        head=head,
        head_in_features=list(SHAPES),
        num_classes=CLASSES,
        test_score_thresh=stream.score_threshold,
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    )
    return fcos.to(stream.head.cls_score.weight.dtype)


def make_features(batch=2, dtype=torch.float32, requires_grad=False):
    generator = torch.Generator().manual_seed(1)
    features = {}
    for name, shape in SHAPES.items():
        size = (batch, CHANNELS, SIZE[0] // shape.stride, SIZE[1] // shape.stride)
        features[name] = torch.randn(size, generator=generator).to(dtype)
        features[name].requires_grad_(requires_grad)
    return features


def ground_truth(boxes, classes):
    return Instances(
        SIZE,
        gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4)),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
    )


GROUND_TRUTH = [
    ([[8, 10, 40, 38], [20, 12, 60, 80], [2, 2, 126, 94], [70, 60, 79, 71]], [2, 0, 1, 1]),
    ([[30.5, 31.2, 58.9, 77.7]], [2]),
]


@pytest.mark.parametrize("norm", ["GN", ""])
def test_losses_and_their_gradients_are_those_of_detectron2(norm):
    stream = make_stream(norm=norm).double()
    reference = make_reference(stream, norm)
    gt = [ground_truth(*x) for x in GROUND_TRUTH]
    ours, theirs = (make_features(dtype=torch.float64, requires_grad=True) for _ in range(2))
    losses, positives = stream.losses(stream(ours), gt)
    with EventStorage():
        features = list(theirs.values())
        expected = reference.forward_training(None, features, reference.head(features), gt)
    assert len(positives) > 10
    for name, their_name in {
        "loss_cls": "loss_fcos_cls",
        "loss_box_reg": "loss_fcos_loc",
        "loss_centerness": "loss_fcos_ctr",
    }.items():
        # fvcore adds the focal loss up in float32.
        adding = gamma(sum(x.numel() for x in stream(ours).logits))
        assert losses[name].item() == pytest.approx(expected[their_name].item(), rel=adding)
        assert losses[name] > 0
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    for name in SHAPES:
        torch.testing.assert_close(ours[name].grad, theirs[name].grad)
    # the running normaliser goes on alike
    assert stream.loss_normalizer.item() == pytest.approx(reference.loss_normalizer)


def test_positives_are_matched_as_by_detectron2():
    stream = make_stream()
    reference = make_reference(stream)
    gt = [ground_truth(*x) for x in GROUND_TRUTH]
    predictions = stream(make_features())
    _, positives = stream.losses(predictions, gt)
    labels, boxes = reference.label_anchors(predictions.anchors, gt)
    boxes = torch.stack([x.tensor if isinstance(x, Boxes) else x for x in boxes])
    labels = torch.stack(labels)
    image_index, places = (labels != CLASSES).nonzero(as_tuple=True)
    assert torch.equal(positives.image_index, image_index)
    assert torch.equal(positives.places, places)
    assert torch.equal(matched_boxes(positives, gt), boxes[image_index, places])


@torch.no_grad()
def test_detections_are_those_of_detectron2_and_know_their_place():
    stream = make_stream(threshold=0.08)
    reference = make_reference(stream)
    features = make_features()
    predictions = stream(features)
    detections = stream.detect(predictions, [SIZE] * 2)
    images = ImageList(torch.zeros(2, 3, *SIZE), [SIZE] * 2)
    # Of the same outputs of the head, which the losses have compared.
    outputs = stream.head(list(features.values()))[:3]
    expected = reference.forward_inference(images, list(features.values()), list(outputs))
    for image, (ours, theirs) in enumerate(zip(detections, expected, strict=True)):
        assert len(ours) == len(theirs) > 20
        assert_within(ours.scores, theirs.scores, 2 * gamma(3 * ELEMENTARY) * theirs.scores)
        limit = 2 * gamma(8) * ours.pred_boxes.tensor.abs().max()
        assert_within(ours.pred_boxes.tensor, theirs.pred_boxes.tensor, limit)
        assert torch.equal(ours.pred_classes, theirs.pred_classes)
        # a box is its location, plus and minus its distances in strides
        squares = Boxes.cat(predictions.anchors).tensor[ours.places]
        centre = (squares[:, :2] + squares[:, 2:]) / 2
        stride = squares[:, 2:3] - squares[:, :1]
        distances = torch.cat(predictions.deltas, 1)[image, ours.places].clamp(min=0) * stride
        expected_boxes = torch.cat([centre - distances[:, :2], centre + distances[:, 2:]], 1)
        assert_within(ours.pred_boxes.tensor, expected_boxes, limit)


@pytest.mark.parametrize(("count", "norm"), [(0, "GN"), (0, ""), (3, ""), (200, "GN"), (200, "")])
def test_lazy_representations_equal_dense_ones_with_gradients(count, norm):
    stream = make_stream(norm=norm).double()
    generator = torch.Generator().manual_seed(2)
    features = {k: v.double().requires_grad_() for k, v in make_features().items()}
    predictions = stream(features)
    per_image = sum(len(x) for x in predictions.anchors)
    image_index = torch.randint(0, 2, (count,), generator=generator)
    places = torch.randint(0, per_image, (count,), generator=generator)
    lazy = stream.represent(predictions, image_index, places)
    maps = [stream.head.rep_pred(stream.head.rep_subnet(x)) for x in features.values()]
    dense = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)  # (B, R, 64)
    expected = dense[image_index, places].view(count, 2, 32)  # background first
    torch.testing.assert_close(lazy, expected)
    weights = torch.randn(lazy.shape, generator=generator, dtype=torch.float64)
    inputs = [*features.values(), *stream.head.rep_subnet.parameters()]
    inputs += stream.head.rep_pred.parameters()
    for a, b in zip(
        torch.autograd.grad((lazy * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_images_without_objects_have_the_loss_of_background_alone():
    stream = make_stream().double()
    predictions = stream(make_features(batch=1, dtype=torch.float64))
    losses, positives = stream.losses(predictions, [ground_truth([], [])])
    assert len(positives) == 0
    assert losses["loss_box_reg"] == 0 and losses["loss_centerness"] == 0
    p = torch.cat(predictions.logits, 1).sigmoid()
    normalizer = 0.9 * 300 + 0.1 * 1
    expected = (0.75 * p**2 * -(1 - p).log()).sum() / normalizer
    adding = gamma(p.numel() + ELEMENTARY)  # fvcore has the focal loss in float32
    assert losses["loss_cls"].item() == pytest.approx(expected.item(), rel=adding)
    sum(losses.values()).backward()
    assert stream.head.ctrness.weight.grad.eq(0).all()


def test_a_location_takes_the_smallest_of_the_objects_that_fit_it():
    """Hand-made: one level of stride 8, locations at 4, 12, 20, 28."""
    features = [torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 1)]
    locations = make_stream().anchor_generator(features)[:1]
    grid = [[x, y, x + 8, y + 8] for y in (0, 8, 16, 24) for x in (0, 8, 16, 24)]
    assert locations[0].tensor.tolist() == grid
    boxes = Boxes(torch.tensor([[0.0, 0, 32, 32], [8.0, 8, 25, 25], [29.0, 29, 31, 31]]))
    matched = match_locations(locations, boxes, radius=1.5).view(4, 4)
    # Centres (16, 16) and (16.5, 16.5), less than 12 px away: the inner four locations, and those
    # at 28 are 11.5 away from the second but outside its box, and exactly 12 from the first. No
    # location lies in the third box.
    expected = torch.full((4, 4), -1)
    expected[1:3, 1:3] = 1
    assert torch.equal(matched, expected)
    assert (match_locations(locations, boxes[:1], radius=1.5).view(4, 4) >= 0).sum() == 4
    assert (match_locations(locations, boxes[:1], radius=1.6).view(4, 4) >= 0).sum() == 16


def test_levels_share_objects_out_by_size():
    # the location (50, 50) on levels of stride 8, 16, 32
    halves = [4.0, 8.0, 16.0]
    locations = [Boxes(torch.tensor([[50 - h, 50 - h, 50 + h, 50 + h]])) for h in halves]
    for half_side, level in ((10, 0), (63, 0), (65, 1), (127, 1), (129, 2), (5000, 2)):
        box = Boxes(torch.tensor([[50.0 - half_side, 45, 50 + half_side, 55]]))
        matched = match_locations(locations, box, radius=1.5)
        assert matched.tolist() == [0 if i == level else -1 for i in range(3)], half_side


def test_centerness_is_one_in_the_middle_and_falls_towards_the_rim():
    distances = torch.tensor([[3.0, 5, 3, 5], [1, 4, 3, 4], [1, 1, 4, 9]])
    expected = [1, math.sqrt(1 / 3), math.sqrt(1 / 4 * 1 / 9)]
    torch.testing.assert_close(centerness_targets(distances), torch.tensor(expected))
