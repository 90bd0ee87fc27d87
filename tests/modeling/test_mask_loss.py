"""Mask targets, training windows and L_mask against two-channel cross-entropy written out."""

import torch
from torch.nn import functional as F

from rdsnet.modeling.mask_loss import mask_loss, mask_targets, training_windows
from rdsnet.ops import compiled


def naive_mask_loss(psi, phi, image_index, boxes, targets, target_index, sizes, expand, ratio):
    """The paper's definition object by object: softmax over two channels, sort, sum."""
    total = psi.new_zeros(())
    for n in range(len(phi)):
        b = int(image_index[n])
        scores = torch.einsum("cd,dhw->chw", phi[n], psi[b])  # background, foreground
        target = targets[target_index[n]].long()
        cross_entropy = F.cross_entropy(scores[None], target[None], reduction="none")[0]
        x1, y1, x2, y2 = (boxes[n] / 4).tolist()
        cx, cy, hx, hy = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2, (y2 - y1) / 2
        foreground, background = [], []
        for y in range(psi.shape[2]):
            for x in range(psi.shape[3]):
                inside = abs(x + 0.5 - cx) <= hx * expand and abs(y + 0.5 - cy) <= hy * expand
                if inside and y * 4 < sizes[b][0] and x * 4 < sizes[b][1]:
                    (foreground if target[y, x] else background).append(cross_entropy[y, x])
        if ratio is not None:
            background.sort(key=float, reverse=True)
            background = background[: int(len(foreground) * ratio)]
        kept = foreground + background
        total = total + (torch.stack(kept).sum() / (len(kept) + 1) if kept else 0)
    return total / (len(phi) + 1)


def random_problem(seed):
    generator = torch.Generator().manual_seed(seed)
    psi = torch.randn(2, 5, 12, 16, generator=generator, dtype=torch.float64)
    phi = torch.randn(6, 2, 5, generator=generator, dtype=torch.float64)
    corner = torch.rand(6, 2, generator=generator, dtype=torch.float64) * 30
    boxes = torch.cat([corner, corner + 5 + 25 * torch.rand(6, 2, generator=generator)], 1)
    targets = (torch.rand(4, 12, 16, generator=generator) > 0.7).to(torch.uint8)
    return (
        psi.requires_grad_(),
        phi.requires_grad_(),
        torch.tensor([0, 0, 0, 1, 1, 1]),
        boxes,
        targets,
        torch.tensor([0, 1, 1, 2, 3, 3]),
        [(48, 64), (33, 50)],
    )


def test_loss_and_gradients_equal_the_definition():
    for seed, ratio in ((0, 1), (1, 3), (2, 0), (3, None)):
        problem = random_problem(seed)
        fast = mask_loss(*problem, expand=1.5, negatives_per_positive=ratio)
        slow = naive_mask_loss(*problem, 1.5, ratio)
        torch.testing.assert_close(fast, slow)
        fast_grads = torch.autograd.grad(fast, problem[:2])
        slow_grads = torch.autograd.grad(slow, problem[:2])
        for a, b in zip(fast_grads, slow_grads, strict=True):
            torch.testing.assert_close(a, b)


def test_loss_of_an_image_does_not_depend_on_the_padding_of_its_batch():
    psi, phi, image_index, boxes, targets, target_index, sizes = random_problem(4)
    one = image_index == 1
    alone = mask_loss(
        psi[1:, :, :9, :13], phi[one], image_index[one] - 1, boxes[one],
        targets[:, :9, :13], target_index[one], sizes[1:],
    )  # fmt: skip
    padded = mask_loss(
        psi, phi[one], image_index[one], boxes[one], targets, target_index[one], sizes
    )
    torch.testing.assert_close(alone, padded)


def test_no_objects_give_zero_that_is_attached_to_the_representations():
    psi = torch.randn(1, 4, 6, 6, requires_grad=True)
    phi = torch.randn(0, 2, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    targets = torch.zeros(0, 6, 6, dtype=torch.uint8)
    loss = mask_loss(psi, phi, none, torch.zeros(0, 4), targets, none, [(24, 24)])
    loss.backward()
    assert loss == 0 and psi.grad.eq(0).all() and phi.grad is not None


def test_targets_are_foreground_where_three_of_the_four_middle_pixels_are():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(5, 33, 50, generator=generator) > 0.4
    targets = mask_targets(masks, (10, 14))  # two columns and one row of cells beyond the image
    for m in range(5):
        for y in range(10):
            for x in range(14):
                votes = sum(
                    bool(masks[m, 4 * y + dy, 4 * x + dx])
                    for dy in (1, 2)
                    for dx in (1, 2)
                    if 4 * y + dy < 33 and 4 * x + dx < 50
                )
                assert targets[m, y, x] == (votes >= 3)


def test_targets_inside_windows_do_not_depend_on_the_implementation():
    generator = torch.Generator().manual_seed(2)
    for size, grid in (
        ((33, 50), (10, 14)),
        ((32, 51), (8, 13)),
        ((3, 3), (1, 1)),
        ((2, 9), (8, 8)),
    ):
        masks = torch.rand(6, *size, generator=generator) > 0.4
        windows = torch.tensor([[0, 0, 99, 99], [2, 1, 9, 7], [-3, -3, 2, 2], [5, 5, 5, 9]])
        windows = torch.cat([windows, torch.tensor([[0, 0, grid[1], 1], [12, 0, 13, 9]])])
        with compiled.definitions_only():
            whole = mask_targets(masks, grid)
        assert torch.equal(mask_targets(masks, grid), whole)
        with compiled.definitions_only():
            defined = mask_targets(masks, grid, windows=windows)
        assert torch.equal(mask_targets(masks, grid, windows=windows), defined)
        for target, expected, window in zip(defined, whole, windows.clamp(min=0).tolist()):
            x1, y1, x2, y2 = window
            assert torch.equal(target[y1:y2, x1:x2], expected[y1:y2, x1:x2])


def test_targets_equal_bilinear_downsampling_above_one_half():
    masks = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(1)) > 0.5
    bilinear = F.interpolate(masks[None].float(), scale_factor=0.25, mode="bilinear")[0] > 0.5
    assert torch.equal(mask_targets(masks, (8, 12)).bool(), bilinear)


def test_windows_stop_at_the_border_of_their_own_image():
    boxes = torch.tensor([[0.0, 0.0, 200.0, 200.0]] * 2)
    windows = training_windows(boxes, torch.tensor([0, 1]), [(41, 80), (100, 30)], 1.5)
    assert windows.tolist() == [[0, 0, 20, 11], [0, 0, 8, 25]]
