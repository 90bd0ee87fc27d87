"""The exported graph with FCOS in it."""

from pathlib import Path

import pytest
import torch
from helpers.exporting import (
    assert_equal,
    assert_same,
    graph_and_model,
    onnx_file,
    random_image,
    untrained,
)

import rdsnet

CONFIG = Path(__file__).parents[1] / "configs" / "rdsnet_fcos_small_nuclei.yaml"


@pytest.fixture(scope="module")
def model():
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file(str(CONFIG))
    cfg.merge_from_list(["MODEL.RETINANET.NUM_CLASSES", "3", "MODEL.DEVICE", "cpu"])
    model = untrained(cfg)
    torch.nn.init.normal_(model.object_stream.head.ctrness.weight, std=0.3)
    return model


@pytest.mark.parametrize("size", [(96, 160), (90, 131)])
def test_graph_finds_what_the_model_finds(model, size):
    found, expected = graph_and_model(model, random_image(*size))
    assert_equal(found, expected)
    assert len(found.scores) > 20


@pytest.mark.slow
def test_onnx_file_finds_what_the_model_finds(model, tmp_path):
    image = random_image(96, 160)
    assert_same(onnx_file(model, image, tmp_path)(image), model, image)
