"""The exported graph with the authors' arithmetic in it."""

import pytest
from helpers.exporting import assert_equal, assert_same, graph_and_model, onnx_file, random_image


@pytest.mark.parametrize("size", [(96, 160), (90, 131)])
def test_graph_finds_what_the_model_finds(model, size, monkeypatch):
    monkeypatch.setattr(model.object_stream, "score_threshold", 0.05)
    found, expected = graph_and_model(model, random_image(*size))
    assert_equal(found, expected)
    assert len(found.scores) > 5


@pytest.mark.slow
def test_onnx_file_finds_what_the_model_finds(model, tmp_path, monkeypatch):
    monkeypatch.setattr(model.object_stream, "score_threshold", 0.05)
    image = random_image(96, 160)
    assert_same(onnx_file(model, image, tmp_path, (96, 160))(image), model, image)
