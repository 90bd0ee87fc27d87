"""Anchors, box coding, targets, crop windows, MBRM and masks against the authors' numbers."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.structures import Boxes, Instances
from helpers.golden_data import (
    assert_sample,
    authors_state_dict,
    golden,
    mask_loss_limits,
    masks_from_bits,
    posterior_error,
    resized_limits,
    tensor,
)
from helpers.rounding import ELEMENTARY, assert_within, disturbed, gamma, probable, spread
from ops import naive

from rdsnet import ops
from rdsnet.checkpoint import convert_mmdet_state_dict
from rdsnet.modeling import Positives
from rdsnet.modeling.object_stream import DensePredictions
from rdsnet.projects.authors_compat import (
    AlignedCornersPixelStream,
    InclusiveBox2BoxTransform,
    InclusiveMBRM,
    padded_windows,
)
from rdsnet.projects.authors_compat.boxes import clip_inclusive
from rdsnet.projects.authors_compat.resize import two_resize_taps

pytestmark = pytest.mark.numeric
STRIDES = (8, 16, 32, 64, 128)
# Roundings of a coded or decoded box, an exp or logarithm among them. Relative to deltas; to the
# coordinates and the size of a box.
CODING = gamma(8 + ELEMENTARY)


def deltas_limit(deltas, boxes, anchors):
    """How far rounding on both sides may move deltas (N, 4): also by the coordinates' rounding."""
    sides = (anchors[:, 2:] - anchors[:, :2] + 1).repeat(1, 2)
    largest = torch.maximum(boxes.abs(), anchors.abs()).amax(1, keepdim=True)
    return 2 * CODING * (deltas.abs() + largest / sides + 1)


def ratio_major_anchors(per_anchor: torch.Tensor) -> torch.Tensor:
    """(R, ...) in our order (cell, size, ratio) -> the authors' (cell, ratio, size)."""
    by_cell = per_anchor.reshape(-1, 3, 3, *per_anchor.shape[1:])
    return by_cell.transpose(1, 2).reshape(per_anchor.shape)


@pytest.fixture
def anchor_generator(make_config):
    shapes = [ShapeSpec(channels=1, stride=stride) for stride in STRIDES]
    return build_anchor_generator(make_config(), shapes)


def test_anchors_are_rounded_and_inclusive(anchor_generator):
    data = golden("anchors")
    features = [torch.zeros(1, 1, *data[f"size_p{level}"]) for level in range(3, 8)]
    for level, cell, grid in zip(
        range(3, 8), anchor_generator.cell_anchors, anchor_generator(features), strict=True
    ):
        base = ratio_major_anchors(cell)
        assert torch.equal(base, tensor(data[f"base_p{level}"]))
        assert torch.equal(ratio_major_anchors(grid.tensor), tensor(data[f"grid_p{level}"]))


def test_box_coding():
    data = golden("anchors")
    transform = InclusiveBox2BoxTransform()
    anchors, objects = tensor(data["enc_anchors"]), tensor(data["enc_gt"])
    deltas = transform.get_deltas(anchors, objects)
    assert_within(deltas, tensor(data["enc_deltas"]), deltas_limit(deltas, objects, anchors))
    anchors = tensor(data["dec_anchors"])
    boxes = transform.apply_deltas(tensor(data["dec_deltas"]), anchors)
    sizes = (boxes[:, 2:] - boxes[:, :2]).abs() + (anchors[:, 2:] - anchors[:, :2])
    limits = 2 * CODING * (boxes.abs() + anchors.abs() + sizes.repeat(1, 2))
    assert_within(boxes, tensor(data["dec_boxes"]), limits)
    clipped = clip_inclusive(boxes, tuple(data["image_hw"].tolist()))
    assert_within(clipped, tensor(data["dec_boxes_clipped"]), limits)


def golden_targets(model):
    """Dense "predictions" (anchors alone count) and inclusive ground truth of targets.npz."""
    data = golden("targets")
    features = [torch.zeros(2, 1, *size) for size in data["feat_hw"]]
    anchors = model.object_stream.anchor_generator(features)
    predictions = DensePredictions([], [], features, anchors)
    gt_instances = []
    for i in (0, 1):
        height, width = data[f"img{i}_img_shape"].tolist()
        masks = masks_from_bits(data[f"img{i}_gt_masks_bits"], *data[f"img{i}_pad_shape"])
        gt_instances.append(
            Instances(
                (height, width),
                gt_boxes=Boxes(tensor(data[f"img{i}_gt_boxes"])),
                gt_classes=tensor(data[f"img{i}_gt_labels"]) - 1,
                gt_masks=masks[:, :height, :width],
            )
        )
    return data, predictions, gt_instances


def test_anchor_labels_and_matched_objects(model):
    data, predictions, gt_instances = golden_targets(model)
    stream = model.object_stream
    labels, object_index = stream.label_anchors(predictions, gt_instances)
    positives_per_image = []
    for i in (0, 1):
        inside = ratio_major_anchors(stream.anchors_inside(predictions, gt_instances[i].image_size))
        assert torch.equal(inside, tensor(data["valid"][i]).bool())
        label, matched = ratio_major_anchors(labels[i]), ratio_major_anchors(object_index[i])
        positive = (label >= 0) & (label < stream.num_classes)
        expected = tensor(data["labels"][i]).long()
        assert torch.equal(torch.where(positive, label + 1, 0), expected)
        assert torch.equal(label >= 0, tensor(data["label_weights"][i]).bool())
        indices = positive.nonzero().squeeze(1)
        assert torch.equal(indices, tensor(data[f"img{i}_pos_inds"]))
        assert torch.equal(matched[indices], tensor(data[f"img{i}_pos_gt"]))
        anchors = ratio_major_anchors(Boxes.cat(predictions.anchors).tensor)[indices]
        assert torch.equal(anchors, tensor(data[f"img{i}_pos_anchors"]))
        objects = gt_instances[i].gt_boxes.tensor[matched[indices]]
        deltas = stream.box2box_transform.get_deltas(anchors, objects)
        expected = tensor(data[f"img{i}_pos_bbox_targets"])
        assert_within(deltas, expected, deltas_limit(deltas, objects, anchors))
        positives_per_image.append(len(indices))
    normalizer = stream.update_normalizer(torch.tensor(positives_per_image))
    assert normalizer == data["num_total_pos"]
    negatives = (labels == stream.num_classes).sum(1).clamp(min=1).sum()
    assert negatives == data["num_total_neg"]


def test_objects_of_at_most_100_pixels_have_no_mask_loss(model):
    data, predictions, gt_instances = golden_targets(model)
    labels, object_index = model.object_stream.label_anchors(predictions, gt_instances)
    image_index, places = ((labels >= 0) & (labels < 80)).nonzero(as_tuple=True)
    positives = Positives(image_index, places, object_index[image_index, places])
    masks = [gt.gt_masks for gt in gt_instances]
    chosen = model.positives_with_masks(positives, gt_instances)
    boxes = model.training_boxes(predictions, chosen, gt_instances)
    cell, anchor = chosen.places // 9, chosen.places % 9
    their_places = cell * 9 + anchor % 3 * 3 + anchor // 3
    for i in (0, 1):
        areas = masks[i].sum((1, 2))
        assert torch.equal(areas, tensor(data[f"img{i}_gt_mask_area"]))
        own = (chosen.image_index == i).nonzero().squeeze(1)
        own = own[their_places[own].argsort()]
        assert torch.equal(their_places[own], tensor(data[f"img{i}_mask_inds"]))
        assert torch.equal(chosen.object_index[own], tensor(data[f"img{i}_mask_gt"]))
        expected = tensor(data[f"img{i}_mask_boxes"])
        assert_within(boxes[own], expected, gamma(4) * expected.abs().max())


@pytest.mark.parametrize("padding", range(5))
@pytest.mark.parametrize("case", ["a", "b"])
def test_crop_windows(case, padding):
    data = golden("crop")
    height, width = data[f"{case}_hw"].tolist()
    boxes = tensor(data[f"{case}_boxes"])
    windows = padded_windows(boxes, float(data["paddings"][padding]), (height, width))
    name = f"{case}_p{padding}"
    assert torch.equal(windows, tensor(data[f"{name}_window"]).long())
    inside = masks_from_bits(data[f"{name}_mask_bits"], height, width)
    x1, y1, x2, y2 = (edge[:, None, None] for edge in windows.unbind(1))
    columns, rows = torch.arange(width), torch.arange(height)[:, None]
    ours = (columns >= x1) & (columns < x2) & (rows >= y1) & (rows < y2)
    assert torch.equal(ours, inside)
    assert torch.equal(ours.sum((1, 2)), tensor(data[f"{name}_area"]).long())


def mask_loss_variants():
    data = golden("mask_loss")
    columns = ("variants", "variant_images", "variant_crop", "variant_ohem", "variant_ratio")
    return list(zip(*(data[c].tolist() for c in columns), strict=True))


@pytest.mark.parametrize("name, images, crop, ohem, ratio", mask_loss_variants())
def test_mask_loss_and_its_gradient(name, images, crop, ohem, ratio):
    data = golden("mask_loss")
    present = [image for image in images.split(",") if image != "empty"]
    num_objects = sum(len(data[f"{image}_logits"]) for image in present)
    total, limit = torch.zeros(()), 0
    for image in present:
        # Channels 2n and 2n + 1 of psi are the two logits of object n, which phi selects.
        logits = tensor(data[f"{image}_logits"])
        num, height, width, _ = logits.shape
        psi = logits.permute(0, 3, 1, 2).reshape(1, 2 * num, height, width).requires_grad_()
        phi = torch.eye(2 * num).view(num, 2, 2 * num)
        masks = tensor(data[f"{image}_gt_masks"])
        scale = height / float(data[f"{image}_pad_shape"][0])
        targets = masks if scale == 1 else ops.mask_targets(masks, (height, width), (4, 4))
        windows = torch.tensor([[0, 0, width, height]]).repeat(num, 1)
        if crop >= 0:
            boxes = tensor(data[f"{image}_boxes"]) * scale
            windows = padded_windows(boxes, crop, (height, width))
        losses = ops.mask_ohem_loss(
            psi,
            phi,
            torch.zeros(num, dtype=torch.int64),
            windows,
            targets,
            torch.arange(num),
            ratio if ohem else None,
        )
        loss_limits, gradient_limits = mask_loss_limits(name, image, num_objects)
        assert_within(losses, tensor(data[f"{name}_inst_{image}"]), loss_limits)
        total, limit = total + losses.sum(), limit + loss_limits.sum()
        (gradient,) = torch.autograd.grad(losses.sum() / (num_objects + 1), psi, retain_graph=True)
        gradient = gradient.view(num, 2, height, width).permute(0, 2, 3, 1)
        assert_within(gradient, tensor(data[f"{name}_grad_{image}"]), gradient_limits)
    expected, count = float(data[f"{name}_loss"][0]), num_objects + 1
    assert abs(total / count - expected) <= limit / count + gamma(count) * expected


@pytest.mark.parametrize("case", ["a", "b"])
def test_mbrm_distributions_and_boxes(case):
    data = golden("mbrm")
    masks = tensor(data[f"{case}_masks"]).double() / 255
    boxes = tensor(data[f"{case}_boxes"]).double()
    mbrm = InclusiveMBRM(gamma=float(data["gamma"])).double()
    profiles = masks.amax(1), masks.amax(2)
    with torch.no_grad():
        posteriors = mbrm.posteriors(*profiles, boxes)
        refined = mbrm(*profiles, boxes)
    for edge, posterior in zip(("left", "top", "right", "bottom"), posteriors, strict=True):
        expected = tensor(data[f"{case}_dist_{edge}"])
        error = posterior_error(mbrm, boxes, profiles[edge in ("top", "bottom")])
        assert_within(posterior, expected, error * posterior)
    # By how much the most probable pixel is more probable than the next; both may be off.
    margin = tensor(data[f"{case}_margin"])
    decided = (margin > 2 * error) | margin.isnan()
    assert decided.sum() > 0.8 * decided.numel()
    expected = tensor(data[f"{case}_boxes_refined"])[:, :4]
    assert torch.equal(refined[decided], expected[decided])


@pytest.mark.parametrize("case", ["up", "down"])
def test_masks_at_the_original_resolution(case):
    data = golden("correlation")
    output = tuple(data[f"gm_{case}_ori_shape"][:2].tolist())
    image = tuple(data[f"gm_{case}_img_shape"][:2].tolist())
    grid = data["logits0"].shape[1:3]
    psi = tensor(data["pixel_reps"])[0, :, : grid[0], : grid[1]]
    phi = tensor(data["obj_reps0"])[:3].view(-1, 2, 32)
    taps = [two_resize_taps(*sizes, 4) for sizes in zip(output, image, grid, strict=True)]
    matrices = [naive.tap_matrix(*own, cells) for own, cells in zip(taps, grid, strict=True)]
    boxes = tensor(data[f"gm_{case}_boxes"])[:, :4]
    windows = padded_windows(boxes, 0.1, output)
    masks = ops.assemble_masks(psi, phi, windows, *taps, 0.4)
    expected = masks_from_bits(data[f"gm_{case}_prob_bits04"], *output)
    probability = naive.probabilities(psi, phi, windows, *matrices)
    limits = resized_limits(psi, phi, *matrices, [4 * cells for cells in grid])
    assert not ((masks.dense() != expected) & ((probability - 0.4).abs() > limits)).any()
    assert_sample(probability, data, f"gm_{case}_prob", limits.max().item())
    limits = naive.probability_limits(psi, phi, *matrices)
    assert_within(masks.row_maxima, probability.amax(2), limits.amax(2))
    assert_within(masks.column_maxima, probability.amax(1), limits.amax(1))


@pytest.mark.parametrize("output, image, grid", [(53, 30, 8), (7, 100, 32), (1, 9, 8), (64, 1, 8)])
def test_taps_equal_two_interpolations_in_a_row(output, image, grid):
    interpolate = torch.nn.functional.interpolate
    signal = torch.randn(1, 1, grid, 1, generator=torch.Generator().manual_seed(0))
    padded = interpolate(signal, (4 * grid, 1), mode="bilinear", align_corners=False)
    expected = interpolate(padded[:, :, :image], (output, 1), mode="bilinear", align_corners=True)
    taps = two_resize_taps(output, image, grid, 4)
    places = (taps.first[:, None] + torch.arange(3)).clamp(max=grid - 1)
    ours = (taps.weights * signal.flatten()[places]).sum(1)
    # PyTorch rounds where it looks, twice, up to the end of the padded image; between neighbours
    # the signal changes by at most twice its largest value.
    places = 2 * gamma(4) * 4 * grid * 2 * signal.abs().max()
    assert_within(ours, expected.flatten(), places + gamma(8) * signal.abs().max())


def test_pixel_stream_gives_representations_and_similarities(make_config):
    data = golden("mask_head")
    shapes = {f"p{level}": ShapeSpec(channels=256, stride=2**level) for level in (3, 4, 5)}
    stream = AlignedCornersPixelStream(make_config(), shapes)
    weights = convert_mmdet_state_dict(authors_state_dict("r50", int(data["weight_seed"])))
    prefix = "pixel_stream."
    stream.load_state_dict(
        {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
    )

    @torch.no_grad()
    def outputs(stream):
        psi = stream({name: tensor(data[f"feat_{name}"]).double() for name in shapes})
        phi = tensor(data["obj_reps"]).double().view(-1, 2, 32)
        windows = torch.tensor([[0, 0, psi.shape[3], psi.shape[2]]]).repeat(len(phi), 1)
        packed, _ = ops.correlate(psi, phi, torch.zeros(len(phi), dtype=torch.int64), windows)
        probability = packed.sigmoid().view(len(phi), *psi.shape[2:])
        return psi, torch.einsum("ncd,dhw->nhwc", phi, psi[0]), probability

    exact, moved = outputs(stream.double()), outputs(disturbed(stream, probable))
    psi, logits, probability = exact
    limits = list(map(spread, exact, moved))
    assert_within(psi, tensor(data["pixel_reps"]), limits[0])
    assert_sample(logits, data, "logits", limits[1])
    assert_sample(probability, data, "fg_prob", limits[2])
