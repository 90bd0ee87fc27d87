"""Where core and authors follow different conventions: both agree after the conversion.

The order is that of the table in this project's README.
"""

from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances, pairwise_iou
from helpers.golden_data import authors_state_dict, golden, masks_from_bits, tensor
from helpers.rounding import ELEMENTARY, assert_within, gamma

import rdsnet
from rdsnet import ops
from rdsnet.checkpoint import convert_mmdet_state_dict
from rdsnet.modeling import MBRM, PixelStream
from rdsnet.modeling.cropping import expanded_windows
from rdsnet.modeling.object_stream import DensePredictions, build_object_stream
from rdsnet.projects.authors_compat import (
    AlignedCornersPixelStream,
    InclusiveBox2BoxTransform,
    InclusiveMBRM,
    OverwritingMatcher,
    padded_windows,
    to_continuous,
    to_inclusive,
)
from rdsnet.projects.authors_compat.backbone import FixedStatisticsBatchNorm2d, LinearP6P7
from rdsnet.projects.authors_compat.boxes import inclusive_iou
from rdsnet.projects.authors_compat.resize import two_resize_taps

pytestmark = pytest.mark.numeric
STRIDES = (8, 16, 32, 64, 128)
FEATURES = [torch.zeros(1, 1, 256 // s, 384 // s) for s in STRIDES]


@pytest.fixture
def core_config():
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file(str(Path(__file__).parents[1] / "configs/rdsnet_R_50_FPN_core.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def anchors_of(cfg) -> torch.Tensor:
    shapes = [ShapeSpec(channels=1, stride=stride) for stride in STRIDES]
    return Boxes.cat(build_anchor_generator(cfg, shapes)(FEATURES)).tensor


def random_boxes(count: int, seed: int = 0, size: float = 200) -> torch.Tensor:
    """Inclusive boxes at least 1 px wide, float64."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator).double() * 300
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * size], dim=1)


def test_box_coding_is_detectron2s_on_continuous_coordinates():
    anchors, objects = random_boxes(50, 0), random_boxes(50, 1)
    core, ours = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)), InclusiveBox2BoxTransform()
    deltas = core.get_deltas(to_continuous(anchors), to_continuous(objects))
    torch.testing.assert_close(ours.get_deltas(anchors, objects), deltas)
    boxes = core.apply_deltas(deltas, to_continuous(anchors))  # always in float32
    ours = to_continuous(ours.apply_deltas(deltas, anchors))
    sizes = (anchors[:, 2:] - anchors[:, :2] + boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    assert_within(boxes, ours, gamma(8 + ELEMENTARY) * (ours.abs() + anchors.abs() + sizes))


def test_iou_is_detectron2s_on_continuous_coordinates():
    boxes1, boxes2 = random_boxes(50, 0), random_boxes(60, 1)
    expected = pairwise_iou(Boxes(to_continuous(boxes1)), Boxes(to_continuous(boxes2)))
    ours = inclusive_iou(boxes1, boxes2)
    # Detectron2's boxes are float32: edges move by a rounding, and areas by that times sides.
    sides1, sides2 = ((b[:, 2:] - b[:, :2] + 1).sum(1) for b in (boxes1, boxes2))
    area1, area2 = ((b[:, 2:] - b[:, :2] + 1).prod(1) for b in (boxes1, boxes2))
    areas = gamma(4) * boxes1.max() * 2 * (sides1[:, None] + sides2)
    assert_within(expected, ours, 2 * areas / torch.maximum(area1[:, None], area2) + gamma(4))


def test_anchors_are_the_cores_centred_in_their_cells_and_rounded(core_config, make_config):
    centred = to_inclusive(anchors_of(core_config))
    rounded = anchors_of(make_config())
    assert torch.equal(rounded, centred.round())
    assert 0.4 < (rounded - centred).abs().max() <= 0.5


def golden_ious(cfg):
    data = golden("targets")
    anchors = anchors_of(cfg)
    for i in (0, 1):
        yield inclusive_iou(tensor(data[f"img{i}_gt_boxes"]), anchors)


def test_matching_has_the_cores_labels_and_other_objects_only_at_best_anchors(make_config):
    core = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)
    changed = 0
    for iou in golden_ious(make_config()):
        core_objects, core_labels = core(iou)
        objects, labels = OverwritingMatcher(0.4, 0.5)(iou)
        assert torch.equal(labels, core_labels)
        is_best = (iou == iou.amax(1, keepdim=True)).any(0)
        assert torch.equal(objects[~is_best], core_objects[~is_best])
        # The objects that the best anchors were given to do have them as their best.
        own = iou[objects[is_best], is_best.nonzero().squeeze(1)]
        assert torch.equal(own, iou.amax(1)[objects[is_best]])
        changed += int((objects != core_objects)[labels == 1].sum())
    assert changed > 0


def test_an_object_that_overlaps_no_anchor_takes_them_all_but_later_objects_best():
    lost, found = [0.0, 0.0, 0.0, 0.0], [0.7, 0.0, 0.45, 0.3]
    objects, labels = OverwritingMatcher(0.4, 0.5)(torch.tensor([lost, found]))
    assert labels.tolist() == [1, 1, 1, 1] and objects.tolist() == [1, 0, 0, 0]
    objects, labels = OverwritingMatcher(0.4, 0.5)(torch.tensor([found, lost]))
    assert labels.tolist() == [1, 1, 1, 1] and objects.tolist() == [1, 1, 1, 1]


def test_classification_loss_is_the_cores_up_to_the_normaliser(core_config, make_config):
    """Same labels, so the same sum, divided by positives instead of by a running mean."""
    data = golden("targets")
    size = tuple(data["img0_pad_shape"].tolist())
    boxes = tensor(data["img0_gt_boxes"])
    classes = torch.zeros(len(boxes), dtype=torch.int64)
    losses = []
    for cfg in (core_config, make_config()):
        shapes = {f"p{i}": ShapeSpec(channels=256, stride=2**i) for i in range(3, 8)}
        stream = build_object_stream(cfg, shapes)
        # The core is given the compat anchors and boxes in continuous coordinates.
        inclusive = cfg.MODEL.RDSNET.OBJECT_STREAM == "AuthorsRetinaNetStream"
        convert = (lambda x: x) if inclusive else to_continuous
        anchors = [Boxes(convert(anchors_of(make_config())))]
        count = len(anchors[0])
        generator = torch.Generator().manual_seed(0)
        predictions = DensePredictions(
            [torch.randn(1, count, 80, generator=generator).double()],
            [torch.randn(1, count, 4, generator=generator).double() * 0.1],
            FEATURES,
            anchors,
        )
        gt = Instances(size, gt_boxes=Boxes(convert(boxes)), gt_classes=classes)
        loss, positives = stream.losses(predictions, [gt])
        normalizer = len(positives) if inclusive else stream.loss_normalizer
        losses.append(loss["loss_cls"] * normalizer)
    # The core's running mean is float32.
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=gamma(4))


def test_windows_are_the_cores_within_a_pixel():
    boxes, size = random_boxes(200, size=100), (300, 400)
    ours = padded_windows(boxes, 0.1, size)
    # Their padding is a share of the inclusive side, which is the continuous side.
    core = expanded_windows(to_continuous(boxes), 1.2, size)
    wide = (boxes[:, 2:] - boxes[:, :2] + 1 >= 10).all(1)  # below it, padding is at least 1 px
    assert wide.sum() > 100
    assert (ours - core)[wide].abs().max() <= 2
    assert (ours - core)[wide].float().abs().mean() < 1


def test_resizing_masks_is_the_cores_when_the_output_has_the_inputs_size():
    for image, grid in ((371, 96), (248, 64), (32, 8)):
        ours = two_resize_taps(image, image, grid, 4)
        core = ops.resize_taps(image, image, grid, 4)
        signal = torch.randn(grid, generator=torch.Generator().manual_seed(0))
        values = []
        for first, weights in (ours, core):
            places = (first[:, None] + torch.arange(3)).clamp(max=grid - 1)
            values.append((weights * signal[places]).sum(1))
        # Weights and products of both are float32.
        assert_within(values[0], values[1], 2 * gamma(2 * 3) * signal.abs().max())


def test_mbrm_is_the_cores_on_continuous_coordinates():
    """Up to 20 px sigma is 1 px in both; the masks are neither empty nor beyond the prior."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(8, 40, (40, 2), generator=generator)
    sides = torch.randint(5, 18, (40, 2), generator=generator)
    truth = torch.cat([corners, corners + sides - 1], dim=1)
    rows, columns = torch.arange(64)[:, None], torch.arange(64)
    masks = torch.rand(40, 64, 64, generator=generator).double() * 0.1
    for mask, (x1, y1, x2, y2) in zip(masks, truth.tolist(), strict=True):
        mask[(rows >= y1) & (rows <= y2) & (columns >= x1) & (columns <= x2)] += 0.85
    boxes = truth + torch.rand(40, 4, generator=generator) * 2 - 1
    profiles = masks.amax(1), masks.amax(2)
    with torch.no_grad():
        inclusive = InclusiveMBRM().double()(*profiles, boxes)
        continuous = MBRM().double()(*profiles, to_continuous(boxes))
    assert torch.equal(to_continuous(inclusive), continuous)
    assert (inclusive - truth).abs().max() <= 1  # and both find the rectangles


def test_pixel_stream_is_the_cores_but_for_the_corners(core_config, make_config):
    shapes = {f"p{i}": ShapeSpec(channels=256, stride=2**i) for i in (3, 4, 5)}
    core = PixelStream(core_config, shapes)
    ours = AlignedCornersPixelStream(make_config(), shapes)
    ours.load_state_dict(core.state_dict())
    generator = torch.Generator().manual_seed(0)
    features = {
        name: torch.randn(1, 256, 64 // shape.stride, 96 // shape.stride, generator=generator)
        for name, shape in shapes.items()
    }
    with torch.no_grad():
        aligned, expected = ours(features), core(features)
        assert (aligned - expected).abs().max() > 1e-3
        for module in ours.modules():
            if isinstance(module, torch.nn.Upsample):
                module.align_corners = False
        assert torch.equal(ours(features), expected)


def test_p7_is_the_cores_where_p6_is_not_negative():
    core, ours = LastLevelP6P7(8, 4), LinearP6P7(8, 4)
    ours.load_state_dict(core.state_dict())
    c5 = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    for p in (core.p6, ours.p6):
        p.bias.data.fill_(-p.weight.detach().abs().sum() * 10)
    assert not torch.equal(core(c5)[1], ours(c5)[1])
    for p in (core.p6, ours.p6):
        p.bias.data.neg_()
    assert torch.equal(core(c5)[1], ours(c5)[1])


def test_batch_norm_computes_as_frozen_batch_norm_and_trains_its_affine_part():
    ours = FixedStatisticsBatchNorm2d(3).double()
    reference = torch.nn.BatchNorm2d(3).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in reference.state_dict().values():
            if value.ndim:
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    state = {k: v for k, v in reference.state_dict().items() if "num_batches" not in k}
    ours.load_state_dict(state)
    x = torch.randn(2, 3, 4, 5, generator=generator).double()
    gradients = []
    for module in (ours, reference):
        y = module(x)
        (y * torch.arange(y.numel()).view_as(y)).sum().backward()
        gradients.append((y.detach(), module.weight.grad, module.bias.grad))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    ours.train()(x)
    assert torch.equal(ours.running_mean, reference.running_mean)


def test_a_converted_checkpoint_detects_the_same_under_the_cores_conventions(
    core_config, moved_model
):
    """Same objects and scores; boxes differ by the rounding of anchors, masks by align_corners.

    In float64, so that the same objects are found on every processor.
    """
    data = golden("e2e_infer_r50")
    model = build_model(core_config).eval()
    model.load_state_dict(convert_mmdet_state_dict(authors_state_dict()))
    model.double()
    height, width = data["img0_ori_shape"].tolist()
    image = tensor(data["img0_image"]).permute(2, 0, 1)
    with torch.no_grad():
        images = model.preprocess_image([{"image": image}])
        objects = model.object_stream(model.backbone(images.tensor))
        moved = moved_model.object_stream(moved_model.backbone(images.tensor))
        (detections,) = model.object_stream.detect(objects, images.image_sizes)
        (result,) = model([{"image": image, "height": height, "width": width}])
    instances = result["instances"]
    assert torch.equal(instances.scores, detections.scores)
    expected = to_continuous(tensor(data["img0_det_boxes"]))
    distance = (expected[:, None] - instances.regressed_boxes.tensor).abs().amax(2)
    distance[tensor(data["img0_det_labels"])[:, None] != instances.pred_classes] = torch.inf
    index = distance.argmin(1)
    assert sorted(index.tolist()) == list(range(len(instances)))

    # The authors' anchors are up to half a pixel off, so up to a pixel too wide.
    deltas = torch.cat(objects.deltas, 1)[0, detections.places]
    limits = 0.5 + deltas[:, :2].abs() + deltas[:, 2:].exp() / 2
    limits *= torch.tensor([width, height]) / torch.tensor(image.shape[:0:-1])
    assert_within(instances.regressed_boxes.tensor[index], expected, limits.repeat(1, 2)[index])
    scores = tensor(data["img0_det_scores"])
    chosen = 0, detections.places, detections.pred_classes
    moved = torch.cat(moved.logits, 1)[chosen].sigmoid()
    limit = (moved - detections.scores).abs().max() + gamma(ELEMENTARY)
    assert_within(instances.scores[index], scores, limit)

    masks = masks_from_bits(data["img0_mask_bits"], height, width).flatten(1).double()
    ours = instances.pred_masks[index].flatten(1).double()
    common = masks @ ours.t()
    overlap = common / (masks.sum(1)[:, None] + ours.sum(1) - common).clamp(min=1)
    assert (overlap <= overlap.diag()).all()  # no mask is more like that of another object
    assert (overlap.diag() > 0)[masks.any(1)].all()
