"""rdsnet.ops.correlate against its definition: softmax over two materialised channels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.golden_data import golden
from helpers.rounding import ELEMENTARY, assert_within, gamma, unit_roundoff
from ops import naive
from ops.scenes import random_scene, random_sizes, to_device

from rdsnet import ops

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_logits_are_log_odds_of_the_softmax(run, dtype):
    psi, phi, index, windows = random_scene(0, dtype=dtype)[:4]
    expected = naive.logits(psi, phi, index, windows)
    logits, offsets = run(ops.correlate, psi, phi, index, windows)
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert offsets.tolist() == np.cumsum([0] + [len(z) for z in expected]).tolist()
    limits = naive.logit_limits(psi, phi, index, windows)
    assert_within(logits.cpu(), torch.cat(expected), limits)


@pytest.mark.parametrize("block", range(10))
def test_any_geometry(run, block):
    for seed in range(20 * block, 20 * block + 20):
        sizes = random_sizes(seed)
        psi, phi, index, windows = random_scene(seed, dtype=torch.float64, **sizes)[:4]
        expected = naive.logits(psi, phi, index, windows)
        logits, offsets = run(ops.correlate, psi, phi, index, windows)
        assert offsets.diff().tolist() == [len(z) for z in expected], (seed, sizes)
        expected = torch.cat(expected) if expected else logits.new_zeros(0)
        limits = naive.logit_limits(psi, phi, index, windows)
        assert_within(logits, expected, limits, f"{seed} {sizes}")


def gradients(run, psi, phi, index, windows, weights, arrange=lambda psi: psi):
    psi, phi = psi.clone().requires_grad_(), phi.clone().requires_grad_()
    logits, _ = run(
        lambda psi, *others: ops.correlate(arrange(psi), *others), psi, phi, index, windows
    )
    logits.backward(weights)
    return psi.grad, phi.grad


def assert_gradients(found, psi, phi, index, windows, weights, arrange=lambda psi: psi):
    """Gradients of psi and phi are the naive computation's, up to rounding in the dtype found."""
    wide_psi, wide_phi = (x.detach().double().requires_grad_() for x in (psi, phi))
    torch.cat(naive.logits(arrange(wide_psi), wide_phi, index, windows)).backward(weights.double())
    limits = naive.gradient_limits(arrange(psi), phi, index, windows, weights)
    (limits[0],) = torch.autograd.grad(arrange(wide_psi), wide_psi, limits[0])
    for mine, exact, limit in zip(found, (wide_psi.grad, wide_phi.grad), limits, strict=True):
        assert mine.dtype == psi.dtype
        if mine.dtype in (torch.float16, torch.bfloat16):  # the end result is rounded once more
            least = torch.finfo(mine.dtype).smallest_normal
            limit = limit + unit_roundoff(mine.dtype) * (exact.abs() + limit + least)
        assert_within(mine.cpu(), exact, limit)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_gradients_equal_those_of_the_naive_computation(run, dtype):
    psi, phi, index, windows = random_scene(1, dtype=dtype)[:4]
    count = sum(len(z) for z in naive.logits(psi, phi, index, windows))
    weights = torch.randn(count, generator=torch.Generator().manual_seed(1))
    weights = weights.to(naive.precision(dtype))
    found = gradients(run, psi, phi, index, windows, weights)
    assert_gradients(found, psi, phi, index, windows, weights)


def test_gradcheck(run):
    psi, phi, index, windows = random_scene(
        2, dims=3, height=4, width=5, objects=4, dtype=torch.float64
    )[:4]
    assert torch.autograd.gradcheck(
        lambda a, b: run(ops.correlate, a, b, index, windows)[0],
        (psi.requires_grad_(), phi.requires_grad_()),
    )


LAYOUTS = {
    "channels_last": lambda psi: psi.contiguous(memory_format=torch.channels_last),
    "slice": lambda psi: torch.cat([psi, psi], dim=3)[..., : psi.shape[3]],
    "expanded": lambda psi: psi[:1].expand_as(psi),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(run, layout):
    psi, phi, index, windows = random_scene(4)[:4]
    strided = LAYOUTS[layout]
    assert not strided(psi).is_contiguous()

    def transposed(psi, phi, *others):
        phi = phi.transpose(1, 2).contiguous().transpose(1, 2)
        return ops.correlate(strided(psi), phi, *others)[0]

    found = run(transposed, psi, phi, index.int(), windows.int())
    seen = strided(psi).contiguous()
    expected = torch.cat(naive.logits(seen, phi, index, windows))
    assert_within(found, expected, naive.logit_limits(seen, phi, index, windows))
    weights = torch.randn(len(found), generator=torch.Generator().manual_seed(4))
    found = gradients(run, psi, phi, index, windows, weights, strided)
    assert_gradients(found, psi, phi, index, windows, weights, strided)


def test_large_maps_and_many_objects(run):
    """More than one tile, more objects than threads of a block, more than 64 dimensions."""
    scene = random_scene(6, dims=70, height=30, width=80, objects=270, dtype=torch.float64)
    psi, phi, index, windows = scene[:4]
    windows[5:] = windows[5:] // torch.tensor([1, 1, 4, 4])
    expected = torch.cat(naive.logits(psi, phi, index, windows))
    logits, _ = run(ops.correlate, psi, phi, index, windows)
    assert_within(logits, expected, naive.logit_limits(psi, phi, index, windows))
    weights = torch.randn(len(logits), generator=torch.Generator().manual_seed(6)).double()
    found = gradients(run, psi, phi, index, windows, weights)
    assert_gradients(found, psi, phi, index, windows, weights)


@pytest.mark.parametrize("objects", [3, 40])
def test_results_repeat_bit_by_bit(run, objects):
    psi, phi, index, windows = random_scene(7, objects=objects, height=40, width=70)[:4]
    windows[0] = torch.tensor([0, 0, 70, 40])
    results = []
    for _ in range(3):
        logits = run(ops.correlate, psi, phi, index, windows)[0]
        weights = torch.linspace(-1, 1, len(logits))
        results.append((logits, *gradients(run, psi, phi, index, windows, weights)))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0]))


def test_results_are_the_same_for_any_number_of_threads(path):
    def run(function, *arguments):
        return function(*arguments)

    psi, phi, index, windows = random_scene(5, objects=40, height=40, width=70)[:4]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            logits = run(ops.correlate, psi, phi, index, windows)[0]
            results.append(
                (logits, *gradients(run, psi, phi, index, windows, torch.ones_like(logits)))
            )
    finally:
        torch.set_num_threads(threads)
    if path == "compiled":
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result, results[0]))
    expected = torch.cat(naive.logits(psi, phi, index, windows))
    limits = naive.logit_limits(psi, phi, index, windows)
    for logits, *found in results:  # matrix products may be split by threads
        assert_within(logits, expected, limits)
        assert_gradients(found, psi, phi, index, windows, torch.ones_like(logits))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_stays_within_the_windows_that_look_at_it(run, value):
    """Everything else is what it is with an ordinary number in its place."""
    windows = torch.tensor([[3, 2, 20, 9], [18, 5, 45, 18], [5, 12, 40, 19]])
    index = torch.zeros(3, dtype=torch.int64)
    areas = (windows[:, 2] - windows[:, 0]) * (windows[:, 3] - windows[:, 1])
    weights = torch.randn(int(areas.sum()), generator=torch.Generator().manual_seed(0))

    def gradients_with(number):
        psi, phi = random_scene(9, images=1, height=20, width=50, objects=3)[:2]
        psi[0, :, 10, 2] = number  # in no window
        psi[0, 7, 6, 22] = number  # in the second window, between the cells of the first
        phi[2, 1, 4] = number
        return gradients(run, psi, phi, index, windows, weights)

    found, expected = gradients_with(value), gradients_with(1.0)
    touched_psi, touched_phi = (torch.zeros_like(x, dtype=torch.bool) for x in expected)
    touched_psi[0, 4, 12:19, 5:40] = True
    touched_phi[1, :, 7] = True
    for mine, theirs, touched in zip(found, expected, (touched_psi, touched_phi)):
        assert not mine[touched].isfinite().any()
        torch.testing.assert_close(mine[~touched], theirs[~touched])


@pytest.mark.parametrize("image", [0, 1])
def test_equals_the_authors_correlation(run, image):
    data = golden("correlation")
    height, width = data[f"pad_shape{image}"][:2] // 4
    psi = torch.from_numpy(data["pixel_reps"])[image : image + 1, :, :height, :width]
    phi = torch.from_numpy(data[f"obj_reps{image}"]).view(-1, 2, 32)
    windows = torch.tensor([[0, 0, width, height]]).repeat(len(phi), 1)
    logits, _ = run(ops.correlate, psi, phi, torch.zeros(len(phi), dtype=torch.int64), windows)
    logits = logits.view(len(phi), height, width)
    theirs = torch.from_numpy(data[f"logits{image}"])
    first = torch.zeros(len(phi), dtype=torch.int64)
    limits = 2 * naive.logit_limits(psi, phi, first, windows).view_as(logits)  # both sides round
    assert_within(logits, theirs[..., 1] - theirs[..., 0], limits)
    probabilities = torch.from_numpy(data[f"fg_prob{image}"])
    assert_within(logits.sigmoid(), probabilities, limits / 4 + 2 * gamma(ELEMENTARY))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"psi": torch.zeros(4, 5, 6)}, ValueError, r"psi must have shape \(B, D, h, w\)"),
        ({"phi": torch.zeros(2, 4)}, ValueError, r"phi must have shape \(N, 2, D\)"),
        ({"phi": torch.zeros(2, 2, 3)}, ValueError, "with the D of psi, 4"),
        ({"psi": torch.zeros(1, 4, 5, 6).long()}, TypeError, "psi must be floating point"),
        ({"image_index": torch.zeros(3).long()}, ValueError, "image_index must have shape"),
        ({"image_index": torch.tensor([0, 1])}, ValueError, r"image_index must lie in 0\.\.0"),
        ({"image_index": torch.tensor([-1, 0])}, ValueError, r"image_index must lie in 0\.\.0"),
        ({"image_index": torch.zeros(2)}, TypeError, "image_index must be int32 or int64"),
        ({"windows": torch.zeros(2, 3).long()}, ValueError, r"windows must have shape \(N, 4\)"),
        ({"windows": torch.zeros(2, 4)}, TypeError, "windows must be int32 or int64"),
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
    }
    with pytest.raises(error, match=message):
        ops.correlate(
            **{name: to_device(value, device) for name, value in {**arguments, **change}.items()}
        )
