"""rdsnet.ops.mask_ohem_loss against sorting every object's materialised pixel losses."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.golden_data import golden, mask_loss_limits, tensor
from helpers.rounding import ELEMENTARY, assert_within, gamma
from ops import naive
from ops.scenes import random_scene, random_sizes, to_device

from rdsnet import ops

pytestmark = pytest.mark.numeric
MINING = [None, 0, 1, 2.5, 1000]


@pytest.mark.parametrize("mining", MINING)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_losses_equal_those_of_sorting(run, dtype, mining):
    scene = random_scene(0, dtype=dtype)
    losses = run(ops.mask_ohem_loss, *scene, mining)
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = naive.ohem_losses(*scene, mining)
    assert_within(losses.cpu(), expected, naive.ohem_limits(*scene, mining))


@pytest.mark.parametrize("block", range(10))
def test_any_geometry(run, block):
    for seed in range(20 * block, 20 * block + 20):
        sizes, mining = random_sizes(seed), MINING[seed % len(MINING)]
        scene = random_scene(seed, dtype=torch.float64, **sizes)
        losses = run(ops.mask_ohem_loss, *scene, mining)
        expected = naive.ohem_losses(*scene, mining)
        assert_within(losses, expected, naive.ohem_limits(*scene, mining), f"{seed} {sizes}")


def gradients(run, scene, mining, weights):
    psi, phi = (x.clone().requires_grad_() for x in scene[:2])
    losses = run(ops.mask_ohem_loss, psi, phi, *scene[2:], mining)
    (losses * weights).sum().backward()
    return psi.grad, phi.grad


@pytest.mark.parametrize("mining", MINING)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_equal_those_of_sorting(run, dtype, mining):
    scene = random_scene(1, dtype=dtype)
    weights = torch.linspace(-1, 2, len(scene.phi), dtype=dtype)
    found = gradients(run, scene, mining, weights)
    psi, phi = (x.detach().double().requires_grad_() for x in scene[:2])
    losses = naive.ohem_losses(psi, phi, *scene[2:], mining)
    (losses * weights.double()).sum().backward()
    # Rounding must not decide which of two pixels is the harder one.
    logit_limits = naive.logit_limits(*scene[:4])
    assert naive.mining_gap(*scene, mining) > 2 * logit_limits.max()
    # A pixel's gradient is at most the object's weight, and off as its sigmoid is.
    areas = naive.inside(scene.windows, *psi.shape[2:]).sum((1, 2))
    pixels = weights.repeat_interleave(areas) / naive.kept(*scene, mining).repeat_interleave(areas)
    relative = logit_limits.max() / 4 + gamma(ELEMENTARY, naive.precision(scene.psi.dtype))
    limits = naive.gradient_limits(*scene[:4], pixels, relative)
    for mine, exact, limit in zip(found, (psi.grad, phi.grad), limits, strict=True):
        assert_within(mine.cpu(), exact, limit)


@pytest.mark.parametrize("mining", [None, 1])
def test_gradcheck(run, mining):
    scene = random_scene(2, dims=3, height=4, width=5, objects=4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: run(ops.mask_ohem_loss, a, b, *scene[2:], mining),
        (scene.psi.requires_grad_(), scene.phi.requires_grad_()),
    )


# What rounding does to a few cross-entropies in float32 and their mean.
ROW = gamma(8 + ELEMENTARY)


def one_row(logits: list[float], foreground: list[int]) -> tuple:
    """One object whose logits and targets are given, on a map of one row."""
    psi = torch.tensor(logits).view(1, 1, 1, -1)
    phi = torch.tensor([[[0.0], [1.0]]])
    index = torch.zeros(1, dtype=torch.int64)
    targets = torch.tensor(foreground, dtype=torch.uint8).view(1, 1, -1)
    return psi, phi, index, torch.tensor([[0, 0, len(logits), 1]]), targets, index


def test_ties_are_counted_once(run):
    # One foreground pixel, three equally hard background pixels: exactly one of them is kept.
    scene = one_row([1.0, 2.0, 2.0, 2.0, -1.0], [1, 0, 0, 0, 0])
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(2))) / 3
    assert run(ops.mask_ohem_loss, *scene, 1).item() == pytest.approx(expected, rel=ROW)
    assert (gradients(run, scene, 1, 1.0)[0] != 0).sum() == 2


def test_the_first_of_equally_hard_pixels_are_kept(run, path):
    # 2,000 background pixels in long rows of equals, 700 of them wanted.
    g = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 3, (2700,), generator=g).float()
    foreground = torch.zeros(2700, dtype=torch.int64)
    foreground[torch.randperm(2700, generator=g)[:700]] = 1
    scene = one_row(logits.tolist(), foreground.tolist())
    kept = gradients(run, scene, 1, 1.0)[0].flatten() != 0
    background = foreground == 0
    assert kept[~background].all() and kept[background].sum() == 700
    hard = (logits == 2) & background
    assert kept[hard].sum() == min(700, hard.sum())
    if path == "compiled":
        order = torch.argsort(logits[background], descending=True, stable=True)[:700]
        expected = torch.zeros(2000, dtype=torch.bool)
        expected[order] = True
        assert torch.equal(kept[background], expected)


@pytest.mark.parametrize("mining", MINING)
def test_large_windows_and_many_objects(run, mining):
    scene = random_scene(8, dims=3, height=70, width=150, objects=40, dtype=torch.float64)
    losses = run(ops.mask_ohem_loss, *scene, mining)
    expected = naive.ohem_losses(*scene, mining)
    assert_within(losses, expected, naive.ohem_limits(*scene, mining))


def test_zeros_of_both_signs_are_the_same_logit(run):
    scene = one_row([1.0, 0.0, -0.0, -0.0], [1, 0, 0, 0])
    assert (gradients(run, scene, 2, 1.0)[0] != 0).sum() == 3


def test_easy_pixels_whose_loss_rounds_to_zero_are_still_ranked(run):
    # softplus(-200) and softplus(-300) are 0 in float32; the foreground must not take their place.
    scene = one_row([5.0, -200.0, -300.0, -250.0], [1, 0, 0, 0])
    expected = math.log1p(math.exp(-5)) / 3
    assert run(ops.mask_ohem_loss, *scene, 1).item() == pytest.approx(expected, rel=ROW)


def test_large_logits_neither_overflow_nor_lose_their_gradient(run):
    scene = one_row([-500.0, 500.0, 80.0, -80.0], [1, 0, 1, 0])
    assert run(ops.mask_ohem_loss, *scene, None).item() == pytest.approx(1000 / 5, rel=ROW)
    gradient = gradients(run, scene, None, 1.0)[0].flatten()
    assert_within(gradient, torch.tensor([-0.2, 0.2, 0.0, 0.0]), ROW)


@pytest.mark.parametrize("foreground", [[0, 0, 0], [1, 0, 0]])
def test_not_a_number_shows_in_the_loss(run, foreground):
    scene = one_row([math.nan, math.nan, 1.0], foreground)
    assert math.isnan(run(ops.mask_ohem_loss, *scene, None).item())


@pytest.mark.parametrize("mining", [None, 1])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_pixels_that_are_not_finite_spoil_only_the_objects_that_look_at_them(run, value, mining):
    scene = random_scene(10, images=1, height=20, width=50, objects=2)
    windows = torch.tensor([[17, 3, 30, 12], [2, 8, 48, 19]])
    scene = scene._replace(windows=windows)
    expected = gradients(run, scene, mining, torch.tensor([1.0, 0.0]))
    for y, x in ((7, 16), (12, 20), (2, 31), (15, 30)):  # around the first window
        scene.psi[0, :, y, x] = value
    losses = run(ops.mask_ohem_loss, *scene, mining)
    assert losses[0].isfinite() and not losses[1].isfinite()
    found = gradients(run, scene, mining, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(found[1][0], expected[1][0])
    inside = torch.zeros(20, 50, dtype=torch.bool)
    inside[3:12, 17:30] = True
    torch.testing.assert_close(found[0][0, :, inside], expected[0][0, :, inside])


def test_object_without_foreground_has_no_loss_but_a_connected_gradient(run):
    scene = one_row([1.0, 2.0], [0, 0])
    assert run(ops.mask_ohem_loss, *scene, 1).item() == 0
    assert all((g == 0).all() for g in gradients(run, scene, 1, 1.0))


def test_no_objects(run):
    scene = random_scene(3, objects=0)
    assert run(ops.mask_ohem_loss, *scene, 1).shape == (0,)
    psi_gradient, phi_gradient = gradients(run, scene, 1, 1.0)
    assert psi_gradient.shape == scene.psi.shape and not psi_gradient.any()
    assert phi_gradient.shape == (0, 2, 32)


@pytest.mark.parametrize("targets", ["bool", "255", "strided"])
def test_targets_may_be_bool_or_any_non_zero_and_strided(run, targets):
    scene = random_scene(4)
    changed = {
        "bool": scene.targets.bool(),
        "255": scene.targets * 255,
        "strided": scene.targets.transpose(1, 2).contiguous().transpose(1, 2),
    }[targets]
    expected = run(ops.mask_ohem_loss, *scene, 1)
    assert torch.equal(run(ops.mask_ohem_loss, *scene._replace(targets=changed), 1), expected)


def test_results_repeat_bit_by_bit(run):
    scene = random_scene(5, objects=30, height=40, width=70)
    first = run(ops.mask_ohem_loss, *scene, 1), *gradients(run, scene, 1, 1.0)
    for _ in range(3):
        again = run(ops.mask_ohem_loss, *scene, 1), *gradients(run, scene, 1, 1.0)
        assert all(torch.equal(a, b) for a, b in zip(first, again))


@pytest.mark.parametrize("variant", ["default", "ratio3", "no_ohem"])
def test_equals_the_authors_loss_inside_their_windows(run, variant):
    """Their loss of every object on given logits, with its gradient.

    Map n carries object n's logits: phi[n] is one in channel n alone.
    """
    data = golden("mask_loss")
    place = data["variants"].tolist().index(variant)
    mining = int(data["variant_ratio"][place]) if data["variant_ohem"][place] else None
    images = data["variant_images"][place].split(",")
    counts = [len(data[f"{image.strip()}_boxes"]) for image in images]
    for image in (image.strip() for image in images):
        logits = tensor(data[f"{image}_logits"]).diff(dim=-1)[None, ..., 0].requires_grad_()
        count, height, width = logits.shape[1:]
        phi = torch.stack([torch.zeros(count, count), torch.eye(count)], dim=1)
        boxes = tensor(data[f"{image}_boxes"]) / 4
        low, high = boxes.split(2, dim=1)
        grown = ((high - low + 1) * data["variant_crop"][place]).clamp(min=1)
        limits = torch.tensor([width, height])
        windows = [
            torch.minimum(x.trunc().clamp(min=0), limits) for x in (low - grown, high + grown)
        ]
        windows = torch.cat(windows, dim=1).long()
        masks = tensor(data[f"{image}_gt_masks"])
        quarter = torch.nn.functional.interpolate(
            masks[None].float(), scale_factor=0.25, mode="bilinear"
        )
        targets = (quarter[0] > 0.5).to(torch.uint8)
        index = torch.zeros(count, dtype=torch.int64)
        losses = run(
            ops.mask_ohem_loss, logits, phi, index, windows, targets, torch.arange(count), mining
        )
        loss_limits, gradient_limits = mask_loss_limits(variant, image, sum(counts))
        assert_within(losses, tensor(data[f"{variant}_inst_{image}"]), loss_limits)
        (losses.sum() / (sum(counts) + 1)).backward()
        theirs = tensor(data[f"{variant}_grad_{image}"])
        assert_within(logits.grad[0], theirs[..., 1], gradient_limits[..., 1])


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"targets": torch.zeros(1, 5, 7).byte()}, ValueError, r"targets must have shape"),
        ({"targets": torch.zeros(1, 5, 6)}, TypeError, "targets must be uint8 or bool"),
        ({"target_index": torch.tensor([0, 1])}, ValueError, r"target_index must lie in 0\.\.0"),
        ({"negatives_per_positive": -1}, ValueError, "negatives_per_positive must be None or at"),
    ],
)
def test_wrong_arguments_are_named(path, device, change, error, message):
    if path == "pytorch" and device == "cuda":
        pytest.skip("the definition does not look at values on a GPU, which would stall it")
    arguments = {
        "psi": torch.zeros(1, 4, 5, 6),
        "phi": torch.zeros(2, 2, 4),
        "image_index": torch.zeros(2, dtype=torch.int64),
        "windows": torch.zeros(2, 4, dtype=torch.int64),
        "targets": torch.zeros(1, 5, 6, dtype=torch.uint8),
        "target_index": torch.zeros(2, dtype=torch.int64),
        "negatives_per_positive": 1,
    }
    with pytest.raises(error, match=message):
        ops.mask_ohem_loss(
            **{name: to_device(value, device) for name, value in {**arguments, **change}.items()}
        )
