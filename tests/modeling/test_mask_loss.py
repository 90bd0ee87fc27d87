"""Mask targets, training windows and L_mask against two-channel cross-entropy written out."""

import math

import pytest
import torch
from ops.scenes import random_windows
from torch.nn import functional as F

from rdsnet import ops
from rdsnet.modeling.cropping import training_windows
from rdsnet.modeling.mask_loss import mask_loss
from rdsnet.ops import compiled, mask_targets, object_losses

pytestmark = pytest.mark.numeric


def naive_mask_loss(psi, phi, image_index, boxes, masks, object_index, sizes, expand, ratio):
    """The paper's definition object by object: softmax over two channels, sort, sum."""
    total = psi.new_zeros(())
    height, width = psi.shape[2:]
    for n in range(len(phi)):
        b = int(image_index[n])
        scores = torch.einsum("cd,dhw->chw", phi[n], psi[b])  # background, foreground
        mask = torch.zeros(1, 1, 4 * height, 4 * width)
        mask[0, 0, : sizes[b][0], : sizes[b][1]] = masks[b][object_index[n]].float()
        target = (F.interpolate(mask, scale_factor=0.25, mode="bilinear")[0, 0] > 0.5).long()
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
    """Two images, the second one smaller; two of the six objects share a mask, two do not."""
    generator = torch.Generator().manual_seed(seed)
    psi = torch.randn(2, 5, 12, 20, generator=generator, dtype=torch.float64)
    phi = torch.randn(6, 2, 5, generator=generator, dtype=torch.float64)
    corner = torch.rand(6, 2, generator=generator, dtype=torch.float64) * 30
    boxes = torch.cat([corner, corner + 5 + 45 * torch.rand(6, 2, generator=generator)], 1)
    sizes = [(48, 77), (33, 50 + seed % 4)]  # the last cells are cut in various ways
    return (
        psi.requires_grad_(),
        phi.requires_grad_(),
        torch.tensor([0, 0, 0, 1, 1, 1]),
        boxes,
        [torch.rand(2, *size, generator=generator) > 0.4 for size in sizes],
        torch.tensor([0, 1, 1, 0, 1, 1]),
        sizes,
    )


def test_loss_and_gradients_equal_the_definition(path):
    for seed, ratio in ((0, 1), (1, 3), (2, 0), (3, None), (4, 1), (5, 1)):
        problem = random_problem(seed)
        fast = mask_loss(*problem, strides=(4, 4), expand=1.5, negatives_per_positive=ratio)
        slow = naive_mask_loss(*problem, 1.5, ratio)
        torch.testing.assert_close(fast, slow)
        fast_grads = torch.autograd.grad(fast, problem[:2])
        slow_grads = torch.autograd.grad(slow, problem[:2])
        for a, b in zip(fast_grads, slow_grads, strict=True):
            torch.testing.assert_close(a, b)


def naive_mask_loss_at_pixels(psi, phi, image_index, boxes, masks, object_index, sizes, ratio):
    """The same with Psi itself brought to the image, 4 x 4 pixels per cell, box grown by 1.5."""
    fine = F.interpolate(psi, scale_factor=4, mode="bilinear", align_corners=False)
    total = psi.new_zeros(())
    for n in range(len(phi)):
        b = int(image_index[n])
        height, width = sizes[b]
        scores = torch.einsum("cd,dhw->chw", phi[n], fine[b, :, :height, :width])
        target = masks[b][object_index[n]]
        cross_entropy = F.cross_entropy(scores[None], target[None].long(), reduction="none")[0]
        x1, y1, x2, y2 = boxes[n].tolist()
        y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
        inside = abs(x - (x1 + x2) / 2) <= (x2 - x1) * 0.75
        inside = inside & (abs(y - (y1 + y2) / 2) <= (y2 - y1) * 0.75)
        foreground = cross_entropy[inside & target]
        background = cross_entropy[inside & ~target].sort(descending=True).values
        if ratio is not None:
            background = background[: int(len(foreground) * ratio)]
        kept = torch.cat([foreground, background])
        total = total + kept.sum() / (len(kept) + 1)
    return total / (len(phi) + 1)


@pytest.mark.parametrize("ratio", [1, 3, None])
def test_loss_at_pixels_is_that_of_psi_at_the_images_resolution(path, ratio):
    for seed in range(4):
        problem = random_problem(seed)
        fast = mask_loss(
            *problem, strides=(4, 4), at_pixels=True, expand=1.5, negatives_per_positive=ratio
        )
        slow = naive_mask_loss_at_pixels(*problem, ratio)
        torch.testing.assert_close(fast, slow)
        fast_grads = torch.autograd.grad(fast, problem[:2])
        slow_grads = torch.autograd.grad(slow, problem[:2])
        for a, b in zip(fast_grads, slow_grads, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("strides", [(2, 2), (8, 8), (3, 3), (1, 1), (48 / 13, 77 / 20)])
def test_cells_may_have_any_size(path, strides):
    """On targets that were interpolated at the centres of the cells."""
    g = torch.Generator().manual_seed(1)
    image = (48, 77)
    grid = [math.ceil(side / s - 1e-6) for side, s in zip(image, strides)]
    covered = [round(cells * s) for cells, s in zip(grid, strides)]
    masks = torch.rand(3, *image, generator=g) > 0.3
    padded = torch.zeros(1, 3, *covered)
    padded[0, :, :48, :77] = masks
    targets = (F.interpolate(padded, grid, mode="bilinear")[0] > 0.5).byte()
    psi = torch.randn(1, 5, *grid, generator=g)
    phi = torch.randn(3, 2, 5, generator=g)
    index, boxes = torch.zeros(3, dtype=torch.int64), torch.tensor([[0.0, 0.0, 77.0, 48.0]] * 3)
    whole = torch.tensor([[0, 0, grid[1], grid[0]]] * 3)
    own = torch.arange(3)
    expected = ops.mask_ohem_loss(psi, phi, index, whole, targets, own, 1).sum() / 4
    loss = mask_loss(psi, phi, index, boxes, [masks], own, [image], strides=strides)
    torch.testing.assert_close(loss, expected)


@pytest.mark.skipif(compiled.active_path() == "pytorch", reason="needs the compiled operators")
@pytest.mark.parametrize(
    "dtype, stride", [(torch.float32, 4), (torch.float64, 4), (torch.float32, 2)]
)
def test_masks_read_from_images_are_the_targets_on_the_grid(dtype, stride):
    """Bit by bit what the loss makes of targets that were brought to the grid first."""
    g = torch.Generator().manual_seed(7)
    for height, width in ((130, 301), (64, 130), (31, 33), (3, 3), (2, 90), (127, 258)):
        grid = (-(-height // 32) * 32 // stride, -(-width // 32) * 32 // stride)
        psi = torch.randn(2, 7, *grid, generator=g, dtype=dtype)
        phi = torch.randn(40, 2, 7, generator=g, dtype=dtype)
        image_index = torch.randint(0, 2, (40,), generator=g)
        windows = random_windows(40, *grid, g)
        masks = [torch.rand(9, height, width, generator=g) > 0.3 for _ in range(2)]
        if width % 2:
            masks[1] = masks[1].to(torch.uint8)
        object_index = torch.randint(0, 9, (40,), generator=g)
        targets = torch.cat([mask_targets(own, grid, (stride, stride)) for own in masks])
        found = torch.ops.rdsnet.mask_ohem_loss_from_images(
            psi, phi, image_index, windows, masks, object_index, stride, 1.0
        )
        expected = torch.ops.rdsnet.mask_ohem_loss(
            psi, phi, image_index, windows, targets, object_index + 9 * image_index, 1.0
        )
        for mine, theirs in zip(found, expected, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.skipif(compiled.active_path() == "pytorch", reason="needs the compiled operators")
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"masks": [torch.zeros(1, 9, 9).bool()]}, ValueError, "masks must be a tensor per image"),
        ({"masks": [torch.zeros(9, 9).bool()] * 2}, ValueError, "masks must have shape"),
        ({"masks": [torch.zeros(1, 9, 9)] * 2}, TypeError, "masks must be uint8 or bool"),
        ({"object_index": torch.tensor([1])}, ValueError, r"object_index must lie in 0\.\.0"),
    ],
)
def test_wrong_masks_are_named(change, error, message):
    arguments = loss_arguments(stride=4, negatives_per_positive=1.0, **change)
    with pytest.raises(error, match=message):
        torch.ops.rdsnet.mask_ohem_loss_from_images(**arguments)


def loss_arguments(**change):
    """For two images of 9 x 9 pixels, one object."""
    arguments = {
        "psi": torch.zeros(2, 4, 5, 6),
        "phi": torch.zeros(1, 2, 4),
        "image_index": torch.ones(1, dtype=torch.int64),
        "windows": torch.zeros(1, 4, dtype=torch.int64),
        "masks": [torch.zeros(1, 9, 9).bool()] * 2,
        "object_index": torch.zeros(1, dtype=torch.int64),
    }
    return {**arguments, **change}


@pytest.mark.parametrize("at_pixels", [False, True])
@pytest.mark.parametrize(
    "change, error, message",
    [
        (
            {"masks": [torch.zeros(1, 9, 9)]},
            ValueError,
            "a tensor per image, 2; got 1",
        ),
        ({"object_index": torch.zeros(2).long()}, ValueError, "object_index must have shape"),
        ({"phi": torch.zeros(1, 2, 3)}, ValueError, "with the D of psi, 4"),
        ({"windows": torch.zeros(1, 4)}, TypeError, "windows must be int32 or int64"),
        ({"negatives_per_positive": -2}, ValueError, "negatives_per_positive must be None or at"),
    ],
)
def test_wrong_arguments_are_named_on_every_path(path, at_pixels, change, error, message):
    with pytest.raises(error, match=message):
        object_losses(**loss_arguments(strides=(4, 4), at_pixels=at_pixels, **change))


@pytest.mark.parametrize("at_pixels", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
def test_masks_of_any_type_are_the_same_ground_truth(path, dtype, at_pixels):
    psi, phi, image_index, boxes, masks, object_index, sizes = random_problem(2)
    strides = (1, 1) if at_pixels else (4, 4)
    windows = training_windows(boxes, image_index, sizes, 1.5, strides)

    def losses(masks):
        given = psi, phi, image_index, windows, masks, object_index
        return object_losses(*given, (4, 4), at_pixels=at_pixels)

    expected = losses(masks)
    found = losses([own.to(dtype) for own in masks])
    assert expected.all() and torch.equal(found, expected)


@pytest.mark.parametrize("at_pixels", [False, True])
def test_masks_that_are_a_part_of_larger_ones_are_the_same_ground_truth(path, at_pixels):
    # A copy of such masks is as large as the logits, which took its place in memory when it was
    # given back too early.
    masks_of_image, objects, cells = 8, 32, 24  # 8 x 96 x 96 bytes, 32 x 24 x 24 float32
    generator = torch.Generator().manual_seed(0)
    psi = torch.randn(1, 4, cells, cells, generator=generator)
    phi = torch.randn(objects, 2, 4, generator=generator)
    index = torch.zeros(objects, dtype=torch.int64)
    side = cells if not at_pixels else 4 * cells
    windows = torch.tensor([[0, 0, side, side]]).expand(objects, 4)
    whole = torch.rand(masks_of_image, 4 * cells + 3, 4 * cells + 5, generator=generator) > 0.5
    part = whole[:, : 4 * cells, : 4 * cells]
    object_index = torch.arange(objects) % masks_of_image

    def losses(masks):
        given = psi, phi, index, windows, [masks], object_index
        return object_losses(*given, (4, 4), at_pixels=at_pixels)

    assert not part.is_contiguous()
    assert torch.equal(losses(part), losses(part.contiguous()))


def test_loss_of_an_image_does_not_depend_on_the_padding_of_its_batch(path):
    psi, phi, image_index, boxes, masks, object_index, sizes = random_problem(4)
    one = image_index == 1
    alone = mask_loss(
        psi[1:, :, :9, :13], phi[one], image_index[one] - 1, boxes[one],
        masks[1:], object_index[one], sizes[1:], strides=(4, 4),
    )  # fmt: skip
    padded = mask_loss(
        psi, phi[one], image_index[one], boxes[one], masks, object_index[one], sizes, strides=(4, 4)
    )
    torch.testing.assert_close(alone, padded)


@pytest.mark.parametrize("count", [0, 2])
def test_no_positives_give_zero_that_is_attached_to_the_representations(path, count):
    psi = torch.randn(1, 4, 6, 6, requires_grad=True)
    phi = torch.randn(0, 2, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    masks = [torch.ones(count, 24, 24, dtype=torch.bool)]
    loss = mask_loss(psi, phi, none, torch.zeros(0, 4), masks, none, [(24, 24)], strides=(4, 4))
    loss.backward()
    assert loss == 0 and psi.grad.eq(0).all() and phi.grad is not None


def test_targets_are_foreground_where_three_of_the_four_middle_pixels_are():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(5, 33, 50, generator=generator) > 0.4
    targets = mask_targets(
        masks, (10, 14), (4, 4)
    )  # two columns and one row of cells beyond the image
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
            whole = mask_targets(masks, grid, (4, 4))
        assert torch.equal(mask_targets(masks, grid, (4, 4)), whole)
        with compiled.definitions_only():
            defined = mask_targets(masks, grid, (4, 4), windows=windows)
        assert torch.equal(mask_targets(masks, grid, (4, 4), windows=windows), defined)
        for target, expected, window in zip(defined, whole, windows.clamp(min=0).tolist()):
            x1, y1, x2, y2 = window
            assert torch.equal(target[y1:y2, x1:x2], expected[y1:y2, x1:x2])


def test_targets_equal_bilinear_downsampling_above_one_half():
    masks = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(1)) > 0.5
    bilinear = F.interpolate(masks[None].float(), scale_factor=0.25, mode="bilinear")[0] > 0.5
    assert torch.equal(mask_targets(masks, (8, 12), (4, 4)).bool(), bilinear)


def test_windows_stop_at_the_border_of_their_own_image():
    boxes = torch.tensor([[0.0, 0.0, 200.0, 200.0]] * 2)
    windows = training_windows(boxes, torch.tensor([0, 1]), [(41, 80), (100, 30)], 1.5, (4, 4))
    assert windows.tolist() == [[0, 0, 20, 11], [0, 0, 8, 25]]
