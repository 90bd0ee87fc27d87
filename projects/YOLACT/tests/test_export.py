"""The exported graph with YOLACT and RDSNet_s in it."""

from pathlib import Path

import pytest
from helpers.exporting import (
    assert_equal,
    assert_same,
    graph_and_model,
    onnx_file,
    random_image,
    untrained,
)

import rdsnet

CONFIGS = Path(__file__).parents[1] / "configs"


def model(name, *opts):
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file(str(CONFIGS / name))
    cfg.merge_from_list(["MODEL.RETINANET.NUM_CLASSES", "3", "MODEL.DEVICE", "cpu", *opts])
    return untrained(cfg)


@pytest.mark.parametrize("name", ["yolact_small_nuclei.yaml", "rdsnet_s_small_nuclei.yaml"])
@pytest.mark.parametrize(
    ("size", "input_size"),
    [
        ((160, 160), "160"),
        ((96, 140), "160"),  # the graph resizes the image, and its results back
        ((90, 131), "0"),  # it pads the image
    ],
)
def test_graph_finds_what_the_model_finds(name, size, input_size):
    yolact = model(name, "MODEL.YOLACT.INPUT_SIZE", input_size)
    found, expected = graph_and_model(yolact, random_image(*size))
    assert_equal(found, expected)
    assert len(found.scores) > 20 and len(found.classes.unique()) > 1


def test_graph_without_objects():
    yolact = model("rdsnet_s_small_nuclei.yaml", "MODEL.YOLACT.INPUT_SIZE", "96")
    found, _ = graph_and_model(yolact, random_image(96, 96), threshold=0.9999)
    assert [tuple(x.shape) for x in found] == [(0, 4), (0, 4), (0,), (0,), (0, 96, 96)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolact_small_nuclei.yaml", "rdsnet_s_small_nuclei.yaml"])
def test_onnx_file_finds_what_the_model_finds(name, tmp_path):
    yolact = model(name, "MODEL.YOLACT.INPUT_SIZE", "160")
    image = random_image(96, 140)
    assert_same(onnx_file(yolact, image, tmp_path)(image), yolact, image)
