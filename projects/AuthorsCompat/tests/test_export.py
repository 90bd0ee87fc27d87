"""The exported graph with the authors' arithmetic in it."""

import pytest
from helpers.exporting import assert_equal, assert_same, graph_and_model, need_onnx, random_image

from rdsnet.checkpoint.description import save_model
from rdsnet.cli import main
from rdsnet.export import files


@pytest.mark.parametrize("size", [(96, 160), (90, 131)])
def test_graph_finds_what_the_model_finds(model, size, monkeypatch):
    monkeypatch.setattr(model.object_stream, "score_threshold", 0.05)
    found, expected = graph_and_model(model, random_image(*size))
    assert_equal(found, expected)
    assert len(found.scores) > 5


@pytest.mark.slow
def test_onnx_file_takes_the_usual_test_images(model, make_config, tmp_path, capsys):
    need_onnx()
    cfg = make_config()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 96, 160
    save_model(tmp_path / "model.pth", model.state_dict(), cfg)
    path = tmp_path / "model.onnx"
    main(["export", "--weights", str(tmp_path / "model.pth"), "--output", str(path)])
    said = capsys.readouterr()
    assert "Input: image (3, 96, 160) uint8, RGB" in said.out, said.err
    image = random_image(96, 160)
    assert_same(files.read(path, "onnx")(image), model, image)
