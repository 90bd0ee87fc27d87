"""The core against numbers of the authors' code, wherever both follow the same convention.

What follows another convention is tested in ``projects/AuthorsCompat/tests``.
"""

import numpy as np
import pytest
import torch
from helpers.golden_data import (
    assert_sample,
    authors_state_dict,
    golden,
    mask_loss_limits,
    posterior_error,
    ratio_major,
    rule_weight,
    state_dict_shapes,
    tensor,
)
from helpers.rounding import ELEMENTARY, assert_within, disturbed, gamma, probable, spread
from ops import naive

from rdsnet import ops
from rdsnet.modeling import MBRM
from rdsnet.modeling.retinanet_stream import RDSNetHead
from rdsnet.ops import mask_targets

pytestmark = pytest.mark.numeric


def test_weight_rule_gives_the_stored_sums_norms_and_first_values():
    data = golden("weights_check")
    shapes = state_dict_shapes("r50_mbrm")
    assert data["names"].tolist() == list(shapes)
    for i, (name, shape) in enumerate(shapes.items()):
        values = rule_weight(name, shape, int(data["weight_seed"])).numpy().reshape(-1)
        exact = values.astype(np.float64)
        limit = 2 * gamma(exact.size, torch.float64)  # both sides add
        assert abs(exact.sum() - data["sum"][i]) <= limit * np.abs(exact).sum(), name
        assert np.linalg.norm(exact) == pytest.approx(data["l2"][i], rel=limit), name
        first = np.zeros(3, np.float32)
        first[: min(3, len(values))] = values[:3]
        assert np.array_equal(first, data["first3"][i]), name


@pytest.mark.parametrize("image", [0, 1])
def test_correlation_is_the_difference_of_the_two_similarity_logits(image):
    data = golden("correlation")
    psi = tensor(data["pixel_reps"])
    phi = tensor(data[f"obj_reps{image}"]).view(-1, 2, 32)
    expected = tensor(data[f"logits{image}"])  # (N, h, w, 2), cut to the image's padded area
    height, width = expected.shape[1:3]
    windows = torch.tensor([[0, 0, width, height]]).repeat(len(phi), 1)
    index = torch.full((len(phi),), image)
    logits, _ = ops.correlate(psi, phi, index, windows)
    difference = (expected[..., 1] - expected[..., 0]).flatten()
    limits = 2 * naive.logit_limits(psi, phi, index, windows)  # both sides round
    assert_within(logits, difference, limits)
    probability = tensor(data[f"fg_prob{image}"]).flatten()
    assert_within(logits.sigmoid(), probability, limits / 4 + 2 * gamma(ELEMENTARY))


def variants_without_crop():
    data = golden("mask_loss")
    columns = ("variants", "variant_images", "variant_ohem", "variant_ratio")
    rows = zip(*(data[c].tolist() for c in columns), data["variant_crop"], strict=True)
    return [row[:4] for row in rows if row[4] < 0 or row[1] == "empty"]


@pytest.mark.parametrize("name, images, ohem, ratio", variants_without_crop())
def test_mask_loss_and_gradient_on_whole_maps(name, images, ohem, ratio):
    data = golden("mask_loss")
    total, limit, count = torch.zeros(()), 0, 0
    for image in images.split(","):
        if image == "empty":
            continue
        # Channels 2n and 2n + 1 of psi are the two logits of object n, which phi selects.
        logits = tensor(data[f"{image}_logits"])
        num, height, width, _ = logits.shape
        psi = logits.permute(0, 3, 1, 2).reshape(1, 2 * num, height, width).requires_grad_()
        phi = torch.eye(2 * num).view(num, 2, 2 * num)
        targets = mask_targets(tensor(data[f"{image}_gt_masks"]), (height, width), (4, 4))
        kept = data[f"{name}_kept_{image}"]
        assert targets.sum((1, 2)).tolist() == kept[:, 0].tolist()
        losses = ops.mask_ohem_loss(
            psi,
            phi,
            torch.zeros(num, dtype=torch.int64),
            torch.tensor([[0, 0, width, height]]).repeat(num, 1),
            targets,
            torch.arange(num),
            ratio if ohem else None,
        )
        all_objects = sum(len(data[f"{i}_logits"]) for i in images.split(",") if i != "empty")
        loss_limits, gradient_limits = mask_loss_limits(name, image, all_objects)
        assert_within(losses, tensor(data[f"{name}_inst_{image}"]), loss_limits)
        total, count = total + losses.sum(), count + num
        limit = limit + loss_limits.sum()
        (gradient,) = torch.autograd.grad(losses.sum() / (all_objects + 1), psi, retain_graph=True)
        gradient = gradient.view(num, 2, height, width).permute(0, 2, 3, 1)
        assert_within(gradient, tensor(data[f"{name}_grad_{image}"]), gradient_limits)
    expected = float(data[f"{name}_loss"][0])
    assert abs(total / (count + 1) - expected) <= limit / (count + 1) + gamma(count + 1) * expected


@pytest.mark.parametrize("case", ["a", "b"])
def test_mbrm_prior_times_likelihood_is_the_boundary_distribution(case):
    data = golden("mbrm")
    masks = tensor(data[f"{case}_masks"]).double() / 255
    boxes = tensor(data[f"{case}_boxes"]).double()
    mbrm = MBRM(gamma=float(data["gamma"]))
    assert torch.equal(mbrm.weight.detach(), tensor(data["weight"]))
    assert torch.equal(mbrm.bias.detach(), tensor(data["bias"]))
    mbrm = mbrm.double()
    # The authors' sigma, and their index of the last pixel inside as mu of right and bottom edges.
    sides = boxes[:, 2:] - boxes[:, :2]
    sigma = (sides * float(data["gamma"])).clamp(min=1)
    columns, rows = masks.amax(1), masks.amax(2)
    for i, edge in enumerate(["left", "top", "right", "bottom"]):
        profile = (columns, rows)[i % 2]
        kernel = mbrm.weight if i < 2 else mbrm.weight.flip(-1)
        prior = mbrm.prior(boxes[:, i], sigma[:, i % 2], profile.shape[1])
        posterior = prior * mbrm.likelihood(profile, kernel)
        posterior = (posterior / posterior.sum(1, keepdim=True)).detach()
        expected = tensor(data[f"{case}_dist_{edge}"])
        assert_within(posterior, expected, posterior_error(mbrm, boxes, profile) * posterior)


def test_head_gives_logits_deltas_and_representations():
    data = golden("retina_head")
    names = state_dict_shapes("r50")
    from rdsnet.checkpoint import convert_mmdet_state_dict

    converted = convert_mmdet_state_dict(authors_state_dict("r50", int(data["weight_seed"])))
    prefix = "object_stream.head."
    weights = {k[len(prefix) :]: v for k, v in converted.items() if k.startswith(prefix)}
    assert len(weights) == sum(name.startswith("bbox_head.") for name in names)
    head = make_head()
    head.load_state_dict(weights)
    features = [tensor(data[f"feat_p{level}"]).double() for level in range(3, 8)]

    @torch.no_grad()
    def outputs(head):
        logits, deltas, rep_features = head(features)
        return {"cls": logits, "reg": deltas, "rep": [head.rep_pred(x) for x in rep_features]}

    exact = outputs(head.double())
    moved = outputs(disturbed(head, probable))
    for kind in exact:
        for level, one, other in zip(range(3, 8), exact[kind], moved[kind], strict=True):
            assert_sample(ratio_major(one), data, f"{kind}_p{level}", spread(one, other))


def make_head() -> RDSNetHead:
    from detectron2.layers import ShapeSpec

    import rdsnet

    cfg = rdsnet.get_cfg()
    cfg.MODEL.RETINANET.NORM = "GN"
    sizes = [[2.0 ** (2 + level + i / 3) for i in range(3)] for level in range(3, 8)]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = sizes
    return RDSNetHead(cfg, [ShapeSpec(channels=256, stride=2**level) for level in range(3, 8)])
