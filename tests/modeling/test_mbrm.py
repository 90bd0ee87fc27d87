"""MBRM against Bayes' rule written out with loops, and the properties that it must have."""

import copy
import math

import pytest
import torch
from helpers.rounding import ELEMENTARY, gamma

from rdsnet.modeling.mbrm import MBRM
from rdsnet.ops import compiled
from rdsnet.ops.reference import edges as definition
from rdsnet.ops.reference.edges import PRIOR_CUT, PRIOR_REACH

pytestmark = pytest.mark.numeric


def decided(mbrm, columns, rows, boxes):
    """(N,) whether rounding in float32 cannot move the most probable pixel of any edge.

    It is better than the next by more than the two may be off: by the distance to the regressed
    edge in sigmas, by a sum of a kernel's products, by a logarithm. Or they are exactly equal, as
    on either side of an edge in the middle: then everybody computes the same twice.
    """
    wide = copy.deepcopy(mbrm).double()
    given = columns.double(), rows.double(), boxes.double()
    edges = definition.edge_surroundings(*given, wide.radius, wide.gamma, wide.min_sigma)
    log_product = definition._log_product(edges, wide.weight, wide.bias)
    best = log_product.topk(2, dim=1).values
    distance = (boxes.abs().t().flatten() / mbrm.min_sigma + 4) * PRIOR_REACH
    sums = gamma(mbrm.weight.numel() + 2) * (mbrm.weight.abs().sum() + mbrm.bias.abs())
    limit = gamma(4) * distance + sums + gamma(ELEMENTARY) * best[:, 0].abs()
    gap = best[:, 0] - best[:, 1]  # NaN where the prior reaches no pixel
    return (~(gap <= 2 * limit) | (gap == 0)).view(4, -1).all(0)


def edge_detector(**kwargs):
    """Kernel that answers on the first inside pixel of a hard edge, and nowhere else."""
    mbrm = MBRM(**kwargs)
    with torch.no_grad():
        mbrm.weight.zero_()
        mbrm.weight[0, 0, mbrm.radius - 1] = -20.0
        mbrm.weight[0, 0, mbrm.radius] = 20.0
        mbrm.bias.fill_(-10.0)
    return mbrm


def profiles(boxes, height, width):
    """Column and row maxima of hard rectangles [x1, x2) x [y1, y2)."""
    columns, rows = torch.zeros(len(boxes), width), torch.zeros(len(boxes), height)
    for n, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        columns[n, int(x1) : int(x2)] = 1
        rows[n, int(y1) : int(y2)] = 1
    return columns, rows


def posterior_by_loops(profile, kernel, bias, mu, sigma):
    """Eq. 3-7 for one edge, in the order of the paper."""
    s = len(kernel) // 2
    product = []
    for i in range(len(profile)):
        z = bias
        for k in range(-s, s + 1):
            if 0 <= i + k < len(profile):
                z += kernel[k + s] * profile[i + k]
        likelihood = 1 / (1 + math.exp(-z))
        prior = math.exp(-((i - mu) ** 2) / (2 * sigma**2))
        product.append(likelihood * (prior if prior >= 0.0044 else 0))
    total = sum(product)
    return [p / total if total else 0 for p in product]


def test_posteriors_equal_bayes_rule_written_out():
    generator = torch.Generator().manual_seed(3)
    mbrm = MBRM().double()
    columns = torch.rand(9, 60, generator=generator, dtype=torch.float64)
    rows = torch.rand(9, 40, generator=generator, dtype=torch.float64)
    corner = torch.rand(9, 2, generator=generator, dtype=torch.float64) * 25
    boxes = torch.cat([corner, corner + 1 + 14 * torch.rand(9, 2, generator=generator)], 1)
    boxes[0, 2] = 59.0  # one wide enough for sigma above its floor
    posteriors = mbrm.posteriors(columns, rows, boxes)
    kernel, bias = mbrm.weight.flatten().tolist(), mbrm.bias.item()
    for n, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        sigma_x, sigma_y = max(1.0, 0.05 * (x2 - x1)), max(1.0, 0.05 * (y2 - y1))
        expected = (
            posterior_by_loops(columns[n].tolist(), kernel, bias, x1, sigma_x),
            posterior_by_loops(rows[n].tolist(), kernel, bias, y1, sigma_y),
            posterior_by_loops(columns[n].tolist(), kernel[::-1], bias, x2 - 1, sigma_x),
            posterior_by_loops(rows[n].tolist(), kernel[::-1], bias, y2 - 1, sigma_y),
        )
        for got, want in zip(posteriors, expected, strict=True):
            torch.testing.assert_close(got[n], torch.tensor(want, dtype=torch.float64))


def test_ideal_edge_kernel_returns_filled_rectangles_exactly():
    height, width = 50, 64
    sizes = [1, 2, 3, 7, 20, 49, 50]
    boxes = [
        [x, y, min(x + w, width), min(y + h, height)]
        for w in [*sizes, 64]
        for h in sizes
        for x in (0, 5, width - w)
        for y in (0, 3, height - h)
        if x >= 0 and y >= 0
    ]
    boxes = torch.tensor(boxes, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    shift = (torch.rand(boxes.shape, generator=generator) - 0.5) * 0.9
    refined = edge_detector()(*profiles(boxes, height, width), boxes + shift)
    assert torch.equal(refined, boxes)


# The compiled operator has the argmax in float32.
@pytest.mark.parametrize(
    ("readout", "dtype"),
    [("argmax", torch.float32), ("argmax", torch.float64), ("expectation", torch.float64)],
)
def test_mirrored_input_gives_mirrored_boxes_whatever_the_kernel(readout, dtype):
    generator = torch.Generator().manual_seed(5)
    mbrm = MBRM(gamma=0.1, readout=readout).to(dtype)
    torch.nn.init.normal_(mbrm.weight, generator=generator)
    height, width = 40, 60
    columns = torch.rand(30, width, generator=generator, dtype=dtype)
    rows = torch.rand(30, height, generator=generator, dtype=dtype)
    corner = torch.rand(30, 2, generator=generator, dtype=dtype) * 20
    boxes = torch.cat([corner, corner + 3 + 15 * torch.rand(30, 2, generator=generator)], 1)
    boxes = (boxes * 64).round() / 64  # so that mirroring does not round
    assert decided(mbrm, columns, rows, boxes).all()
    mirrored = torch.stack(
        [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1
    )
    refined = mbrm(columns, rows, boxes)
    refined_mirrored = mbrm(columns.flip(1), rows, mirrored)
    assert not torch.equal(refined, boxes)
    torch.testing.assert_close(refined_mirrored[:, 0], width - refined[:, 2])
    torch.testing.assert_close(refined_mirrored[:, 2], width - refined[:, 0])
    transposed = mbrm(rows, columns, boxes[:, [1, 0, 3, 2]])
    assert torch.equal(transposed, refined[:, [1, 0, 3, 2]])
    on_pixels = (refined == refined.round()).float().mean()
    assert on_pixels > 0.9 if readout == "argmax" else on_pixels < 0.1


def test_expectation_is_the_posterior_mean_around_the_mode():
    generator = torch.Generator().manual_seed(8)
    mbrm = MBRM(gamma=0.3, radius=2, readout="expectation").double()
    columns = torch.rand(12, 50, generator=generator, dtype=torch.float64)
    rows = torch.rand(12, 40, generator=generator, dtype=torch.float64)
    boxes = torch.tensor([[8.2, 6.6, 41.3, 33.9]], dtype=torch.float64).repeat(12, 1)
    refined = mbrm(columns, rows, boxes)
    for n in range(12):
        for edge, posterior in enumerate(
            mbrm.posteriors(columns[n : n + 1], rows[n : n + 1], boxes[:1])
        ):
            p = posterior[0].tolist()
            mode = max(range(len(p)), key=p.__getitem__)
            near = range(max(mode - 2, 0), min(mode + 3, len(p)))
            mean = sum(i * p[i] for i in near) / sum(p[i] for i in near)
            assert refined[n, edge].item() == pytest.approx(mean + (1 if edge > 1 else 0))


def test_argmax_is_that_of_the_posterior_over_the_whole_image():
    generator = torch.Generator().manual_seed(4)
    columns, rows = (
        torch.rand(200, 120, generator=generator),
        torch.rand(200, 90, generator=generator),
    )
    corner = torch.rand(200, 2, generator=generator) * 60 - 10
    boxes = torch.cat([corner, corner + 1 + 90 * torch.rand(200, 2, generator=generator)], 1)
    mbrm = MBRM(gamma=0.1)
    left, top, right, bottom = mbrm.posteriors(columns, rows, boxes)
    edges = [left.argmax(1), top.argmax(1), right.argmax(1) + 1, bottom.argmax(1) + 1]
    expected = torch.stack(edges, dim=1).float()
    reached = torch.stack([p.sum(1) > 0 for p in (left, top, right, bottom)], dim=1)
    assert not reached.all()
    expected = torch.where(reached, expected, boxes)
    swapped = (expected[:, 2:] <= expected[:, :2]).repeat(1, 2)
    refined = mbrm(columns, rows, boxes)
    assert decided(mbrm, columns, rows, boxes).all()
    assert torch.equal(refined[~swapped], expected[~swapped])
    assert torch.equal(refined[swapped], boxes[swapped])


def test_where_the_mask_is_flat_expectation_keeps_the_fraction_of_the_regressed_edge():
    mbrm = MBRM(readout="expectation")
    torch.nn.init.zeros_(mbrm.weight)
    boxes = torch.tensor([[10.3, 12.45, 20.8, 24.6]])
    refined = mbrm(torch.ones(1, 40), torch.ones(1, 40), boxes)
    # The prior may end one pixel earlier on one side: what that pixel would have weighed.
    ends = PRIOR_CUT * PRIOR_REACH / math.sqrt(2 * math.pi)
    torch.testing.assert_close(refined, boxes, rtol=0, atol=ends)
    mbrm.readout = "argmax"
    assert torch.equal(mbrm(torch.ones(1, 40), torch.ones(1, 40), boxes), boxes.round())


def test_published_kernel_puts_a_hard_edge_one_pixel_outside():
    box = torch.tensor([[10.0, 12.0, 30.0, 33.0]])
    likelihood = MBRM().likelihood(profiles(box, 40, 50)[0], MBRM().weight)
    assert likelihood.argmax(1).item() == 9


@pytest.mark.parametrize("readout", ["argmax", "expectation"])
def test_what_the_mask_says_nothing_about_stays_as_regressed(readout):
    boxes = torch.tensor(
        [
            [10.3, 8.2, 30.7, 25.1],  # empty mask
            [-400.0, 8.0, 30.0, 25.0],  # left edge out of the prior's reach
            [12.0, 8.0, 11.0, 25.0],  # reversed
        ]
    )
    columns, rows = profiles(torch.tensor([[0, 0, 0, 0], [10, 8, 30, 25], [10, 8, 30, 25]]), 40, 50)
    refined = MBRM(readout=readout)(columns, rows, boxes)
    assert torch.equal(refined[0], boxes[0])
    assert refined[1, 0] == -400.0 and torch.isfinite(refined).all()
    assert torch.equal(refined[2, [0, 2]], boxes[2, [0, 2]])


def test_boxes_of_a_model_that_has_diverged_come_back():
    inf, nan = torch.inf, torch.nan
    boxes = torch.tensor([[nan, 1, 2, 3], [nan] * 4, [-inf, -inf, inf, inf], [5, 5, 20, 20]])
    columns, rows = profiles(torch.tensor([[5, 5, 20, 20]] * 4), 40, 50)
    refined = MBRM()(columns, rows, boxes)
    assert torch.equal(refined[:3].nan_to_num(), boxes[:3].nan_to_num())
    assert (refined[3] - boxes[3]).abs().max() <= 1


@pytest.mark.parametrize("readout", ["argmax", "expectation"])
def test_refined_boxes_always_have_extent(readout):
    generator = torch.Generator().manual_seed(11)
    columns, rows = (
        torch.rand(300, 30, generator=generator),
        torch.rand(300, 30, generator=generator),
    )
    corner = torch.rand(300, 2, generator=generator) * 29
    boxes = torch.cat([corner, corner + 0.05 + 2 * torch.rand(300, 2, generator=generator)], 1)
    refined = MBRM(readout=readout)(columns, rows, boxes)
    assert (refined[:, 2:] > refined[:, :2]).all()


def loss_by_loops(mbrm, columns, rows, boxes, gt_boxes):
    """Mean of -log P of the true edges whose prior is not 0, and their number."""
    kernel, bias = mbrm.weight.flatten().tolist(), mbrm.bias.item()
    terms = []
    for n in range(len(boxes)):
        for edge in range(4):
            profile = (columns if edge % 2 == 0 else rows)[n].tolist()
            taps = kernel if edge < 2 else kernel[::-1]
            side = (boxes[n, 2 + edge % 2] - boxes[n, edge % 2]).item()
            mu = boxes[n, edge].item() - (1 if edge > 1 else 0)
            sigma = max(1.0, mbrm.gamma * side)
            posterior = posterior_by_loops(profile, taps, bias, mu, sigma)
            gt = gt_boxes[n, edge].item()
            centres = [i + 0.5 for i in range(len(profile))]
            if edge < 2:
                inside = [i for i, c in enumerate(centres) if c >= gt]
                true = inside[0] if inside and gt >= -0.5 else None
            else:
                inside = [i for i, c in enumerate(centres) if c < gt]
                true = inside[-1] if inside and gt < len(profile) + 0.5 else None
            if true is not None and posterior[true] > 0:
                terms.append(-math.log(posterior[true]))
    return sum(terms) / len(terms), len(terms)


def noisy_objects(count, seed=0):
    """Soft profiles of random boxes in 60 x 80 px, boxes regressed beside them, true boxes."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 30 + 4
    gt = torch.cat([corner, corner + 4 + 20 * torch.rand(count, 2, generator=generator)], 1)
    boxes = gt + torch.randn(count, 4, generator=generator) * 1.5
    softness = 0.5 + torch.rand(count, 1, generator=generator)
    profile = []
    for axis, length in ((0, 80), (1, 60)):
        centre = torch.arange(length) + 0.5
        low, high = gt[:, axis, None], gt[:, 2 + axis, None]
        profile.append(
            ((centre - low) / softness).sigmoid() * ((high - centre) / softness).sigmoid()
        )
    return profile[0], profile[1], boxes, gt


def test_loss_is_the_cross_entropy_of_the_edges_within_reach():
    mbrm = MBRM().double()
    columns, rows, boxes, gt = noisy_objects(15)
    gt[0, 0] = boxes[0, 0] - 9  # out of the prior's reach
    gt[1, 2] = 95.0  # outside the image
    gt[2, 1] = 7.5  # exactly a pixel's centre
    boxes[2, 1] = 8.1
    loss, reached = mbrm.loss(columns, rows, boxes, gt)
    expected, count = loss_by_loops(mbrm, columns, rows, boxes, gt)
    assert 30 < count < 59 and reached == count
    assert loss.item() == pytest.approx(expected)


def test_edges_out_of_reach_move_no_weight():
    mbrm = MBRM()
    columns, rows, boxes, _ = (x.float() for x in noisy_objects(5))
    loss, reached = mbrm.loss(columns, rows, boxes, boxes + torch.tensor([20.0, 20, 20, 20]))
    loss.backward()
    assert loss == 0 and reached == 0
    assert torch.equal(mbrm.weight.grad, torch.zeros(1, 1, 9)) and mbrm.bias.grad == 0


def test_edges_that_the_kernel_deems_impossible_stay_in_the_loss():
    mbrm = MBRM()
    with torch.no_grad():
        mbrm.weight.mul_(1000)  # sigmoid is 0 in float32
    columns, rows, _, gt = (x.float() for x in noisy_objects(5))
    loss, reached = mbrm.loss(columns, rows, gt + 0.2, gt)
    assert reached == 20 and torch.isfinite(loss)
    loss.backward()
    assert torch.isfinite(mbrm.weight.grad).all() and mbrm.weight.grad.abs().sum() > 0


def test_objects_of_different_images_can_be_padded_together():
    mbrm = MBRM(gamma=0.2).double()
    columns, rows, boxes, gt = noisy_objects(6)
    # The image of the first three ends inside the reach of their right and bottom priors.
    sizes = torch.tensor([[60, 80]] * 6)
    for n in range(3):
        height, width = int(boxes[n, 3]) + 1, int(boxes[n, 2]) + 1
        sizes[n] = torch.tensor([height, width])
        columns[n, width:], rows[n, height:] = 0, 0
    losses = [
        mbrm.loss(columns[n : n + 1, :w], rows[n : n + 1, :h], boxes[n : n + 1], gt[n : n + 1])
        for n, (h, w) in enumerate(sizes.tolist())
    ]
    total, edges = sum(loss * count for loss, count in losses), sum(count for _, count in losses)
    loss, reached = mbrm.loss(columns, rows, boxes, gt, sizes)
    assert reached == edges
    torch.testing.assert_close(loss, total / edges)


def test_autocast_does_not_coarsen_the_posterior():
    columns, rows, boxes, gt = (x.float() for x in noisy_objects(5))
    mbrm = MBRM(readout="expectation")
    expected, loss = mbrm(columns, rows, boxes), mbrm.loss(columns, rows, boxes, gt)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mbrm(columns, rows, boxes), expected)
        assert torch.equal(mbrm.loss(columns, rows, boxes, gt)[0], loss)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3, 50), (3, 40), (3, 5)), r"boxes must have shape \(N, 4\), got \(3, 5\)"),
        (((2, 50), (3, 40), (3, 4)), r"column_maxima must have a row for each of the 3 boxes"),
        (((3, 50), (40,), (3, 4)), r"row_maxima must have a row for each of the 3 boxes"),
    ],
)
def test_maxima_that_do_not_fit_the_boxes_are_named(path, shapes, message):
    with pytest.raises(ValueError, match=message):
        MBRM()(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.skipif(compiled.active_path() == "pytorch", reason=compiled.why_not_compiled())
def test_compiled_operator_moves_the_same_edges_to_the_same_pixels():
    generator = torch.Generator().manual_seed(21)
    for share, radius in ((0.05, 4), (0.2, 2), (0.01, 1)):
        mbrm = MBRM(share, radius)
        torch.nn.init.normal_(mbrm.weight, generator=generator)
        columns = torch.rand(400, 90, generator=generator)
        rows = torch.rand(400, 70, generator=generator)
        columns[:40], rows[40:80] = 0, 0
        columns[80:120] = 1  # flat: only the prior decides
        corner = torch.rand(400, 2, generator=generator) * 140 - 40
        boxes = torch.cat([corner, corner + 120 * torch.rand(400, 2, generator=generator)], 1)
        boxes[::3] = (boxes[::3] * 2).round() / 2  # ties between two pixels
        boxes[5] = boxes[5, [2, 1, 0, 3]]
        boxes[6:9] = torch.tensor([[-1e12, 0, 1e12, 30], [3, 4, torch.inf, 20], [7, 9, 7, 9.5]])
        refined = mbrm(columns, rows, boxes)
        with compiled.definitions_only():
            expected = mbrm(columns, rows, boxes)
        sure = decided(mbrm, columns, rows, boxes)
        assert torch.equal(refined[sure], expected[sure])
        assert (refined != boxes)[sure].any(1).sum() > 100
