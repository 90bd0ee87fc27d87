"""What tests of exported models share: a model with something to see, and comparisons."""

import copy
import json

import pytest
import torch
from detectron2.modeling import build_model
from helpers.rounding import ELEMENTARY, assert_within, disturbed, gamma

import rdsnet
from rdsnet.export import files
from rdsnet.export.check import objects_of
from rdsnet.export.exporting import usable_threshold
from rdsnet.export.graph import ImageToObjects, Objects

SIZE = (64, 96)
DRAWS = 16
CLASSES = [[4, "disc"], [9, "bar"], [11, "Größe"]]


def tiny_config(*opts):
    """As small as a model can be: exporting takes time by the number of its layers."""
    cfg = rdsnet.get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "RDSNet"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_rdsnet_small_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = "GN"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.RDSNET.PIXEL_STREAM.CONV_DIM = 32
    cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "p4", "p5"]
    cfg.MODEL.RETINANET.NUM_CLASSES = len(CLASSES)
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0]]
    cfg.TEST.DETECTIONS_PER_IMAGE = 30
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 60, 96
    cfg.DATASETS.CLASSES = CLASSES
    cfg.merge_from_list(list(opts))
    return cfg


def empty_image():
    return torch.full((3, *SIZE), 128, dtype=torch.uint8)


def untrained(cfg):
    """A model whose masks have outlines: random representations that are larger than at first."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad():
        head = model.object_stream.head
        head.rep_pred.weight *= 30
        if hasattr(head, "cls_score"):  # scores close together would be ties
            head.cls_score.weight *= 5
    return model


def random_image(height, width, seed=0):
    """Blocks of random colours: (3, height, width) uint8."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (3, height // 8 + 1, width // 8 + 1), generator=generator)
    blocks = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    return blocks[:, :height, :width].to(torch.uint8).contiguous()


def found_by(model, image, output_size=None):
    wanted = dict(zip(("height", "width"), output_size or image.shape[1:]))
    with torch.no_grad():
        return objects_of(model([{"image": image, **wanted}])[0]["instances"])


@torch.no_grad()
def graph_and_model(model, image, threshold=None, output_size=None):
    """(found by the graph, found by the model), of the model in float64, where no decision depends
    on the order in which a processor adds; the threshold lets objects through by default.
    """
    model = copy.deepcopy(model).double()
    graph = ImageToObjects(model)
    model.object_stream.score_threshold = threshold or usable_threshold(graph, image)
    size = (torch.tensor(output_size),) if output_size else ()
    return Objects(*graph(image, *size)), found_by(model, image, output_size)


@torch.no_grad()
def onnx_file(model, image, folder, size=None):
    """What runs an ONNX file of a model, for images of a size or of any; its score threshold lets
    objects of this one through.
    """
    need_onnx()
    graph = ImageToObjects(model).eval()
    model.object_stream.score_threshold = usable_threshold(graph, image)
    path = folder / "model.onnx"
    files.write(path, files.trace(graph, size), "onnx", {"outputs": json.dumps(graph.fields)})
    return files.read(path, "onnx")


def need_onnx():
    """onnxruntime; skips where ONNX cannot be written."""
    pytest.importorskip("onnxscript", reason="needs rdsnet[export]")
    if torch.__version__.startswith("2.6."):
        pytest.skip("torch 2.6 cannot convert sizes that depend on data to ONNX")
    return pytest.importorskip("onnxruntime", reason="needs rdsnet[export]")


def nearest(expected, found):
    """(N,) index of the object of the same class with the nearest box; -1 where that one is nearer
    to another.
    """
    far = (expected.regressed_boxes[:, None] - found.regressed_boxes).abs().amax(2)
    far = far.masked_fill(expected.classes[:, None] != found.classes, torch.inf)
    if not far.numel():
        return torch.full((len(expected.scores),), -1)
    index = far.argmin(1)
    mutual = (far.argmin(0)[index] == torch.arange(len(index))) & far.amin(1).isfinite()
    return index.where(mutual, -1)


def assert_equal(found, expected):
    """The same objects, but for the roundings of scores and boxes themselves."""
    found, expected = Objects(*found), Objects(*expected)
    assert [x.shape for x in found] == [x.shape for x in expected]
    assert [x.dtype for x in found] == [x.dtype for x in expected]
    order = nearest(expected, found)  # of equal scores either may be the first
    assert torch.equal(order.sort().values, torch.arange(len(order)))
    found = Objects(*(field[order] for field in found))
    assert torch.equal(found.classes, expected.classes)
    assert torch.equal(found.masks, expected.masks)
    assert_within(found.scores, expected.scores, gamma(ELEMENTARY))
    size = max(expected.masks.shape[1:])
    for name in ("regressed_boxes", "boxes"):
        limit = gamma(8 + ELEMENTARY) * size
        assert_within(getattr(found, name), getattr(expected, name), limit, name)


def assert_same(found, model, image, output_size=None):
    """A file finds what its model finds, up to rounding in float32.

    The limits are how far the model's own objects go when all its weights are moved by what
    rounding may do: their numbers, pixels and edges that are as good as on either side, and
    objects that are as good as others. What changes in none of so many draws is decided.
    """
    found, expected = Objects(*found), found_by(model, image, output_size)
    assert [x.dtype for x in found] == [x.dtype for x in expected]
    others = [found_by(disturbed(model, seed=seed), image, output_size) for seed in range(DRAWS)]
    index = torch.stack([nearest(expected, other) for other in others])
    sure = (index >= 0).all(0)
    assert sure.sum() >= len(sure) / 2
    assert abs(len(found.scores) - len(sure)) <= (~sure).sum()
    place = nearest(expected, found)
    assert (place[sure] >= 0).all()
    expected = Objects(*(field[sure] for field in expected))
    mine = Objects(*(field[place[sure]] for field in found))
    draws = [Objects(*(field[row[sure]] for field in o)) for row, o in zip(index, others)]
    size = max(expected.masks.shape[1:])
    for name, rounded in (("scores", 1), ("regressed_boxes", size), ("boxes", size)):
        base = getattr(expected, name)
        limits = torch.stack([(getattr(draw, name) - base).abs() for draw in draws]).amax(0)
        limits = limits + gamma(8 + ELEMENTARY) * rounded  # of the last steps, where no weight is
        assert_within(getattr(mine, name), base, limits, name)
    doubtful = torch.stack([draw.masks != expected.masks for draw in draws]).any(0)
    assert not ((mine.masks != expected.masks) & ~doubtful).any()
