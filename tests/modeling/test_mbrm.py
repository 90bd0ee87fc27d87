"""MBRM against Bayes' rule written out with loops, and the properties that it must have."""

import math

import pytest
import torch

from rdsnet.modeling.mbrm import MBRM


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


def test_mirrored_input_gives_mirrored_boxes_whatever_the_kernel():
    generator = torch.Generator().manual_seed(5)
    mbrm = MBRM(gamma=0.1)
    torch.nn.init.normal_(mbrm.weight, generator=generator)
    height, width = 40, 60
    columns = torch.rand(30, width, generator=generator)
    rows = torch.rand(30, height, generator=generator)
    corner = torch.rand(30, 2, generator=generator) * 20
    boxes = torch.cat([corner, corner + 3 + 15 * torch.rand(30, 2, generator=generator)], 1)
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


def test_what_the_mask_says_nothing_about_stays_as_regressed():
    boxes = torch.tensor(
        [
            [10.3, 8.2, 30.7, 25.1],  # empty mask
            [-400.0, 8.0, 30.0, 25.0],  # left edge out of the prior's reach
            [12.0, 8.0, 11.0, 25.0],  # reversed
        ]
    )
    columns, rows = profiles(torch.tensor([[0, 0, 0, 0], [10, 8, 30, 25], [10, 8, 30, 25]]), 40, 50)
    refined = MBRM()(columns, rows, boxes)
    assert torch.equal(refined[0], boxes[0])
    assert refined[1, 0] == -400.0 and torch.isfinite(refined).all()
    assert torch.equal(refined[2, [0, 2]], boxes[2, [0, 2]])


def test_refined_boxes_always_have_extent():
    generator = torch.Generator().manual_seed(11)
    columns, rows = (
        torch.rand(300, 30, generator=generator),
        torch.rand(300, 30, generator=generator),
    )
    corner = torch.rand(300, 2, generator=generator) * 29
    boxes = torch.cat([corner, corner + 0.05 + 2 * torch.rand(300, 2, generator=generator)], 1)
    refined = MBRM()(columns, rows, boxes)
    assert (refined[:, 2:] > refined[:, :2]).all()


def test_no_boxes():
    assert MBRM()(torch.zeros(0, 50), torch.zeros(0, 40), torch.zeros(0, 4)).shape == (0, 4)


def test_starts_from_the_published_kernel_at_radius_four_and_an_edge_detector_elsewhere():
    assert MBRM(radius=4).weight.flatten()[3].item() == pytest.approx(-3.2545)
    assert MBRM(radius=2).weight.flatten().tolist() == [0, -1, 1, 0, 0]


@pytest.mark.parametrize(("kwargs", "name"), [({"gamma": 0.0}, "gamma"), ({"radius": 0}, "radius")])
def test_unusable_parameters_are_named(kwargs, name):
    with pytest.raises(ValueError, match=name):
        MBRM(**kwargs)
