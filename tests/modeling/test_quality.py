"""Scores that grow with the quality of boxes and masks."""

import math

import pytest
import torch
from helpers.rounding import assert_within, gamma
from torch.nn import functional as F

from rdsnet.modeling import quality
from rdsnet.modeling.quality import mask_confidence, quality_focal_loss

# A probability is taken of a logit (here below 2^6) in float32, and the mean over the points.
PROBABILITY = 2**6 * gamma(3)
MEAN = PROBABILITY + gamma(quality.POINTS**2 + 1)


def naive_quality_focal_loss(logits, qualities, power):
    total = 0.0
    for z, q in zip(logits.flatten().tolist(), qualities.flatten().tolist()):
        p = 1 / (1 + math.exp(-z))
        total += abs(p - q) ** power * -(q * math.log(p) + (1 - q) * math.log(1 - p))
    return total


def test_quality_focal_loss_is_its_definition():
    torch.manual_seed(0)
    logits = torch.randn(40, 3, dtype=torch.float64)
    qualities = torch.rand(40, 3, dtype=torch.float64) * (torch.rand(40, 3) < 0.3)
    for power in (1.0, 2.0, 1.5):
        expected = naive_quality_focal_loss(logits, qualities, power)
        found = quality_focal_loss(logits, qualities, power).item()
        assert found == pytest.approx(expected, rel=1e-12)


def test_quality_focal_loss_is_least_where_the_score_is_the_quality():
    qualities = torch.tensor([0.0, 0.2, 0.5, 0.9], dtype=torch.float64)
    logits = qualities.clamp(min=1e-9).logit().requires_grad_()
    quality_focal_loss(logits, qualities, 2.0).backward()
    assert (logits.grad.abs() < 1e-8).all()


def dense_probabilities(phi, psi, boxes, fineness):
    """Inside boxes (in cells), of whole maps that were brought to a finer grid."""
    logits = torch.einsum("nd,dhw->nhw", phi[:, 1] - phi[:, 0], psi)
    size = [side * fineness for side in psi.shape[1:]]
    maps = F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    for probability, (x1, y1, x2, y2) in zip(maps.sigmoid(), (boxes * fineness).long().tolist()):
        yield probability[y1:y2, x1:x2]


def test_confidence_is_the_mean_probability_of_the_mask():
    """Boxes of two cells a side: their points are the pixels of a finer grid."""
    torch.manual_seed(1)
    phi, psi = torch.randn(30, 2, 32).double(), torch.randn(32, 12, 20).double() / 4
    x, y = torch.randint(0, 18, (30,)), torch.randint(0, 10, (30,))
    boxes = torch.stack([x, y, x + 2, y + 2], dim=1).double()
    for threshold in (0.4, 0.7):
        found = mask_confidence(phi, psi, boxes, threshold)
        expected, clear = [], []
        for own in dense_probabilities(phi, psi, boxes, quality.POINTS // 2):
            inside = own > threshold
            expected.append(own[inside].mean() if inside.any() else own.sum() * 0)
            clear.append(bool(((own - threshold).abs() > PROBABILITY).all()))
        clear = torch.tensor(clear)
        assert clear.sum() > 25  # of no point can rounding say whether it belongs
        assert_within(found[clear], torch.stack(expected)[clear], MEAN)
        assert found.std() > 0.01


def test_confidence_of_sure_unsure_and_empty_masks():
    psi = torch.zeros(2, 8, 8)
    psi[0] = 1.0
    psi[1, :, 4:] = 1.0  # the right half
    phi = torch.zeros(4, 2, 2)
    phi[0, 1, 0] = 20.0  # foreground everywhere
    phi[1, 1, 0] = 0.1  # hardly
    phi[2, 0, 0] = 20.0  # nowhere
    phi[3, 1] = torch.tensor([-20.0, 40.0])  # in the right half alone
    boxes = torch.tensor([[1.0, 1.0, 7.0, 7.0]]).repeat(4, 1)
    sure, unsure, empty, half = mask_confidence(phi, psi, boxes, 0.4).tolist()
    assert sure > 0.999 and empty == 0
    assert unsure == pytest.approx(1 / (1 + math.exp(-0.1)), rel=1e-5)
    assert half > 0.9  # what lies outside the mask does not count


def test_confidence_of_no_objects_and_beyond_the_image():
    psi = torch.ones(4, 6, 6)
    assert mask_confidence(torch.zeros(0, 2, 4), psi, torch.zeros(0, 4), 0.4).shape == (0,)
    phi = torch.zeros(1, 2, 4)
    phi[0, 1] = 1.0
    outside = mask_confidence(phi, psi, torch.tensor([[-3.0, -3.0, 9.0, 9.0]]), 0.4)
    assert outside.item() == pytest.approx(1 / (1 + math.exp(-4.0)), rel=1e-5)
