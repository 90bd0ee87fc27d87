"""rdsnet.ops.mask_ohem_loss_at_pixels against whole interpolated maps, sorted object by object."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.rounding import ELEMENTARY, assert_within, gamma
from ops import naive
from ops.scenes import random_pixel_scene, random_sizes, to_device

from rdsnet import ops
from rdsnet.ops import Taps

pytestmark = pytest.mark.numeric
MINING = [None, 0, 1, 2.5, 1000]


def matrices(scene):
    grid = scene.psi.shape[2:]
    taps = (scene.taps_y, scene.taps_x)
    return [naive.tap_matrix(*own, cells) for own, cells in zip(taps, grid)]


def expected_losses(scene, mining):
    return naive.ohem_losses_at_pixels(*scene[:6], *matrices(scene), mining)


class Limits:
    """How far rounding may move what is computed of a scene.

    A logit is a sum of D products of a difference, of which three are interpolated along either
    axis; see naive.ohem_limits and naive.gradient_limits for the rest.
    """

    def __init__(self, scene) -> None:
        rows, columns = matrices(scene)
        self.scene, self.dtype = scene, naive.precision(scene.psi.dtype)
        self.psi, self.phi = (x.detach().abs().double().requires_grad_() for x in scene[:2])
        grid = torch.einsum("nd,ndyx->nyx", self.phi.sum(1), self.psi[scene.image_index])
        size = len(rows), len(columns)
        own = naive.inside(scene.windows, *size)
        self.absolute = (rows.abs() @ grid @ columns.abs().t()) * own
        products = scene.phi.shape[2] + 1 + 2 * 3
        self.logits = self.roundings(products) * self.absolute.detach() + naive.OWN
        self.pixels = int(own.sum((1, 2)).max()) if len(own) else 0
        self.truths = list(naive.truths_at_pixels(*scene[2:6], *size))

    def roundings(self, count: int) -> float:
        """Of both sides, relative."""
        return gamma(count, self.dtype) + gamma(count + ELEMENTARY, torch.float64)

    def losses(self, mining):
        exact = expected_losses(self.scene, mining)
        largest = self.logits.flatten(1).amax(1) if len(self.logits) else exact
        return largest + self.roundings(self.pixels + ELEMENTARY) * exact

    def gradients(self, mining, weights):
        """Of psi and phi. Rounding must not decide which of two pixels is the harder one."""
        channels = naive.channels_at_pixels(*self.scene[:3], *matrices(self.scene))
        logits = channels.diff(dim=1)[:, 0]
        assert naive.smallest_gap(logits, self.truths, mining) > 2 * self.logits.max()
        kept = []
        for foreground, own in self.truths:
            positive, negative = int((own & foreground).sum()), int((own & ~foreground).sum())
            most = negative if mining is None else int(positive * mining)
            kept.append(positive + min(negative, most) + 1)
        largest = torch.as_tensor(weights).double().abs() / torch.tensor(kept)
        total = (self.absolute * largest[:, None, None]).sum()
        count = self.pixels + len(kept) + 2 * 3 + ELEMENTARY
        relative = self.logits.max() / 4 + self.roundings(count)
        return [relative * x for x in torch.autograd.grad(total, (self.psi, self.phi))]


@pytest.mark.parametrize("mining", MINING)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_losses_equal_those_of_whole_maps(run, dtype, mining):
    scene = random_pixel_scene(0, dtype=dtype)
    losses = run(ops.mask_ohem_loss_at_pixels, *scene, mining)
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = expected_losses(scene, mining)
    assert_within(losses.cpu(), expected, Limits(scene).losses(mining))


@pytest.mark.parametrize("block", range(5))
def test_any_geometry(run, block):
    for seed in range(20 * block, 20 * block + 20):
        sizes, mining = random_sizes(seed), MINING[seed % len(MINING)]
        sizes["stride"] = (4, 2, 1, 3, 8, 5)[seed % 6]
        scene = random_pixel_scene(seed, dtype=torch.float64, **sizes)
        losses = run(ops.mask_ohem_loss_at_pixels, *scene, mining)
        expected = expected_losses(scene, mining)
        assert_within(losses, expected, Limits(scene).losses(mining), f"{seed} {sizes}")


def gradients(run, scene, mining, weights):
    psi, phi = (x.clone().requires_grad_() for x in scene[:2])
    losses = run(ops.mask_ohem_loss_at_pixels, psi, phi, *scene[2:], mining)
    (losses * weights).sum().backward()
    return psi.grad, phi.grad


@pytest.mark.parametrize("mining", MINING)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("stride", [4, 2, 3])
def test_gradients_equal_those_of_whole_maps(run, stride, dtype, mining):
    scene = random_pixel_scene(1, stride=stride, dtype=dtype)
    weights = torch.linspace(-1, 2, len(scene.phi), dtype=dtype)
    found = gradients(run, scene, mining, weights)

    psi, phi = (x.detach().double().requires_grad_() for x in scene[:2])
    losses = expected_losses(scene._replace(psi=psi, phi=phi), mining)
    (losses * weights.double()).sum().backward()
    limits = Limits(scene).gradients(mining, weights)
    for mine, theirs, limit in zip(found, (psi.grad, phi.grad), limits, strict=True):
        assert_within(mine.cpu(), theirs, limit)


@pytest.mark.parametrize("mining", [None, 1])
def test_gradcheck(run, mining):
    scene = random_pixel_scene(2, dims=3, height=3, width=4, objects=4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: run(ops.mask_ohem_loss_at_pixels, a, b, *scene[2:], mining),
        (scene.psi.requires_grad_(), scene.phi.requires_grad_()),
    )


@pytest.mark.parametrize("mining", [None, 1])
def test_large_windows_and_many_objects(run, mining):
    scene = random_pixel_scene(8, dims=3, height=40, width=70, objects=30, dtype=torch.float64)
    losses = run(ops.mask_ohem_loss_at_pixels, *scene, mining)
    expected = expected_losses(scene, mining)
    assert_within(losses, expected, Limits(scene).losses(mining))


def test_a_pixel_per_cell_is_the_loss_on_the_grid(run):
    scene = random_pixel_scene(3, stride=1, dtype=torch.float64)
    grid = scene.psi.shape[2:]
    targets = torch.zeros(2, 3, *grid, dtype=torch.uint8)
    for target, own in zip(targets, scene.masks):
        part = own[:, : grid[0], : grid[1]]
        target[:, : part.shape[1], : part.shape[2]] = part
    sizes = torch.tensor([own.shape[:0:-1] for own in scene.masks])
    windows = scene.windows.clone()
    windows[:, 2:] = torch.minimum(windows[:, 2:], sizes[scene.image_index])
    index = scene.image_index * 3 + scene.object_index
    grid_scene = (*scene[:3], windows, targets.flatten(0, 1), index)
    expected = run(ops.mask_ohem_loss, *grid_scene, 1)
    torch.testing.assert_close(run(ops.mask_ohem_loss_at_pixels, *scene, 1), expected)


def any_taps(output: int, cells: int, generator: torch.Generator) -> Taps:
    """Three weights each, cells left out and looked at by many pixels, weights of any sign."""
    first = torch.randint(0, cells, (output,), generator=generator).sort().values
    weights = torch.randn(output, 3, generator=generator, dtype=torch.float64) / 3
    return Taps(first, weights)


@pytest.mark.parametrize("output", [5, 60, 333])
def test_any_taps_in_order(run, output):
    g = torch.Generator().manual_seed(output)
    scene = random_pixel_scene(4, height=11, width=29, stride=8, dtype=torch.float64)
    scene = scene._replace(taps_y=any_taps(output, 11, g), taps_x=any_taps(2 * output, 29, g))
    losses = run(ops.mask_ohem_loss_at_pixels, *scene, 1)
    limits = Limits(scene)
    assert_within(losses, expected_losses(scene, 1), limits.losses(1))
    found = gradients(run, scene, 1, 1.0)
    psi, phi = (x.clone().requires_grad_() for x in scene[:2])
    expected_losses(scene._replace(psi=psi, phi=phi), 1).sum().backward()
    of_gradients = limits.gradients(1, torch.ones(len(phi)))
    for mine, theirs, limit in zip(found, (psi.grad, phi.grad), of_gradients, strict=True):
        assert_within(mine, theirs, limit)


# What rounding does to a few cross-entropies in float32 and their mean.
ROW = gamma(8 + ELEMENTARY)


def one_row(logits: list[float], foreground: list[int], windows=None) -> tuple:
    """One object on a map of one row, whose pixels are its cells."""
    psi = torch.tensor(logits).view(1, 1, 1, -1)
    phi = torch.tensor([[[0.0], [1.0]]])
    index = torch.zeros(1, dtype=torch.int64)
    masks = [torch.tensor(foreground, dtype=torch.uint8).view(1, 1, -1)]
    taps = ops.resize_taps(1, 1, 1, 1), ops.resize_taps(len(logits), len(logits), len(logits), 1)
    windows = torch.tensor(windows or [[0, 0, len(logits), 1]])
    return psi, phi, index, windows, masks, index, *taps


def test_ties_are_counted_once_and_the_first_are_kept(run, path):
    psi, phi, *rest = one_row([1.0, 2.0, 2.0, 2.0, -1.0], [1, 0, 0, 0, 0])
    psi.requires_grad_()
    loss = run(ops.mask_ohem_loss_at_pixels, psi, phi, *rest, 1)
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(2))) / 3
    assert loss.item() == pytest.approx(expected, rel=ROW)
    loss.sum().backward()
    kept = psi.grad.flatten() != 0
    assert kept.sum() == 2 and kept[0]
    if path == "compiled":
        assert kept[1]


def test_what_lies_beyond_a_mask_has_no_part(run):
    # The map has 6 pixels, the image 4; beyond it there is no truth, not background.
    scene = one_row([1.0, 2.0, -1.0, 0.5, 9.0, 9.0], [1, 0, 0, 1])
    losses = [math.log1p(math.exp(z)) for z in (-1.0, 2.0, -1.0, -0.5)]
    found = run(ops.mask_ohem_loss_at_pixels, *scene, None).item()
    assert found == pytest.approx(sum(losses) / 5, rel=ROW)


def test_not_a_number_shows_in_the_loss_of_its_own_object_alone(run):
    psi = torch.zeros(1, 1, 8, 40)
    psi[..., :20] = math.nan
    phi = torch.tensor([[[0.0], [1.0]]]).repeat(2, 1, 1)
    index, own = torch.zeros(2, dtype=torch.int64), torch.tensor([0, 0])
    windows = torch.tensor([[0, 0, 40, 32], [90, 0, 150, 32]])
    taps = ops.resize_taps(32, 32, 8, 4), ops.resize_taps(160, 160, 40, 4)
    masks = [torch.ones(1, 32, 160, dtype=torch.bool)]
    found = run(ops.mask_ohem_loss_at_pixels, psi, phi, index, windows, masks, own, *taps, 1)
    # The mean over all pixels, of which there is one more: all are equal.
    pixels = 60 * 32
    expected = math.log(2) * pixels / (pixels + 1)
    assert found[0].isnan()
    assert found[1].item() == pytest.approx(expected, rel=gamma(pixels + ELEMENTARY))


def test_no_objects(run):
    scene = random_pixel_scene(3, objects=0)
    assert run(ops.mask_ohem_loss_at_pixels, *scene, 1).shape == (0,)
    psi_gradient, phi_gradient = gradients(run, scene, 1, 1.0)
    assert psi_gradient.shape == scene.psi.shape and not psi_gradient.any()
    assert phi_gradient.shape == (0, 2, 32)


def test_images_without_masks(run):
    scene = random_pixel_scene(3, images=1, dtype=torch.float64)
    scene = scene._replace(
        masks=[*scene.masks, scene.masks[0][:0]], psi=scene.psi.repeat(2, 1, 1, 1)
    )
    found = run(ops.mask_ohem_loss_at_pixels, *scene, 1)
    assert_within(found, expected_losses(scene, 1), Limits(scene).losses(1))


@pytest.mark.parametrize("change", ["bytes", "255", "strided"])
def test_masks_may_be_any_non_zero_and_strided(run, change):
    scene = random_pixel_scene(4)
    changed = {
        "bytes": [own.byte() for own in scene.masks],
        "255": [own.byte() * 255 for own in scene.masks],
        "strided": [own.transpose(1, 2).contiguous().transpose(1, 2) for own in scene.masks],
    }[change]
    expected = run(ops.mask_ohem_loss_at_pixels, *scene, 1)
    found = run(ops.mask_ohem_loss_at_pixels, *scene._replace(masks=changed), 1)
    assert torch.equal(found, expected)


def test_results_repeat_bit_by_bit(run):
    scene = random_pixel_scene(5, objects=30, height=20, width=35)

    def results():
        loss = run(ops.mask_ohem_loss_at_pixels, *scene, 1)
        return loss, *gradients(run, scene, 1, 1.0)

    first = results()
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(first, results()))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"masks": [torch.zeros(1, 9, 9).bool()]}, ValueError, "masks must be a tensor per image"),
        ({"masks": [torch.zeros(9, 9).bool()] * 2}, ValueError, "masks must have shape"),
        ({"masks": [torch.zeros(1, 9, 9)] * 2}, TypeError, "masks must be uint8 or bool"),
        ({"object_index": torch.tensor([1])}, ValueError, r"object_index must lie in 0\.\.0"),
        ({"image_index": torch.tensor([2])}, ValueError, r"image_index must lie in 0\.\.1"),
        (
            {"taps_y": Taps(torch.zeros(9).long(), torch.zeros(9, 2))},
            ValueError,
            "taps_y must hold first",
        ),
        (
            {"taps_x": Taps(torch.tensor([0, 6]), torch.zeros(2, 3))},
            ValueError,
            r"taps_x.first must lie",
        ),
        ({"negatives_per_positive": -1}, ValueError, "negatives_per_positive must be None or at"),
    ],
)
def test_wrong_arguments_are_named(path, device, change, error, message):
    if path == "pytorch" and device == "cuda":
        pytest.skip("the definition does not look at values on a GPU, which would stall it")
    arguments = {
        "psi": torch.zeros(2, 4, 5, 6),
        "phi": torch.zeros(1, 2, 4),
        "image_index": torch.ones(1, dtype=torch.int64),
        "windows": torch.zeros(1, 4, dtype=torch.int64),
        "masks": [torch.zeros(1, 9, 9).bool()] * 2,
        "object_index": torch.zeros(1, dtype=torch.int64),
        "taps_y": ops.resize_taps(20, 20, 5, 4),
        "taps_x": ops.resize_taps(24, 24, 6, 4),
        "negatives_per_positive": 1.0,
    }
    moved = {
        name: [to_device(own, device) for own in value]
        if name == "masks"
        else to_device(value, device)
        for name, value in {**arguments, **change}.items()
    }
    with pytest.raises(error, match=message):
        ops.mask_ohem_loss_at_pixels(**moved)


def test_taps_out_of_order_are_refused(path):
    scene = random_pixel_scene(6)
    backwards = Taps(scene.taps_x.first.flip(0), scene.taps_x.weights.flip(0))
    with pytest.raises(ValueError, match=r"taps_x.first must not decrease"):
        ops.mask_ohem_loss_at_pixels(*scene._replace(taps_x=backwards), 1)
