"""What tests of exported models share: a model with something to see, and comparisons."""

import pytest
import torch
from detectron2.modeling import build_model

import rdsnet
from rdsnet.export import files
from rdsnet.export.check import objects_of
from rdsnet.export.exporting import usable_threshold
from rdsnet.export.graph import ImageToObjects, Objects

SIZE = (64, 96)
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


@torch.no_grad()
def graph_and_model(model, image, threshold=None):
    """(found by the graph, found by the model); the threshold lets objects through by default."""
    graph = ImageToObjects(model)
    model.object_stream.score_threshold = threshold or usable_threshold(graph, image)
    expected = objects_of(model([{"image": image}])[0]["instances"])
    return Objects(*graph(image)), expected


@torch.no_grad()
def file_and_model(model, image, folder):
    """(found by an ONNX file in onnxruntime, found by the model)."""
    need_onnx()
    _, expected = graph_and_model(model, image)
    path = folder / "model.onnx"
    files.write(path, files.trace(ImageToObjects(model).eval(), image), "onnx", {})
    return files.read(path, "onnx")(image), expected


def need_onnx():
    """onnxruntime; skips where ONNX cannot be written."""
    pytest.importorskip("onnxscript", reason="needs rdsnet[export]")
    if torch.__version__.startswith("2.6."):
        pytest.skip("torch 2.6 cannot convert sizes that depend on data to ONNX")
    return pytest.importorskip("onnxruntime", reason="needs rdsnet[export]")


def assert_same(found, expected, *, edges=1, mask_pixels=1e-4):
    """All fields equal up to rounding; so in the same order, but where scores are equal.

    Args:
        edges: so many edges may lie at another pixel: two were as good as equally probable.
        mask_pixels: share of pixels whose logit rounding may push over the threshold.
    """
    found, expected = Objects(*found), Objects(*expected)
    assert [x.shape for x in found] == [x.shape for x in expected]
    assert [x.dtype for x in found] == [x.dtype for x in expected]
    if len(expected.scores):
        far = (expected.regressed_boxes[:, None] - found.regressed_boxes).abs().amax(2)
        order = far.masked_fill(expected.classes[:, None] != found.classes, torch.inf).argmin(1)
        assert torch.equal(order.sort().values, torch.arange(len(order)))
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
        found = Objects(*(field[order] for field in found))
    assert torch.equal(found.classes, expected.classes)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.regressed_boxes, expected.regressed_boxes, rtol=1e-4, atol=5e-3
    )
    off = (found.boxes - expected.boxes).abs() > 5e-3
    assert off.sum() <= edges, (found.boxes - expected.boxes)[off]
    differing = (found.masks != expected.masks).sum()
    assert differing <= mask_pixels * max(expected.masks.sum(), 1), differing
