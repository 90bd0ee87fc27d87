"""The graph against the model, and its steps against the operators that they stand for."""

import pytest
import torch
from helpers.exporting import assert_equal, graph_and_model, random_image, untrained
from torchvision.ops import nms

import rdsnet
from rdsnet.export.decoding import decoded
from rdsnet.export.graph import CompactObjects, ImageToObjects
from rdsnet.export.masks import logits_in_windows, masks_one_by_one
from rdsnet.modeling.cropping import expanded_windows
from rdsnet.modeling.lazy_conv import convolve_at
from rdsnet.modeling.padded import PaddedDetections
from rdsnet.ops import assemble_masks, compiled, resize_taps

pytestmark = pytest.mark.numeric


def config(*opts):
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file("configs/small/rdsnet_small.yaml")
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list(list(opts))
    return cfg


@pytest.mark.parametrize(
    ("size", "opts"),
    [
        ((96, 160), []),
        ((90, 131), []),  # padded inside
        ((90, 131), ["MODEL.RDSNET.PIXEL_STREAM.STRIDE", "2"]),
        ((96, 160), ["MODEL.RDSNET.MBRM.READOUT", "expectation"]),
        ((90, 131), ["MODEL.RDSNET.MASK_SCORING", "True"]),
        ((96, 160), ["MODEL.RDSNET.MBRM.METHOD", "direct"]),
        ((90, 131), ["MODEL.RDSNET.MBRM.METHOD", "none"]),
        ((96, 160), ["MODEL.RDSNET.MBRM.RADIUS", "2", "TEST.DETECTIONS_PER_IMAGE", "5"]),
    ],
)
def test_graph_finds_what_the_model_finds(size, opts):
    model = untrained(config(*opts))
    found, expected = graph_and_model(model, random_image(*size))
    assert_equal(found, expected)
    assert len(found.scores) >= min(model.object_stream.max_detections, 50)
    assert (found.masks.any(2) != found.masks.all(2)).any()  # outlines, not whole windows


def test_graph_without_objects():
    model = untrained(config())
    model.object_stream.score_threshold = 0.999
    with torch.no_grad():
        found = ImageToObjects(model)(random_image(64, 96))
    assert [tuple(x.shape) for x in found] == [(0, 4), (0, 4), (0,), (0,), (0, 64, 96)]


@pytest.mark.parametrize("output_size", [(96, 160), (51, 200), (1, 7)])
def test_graph_gives_results_in_another_size_as_the_model_does(output_size):
    model = untrained(config())
    found, expected = graph_and_model(model, random_image(90, 131), output_size=output_size)
    assert_equal(found, expected)
    assert found.masks.shape[1:] == output_size and len(found.scores) > 10


@pytest.mark.parametrize("count", [0, 1, 9])
@pytest.mark.parametrize(
    ("grid", "image", "output"),
    [
        ((24, 40), (96, 160), (96, 160)),
        ((24, 40), (90, 131), (90, 131)),  # the rest of the grid is padding
        ((20, 20), (80, 80), (51, 133)),  # the model has resized the image
    ],
)
def test_masks_and_maxima_are_those_of_the_operator(grid, image, output, count):
    generator = torch.Generator().manual_seed(count)
    psi = torch.randn(8, *grid, generator=generator).double()
    phi = torch.randn(count, 2, 8, generator=generator).double()
    corners = torch.rand(count, 2, 2, generator=generator).sort(1).values
    boxes = (corners * torch.tensor([output[1], output[0]])).flatten(1)
    windows = expanded_windows(boxes, 1.2, output)
    sizes = zip(output, image, grid)
    taps = [resize_taps(o, i, g, 4, dtype=torch.float64) for o, i, g in sizes]
    expected = assemble_masks(psi, phi, windows, *taps, 0.4)

    delta = phi[:, 1] - phi[:, 0]
    column_maxima, row_maxima, masks = masks_one_by_one(delta, psi, windows, *taps, 0.4)
    torch.testing.assert_close(row_maxima, expected.row_maxima)
    torch.testing.assert_close(column_maxima, expected.column_maxima)
    assert torch.equal(masks, expected.dense())


@pytest.mark.parametrize("output", [(96, 160), (33, 300), (2, 2)])
def test_compact_results_are_masks_of_the_operator(output):
    """Also of windows of a pixel, of none, and at the ends of the image."""
    generator = torch.Generator().manual_seed(1)
    psi = torch.randn(8, 24, 40, generator=generator).double()
    phi = torch.randn(6, 2, 8, generator=generator).double()
    height, width = output
    windows = torch.tensor(
        [
            [0, 0, width, height],
            [0, 0, 1, 1],
            [width - 1, height - 1, width, height],
            [1, 1, 1, 1],
            [width, height, width, height],
            [width // 3, height // 4, width // 2, height // 2],
        ]
    )
    taps = [resize_taps(o, i, g, 4) for o, i, g in zip(output, (90, 131), (24, 40))]
    expected = assemble_masks(psi, phi, windows, *taps, 0.3)
    cells, logits = logits_in_windows(phi[:, 1] - phi[:, 0], psi, windows, *taps)
    assert len(logits) == (cells[:, 2:] - cells[:, :2]).prod(1).sum()
    masks = decoded(CompactObjects(*[None] * 4, windows, cells, logits, *taps[0], *taps[1]), 0.3)
    assert torch.equal(masks.dense(), expected.dense())
    assert torch.equal(masks.areas, expected.areas) and masks.rle() == expected.rle()


@pytest.mark.parametrize("with_tower", [False, True])
def test_representations_while_exporting_are_those_of_the_dense_convolution(
    with_tower, monkeypatch
):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(6, 3 * 10, 3, padding=1).double()
    tower = torch.nn.Sequential(torch.nn.Conv2d(6, 6, 3, padding=1), torch.nn.ReLU()).double()
    tower = tower if with_tower else None
    features = [torch.randn(2, 6, *size).double() for size in ((5, 7), (3, 4), (1, 1))]
    inputs = [tower(f) if with_tower else f for f in features]
    dense = [conv(f).view(2, 3, 10, -1).permute(0, 3, 1, 2).reshape(2, -1, 10) for f in inputs]
    dense = torch.cat(dense, 1)  # (B, R, E), order level, y, x, anchor
    everywhere = torch.arange(dense.shape[1])
    monkeypatch.setattr(compiled, "exporting", lambda: True)
    for image in (0, 1):
        index = torch.full_like(everywhere, image)
        numbers = convolve_at(conv, features, index, everywhere, 3, tower)
        torch.testing.assert_close(numbers, dense[image])
    assert convolve_at(conv, features, index[:0], everywhere[:0], 3, tower).shape == (0, 10)


@pytest.mark.parametrize("candidates", [0, 1, 2, 300])
def test_padded_nms_keeps_what_nms_per_class_keeps(candidates):
    generator = torch.Generator().manual_seed(candidates)
    corners = torch.rand(400, 2, generator=generator) * 200 - 50
    boxes = torch.cat([corners, corners + 1 + torch.rand(400, 2, generator=generator) * 60], 1)
    scores = torch.rand(400, generator=generator)
    scores[torch.randperm(400, generator=generator)[candidates:]] = 0
    classes = torch.randint(0, 3, (400,), generator=generator)
    table = PaddedDetections(boxes, scores, classes, torch.arange(400))
    found = table.without_suppressed(0.5).best(100)

    kept = []
    for k in range(3):
        own = ((scores > 0) & (classes == k)).nonzero()[:, 0]
        kept.append(own[nms(boxes[own], scores[own], 0.5)])
    expected = torch.cat(kept)
    expected = expected[scores[expected].argsort(descending=True)][:100]
    assert torch.equal(found.places[found.scores > 0], expected)
    assert len(found.scores) == 100 and (candidates < 300 or len(expected) < candidates)
