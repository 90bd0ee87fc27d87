"""The ellipse that masks start from: the dot product is the quadratic function it stands for."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from helpers.exporting import assert_equal, graph_and_model, random_image, tiny_config, untrained
from helpers.rounding import assert_within, gamma

from rdsnet.modeling.mask_prior import EllipsePrior, build_mask_prior, near

D = 8
BOXES = torch.tensor([[1.0, 2, 9, 8], [3, 3, 3.1, 4], [10, 5, 29, 19], [0, 0, 30, 20]])


def cfg(*opts):
    return tiny_config("MODEL.RDSNET.MASK_PRIOR", "ellipse", *opts)


def test_dot_product_is_the_function_of_where_a_pixel_lies_in_the_box():
    torch.manual_seed(0)
    prior = EllipsePrior().double()
    with torch.no_grad():
        prior.mean += 0.3 * torch.randn(6)
    phi, psi = torch.randn(len(BOXES), 2, D + 3), torch.randn(D, 20, 30)
    located, pixels = prior.of_objects(phi, BOXES), prior.of_pixels(psi)
    assert located.shape == (len(BOXES), 2, D + 6) and pixels.shape == (D + 6, 20, 30)
    assert located.dtype == pixels.dtype == torch.float32
    terms = (located[:, 1] - located[:, 0]).double()[:, :, None, None] * pixels.double()
    x, y = torch.arange(30) + 0.5, torch.arange(20)[:, None] + 0.5
    for n, (x1, y1, x2, y2) in enumerate(BOXES.double()):
        correlation = torch.einsum(
            "d,dhw->hw", (phi[n, 1, :D] - phi[n, 0, :D]).double(), psi.double()
        )
        q = torch.cat([phi[n, 0, D:], phi[n, 1, D:]]).double() + prior.mean
        u = (x - (x1 + x2) / 2) / ((x2 - x1).clamp(min=0.25) / 2)
        v = (y - (y1 + y2) / 2) / ((y2 - y1).clamp(min=0.25) / 2)
        parts = (torch.ones_like(u * v), u + 0 * v, v + 0 * u, u * u + 0 * v, v * v + 0 * u, u * v)
        expected = correlation + sum(a * b for a, b in zip(q, parts))
        # Coefficients are rounded once, and those of large coordinates cancel.
        limit = gamma(4) * terms[n].abs().sum(0)
        assert_within(terms[n].sum(0), expected, limit)


def test_masks_start_as_the_ellipse_in_the_box():
    phi, psi = torch.zeros(1, 2, D + 3), torch.zeros(D, 20, 30)
    prior = EllipsePrior()
    box = torch.tensor([[4.0, 3, 24, 15]])
    logits = torch.einsum("nd,dhw->nhw", prior.of_objects(phi, box)[:, 1], prior.of_pixels(psi))[0]
    x, y = torch.arange(30) + 0.5, torch.arange(20)[:, None] + 0.5
    inside = ((x - 14) / 10) ** 2 + ((y - 9) / 6) ** 2 < 1
    assert torch.equal(logits > 0, inside)


def test_boxes_of_training_are_no_further_off_than_a_fifth_of_the_side():
    gt = torch.tensor([[10.0, 20, 30, 60]])
    for predicted, expected in (
        ([12.0, 19, 31, 58], [12.0, 19, 31, 58]),
        ([0.0, 0, 100, 100], [6.0, 12, 34, 68]),
        ([90.0, 90, 90, 90], [14.0, 28, 34, 68]),
    ):
        assert near(torch.tensor([predicted]), gt).tolist() == [expected]


def test_training_reaches_the_prior_and_the_numbers_of_objects():
    torch.manual_seed(0)
    model = build_model(cfg()).train()
    instances = Instances((64, 96))
    instances.gt_boxes = Boxes([[8.0, 8, 40, 30], [50, 20, 90, 60]])
    instances.gt_classes = torch.tensor([0, 2])
    masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks[0, 8:30, 8:40], masks[1, 20:60, 50:90] = True, True
    instances.gt_masks = BitMasks(masks)
    with EventStorage():
        losses = model([{"image": random_image(64, 96), "instances": instances}])
    losses["loss_mask"].backward()
    assert model.mask_prior.mean.grad.abs().sum() > 0
    rows = model.object_stream.head.rep_pred.weight.grad.view(-1, 2, 32 + 3, 32, 3, 3)
    assert (rows[:, :, 32:].abs().amax((0, 2, 3, 4, 5)) > 0).all()


def test_images_without_detections():
    model = untrained(cfg("MODEL.RETINANET.SCORE_THRESH_TEST", 1.0))
    with torch.no_grad():
        (result,) = model([{"image": random_image(64, 96)}])
    assert len(result["instances"]) == 0 and result["instances"].pred_masks.shape == (0, 64, 96)


@pytest.mark.parametrize("size", [(64, 96), (60, 90)])
def test_exported_graph_finds_what_the_model_finds(size):
    found, expected = graph_and_model(untrained(cfg()), random_image(*size), None, (100, 150))
    assert_equal(found, expected)
    assert len(found.scores) > 5


def test_unknown_priors_are_refused():
    with pytest.raises(ValueError, match="MODEL.RDSNET.MASK_PRIOR must be one of"):
        build_mask_prior(tiny_config("MODEL.RDSNET.MASK_PRIOR", "circle"))
