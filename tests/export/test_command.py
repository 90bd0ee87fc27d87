"""The command `rdsnet export`: its options, what it says, what it refuses."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.exporting import SIZE, random_image, tiny_config

import rdsnet
from rdsnet.checkpoint.description import save_model
from rdsnet.cli import main
from rdsnet.export import exporting, files
from rdsnet.export.graph import ImageToObjects, Objects


def export(*arguments, code=2):
    assert main(["export", *map(str, arguments)]) == code


@pytest.fixture
def unwritten(monkeypatch):
    """Spares the time of tracing: the file is a few bytes, and run by the graph itself."""
    written = {}

    def write(path, graph, file_format, texts):
        written.update(graph=graph, texts=texts)
        path.write_text("written")

    def read(*_):
        return lambda image, size: written["graph"](image, torch.tensor(size))

    monkeypatch.setattr(exporting, "trace", lambda graph, size: graph)
    monkeypatch.setattr(exporting, "write", write)
    monkeypatch.setattr(exporting, "read", read)
    return written


def test_options(unwritten, weights, tmp_path, capsys):
    target = tmp_path / "model.bin"
    arguments = ["--weights", weights, "--output", target, "--format", "torch"]
    export(
        *arguments, "--size", 40, 50, "--max-detections", 3, "--score-threshold", 0.01,
        "--opts", "MODEL.RDSNET.MBRM.METHOD", "none", code=0,
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "image (3, 40, 50) uint8, BGR" in said and "at most 3 objects" in said
    assert (
        "disc, bar, Größe" in said
        and "the file finds 3 of 3 objects" in said
        and str(target) in said
    )
    with torch.no_grad():
        found = Objects(*unwritten["graph"](random_image(40, 50)))
    assert torch.equal(found.boxes, found.regressed_boxes) and found.masks.shape == (3, 40, 50)
    config = json.loads(unwritten["texts"]["config"])
    assert config["TEST.DETECTIONS_PER_IMAGE"] == 3
    assert config["MODEL.RETINANET.SCORE_THRESH_TEST"] == 0.01
    assert config["MODEL.RDSNET.MBRM.METHOD"] == "none"


def test_by_default_a_file_takes_any_size(unwritten, weights, tmp_path, capsys):
    target = tmp_path / "model.onnx"
    export("--weights", weights, "--output", target, "--compact", code=0)
    said = capsys.readouterr().out
    assert "image (3, height, width) uint8, BGR" in said
    assert "scores, classes, windows, cells, logits" in said
    assert "of 64 x 96 the file finds" in said and "of 65 x 41 the file finds" in said
    assert json.loads(unwritten["texts"]["outputs"])[4:6] == ["windows", "cells"]


def test_mistakes_of_the_user_are_named(weights, tmp_path, capsys):
    target = tmp_path / "model.pt2"
    export("--weights", tmp_path / "none.pth", "--output", target)
    assert "none.pth' do not exist" in capsys.readouterr().err
    export("--weights", weights, "--output", tmp_path / "model.trt")
    assert "model.trt' ends in none of .onnx, .pt2, .xml" in capsys.readouterr().err
    export("--weights", weights, "--output", tmp_path / "model.trt", "--format", "openvino")
    assert "model.trt' must end in .xml: OpenVINO reads no other" in capsys.readouterr().err
    export("--weights", weights, "--output", tmp_path, "--format", "torch")
    assert "is a folder: name a file in it" in capsys.readouterr().err
    export("--weights", weights, "--output", target, "--opts", "NO.SUCH", "0")
    assert "NO.SUCH" in capsys.readouterr().err
    bare = tmp_path / "bare.pth"
    torch.save({"model": {}}, bare)
    export("--weights", bare, "--output", target)
    assert "give the config that they were trained with by --config-file" in capsys.readouterr().err
    for wrong in (["--size", "0", "96"], ["--max-detections", "-1"], ["--format", "caffe2"]):
        with pytest.raises(SystemExit):
            main(["export", "--weights", weights, "--output", str(target), *wrong])
    assert os.listdir(tmp_path) == ["bare.pth"]


def test_checkpoint_with_code_is_refused(tmp_path, capsys):
    path = tmp_path / "model.pth"
    torch.save({"model": {}, "more": Path("x")}, path)
    (tmp_path / "config.yaml").write_text(tiny_config().dump())
    export("--weights", path, "--output", tmp_path / "model.pt2")
    assert "--trust-checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "model.pt2").exists()


def test_other_models_are_refused(tmp_path, capsys):
    cfg = tiny_config("MODEL.META_ARCHITECTURE", "RetinaNet")
    model = rdsnet.training.Trainer.build_model(cfg)
    save_model(tmp_path / "model.pth", model.state_dict(), cfg)
    export("--weights", tmp_path / "model.pth", "--output", tmp_path / "model.pt2")
    assert "'RetinaNet' cannot be exported: only RDSNet" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_package_is_named_with_its_remedy(package, weights, tmp_path, capsys, monkeypatch):
    there = files.find_spec
    monkeypatch.setattr(files, "find_spec", lambda name: None if name == package else there(name))
    export("--weights", weights, "--output", tmp_path / "model.onnx")
    message = capsys.readouterr().err
    assert f"ONNX files need {package}: pip install 'rdsnet[export]'" in message


def test_what_pytorch_cannot_do_is_said(weights, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("step 3 failed") from ValueError("no such operator: x\nmore")

    pytest.importorskip("onnxscript", reason="needs rdsnet[export]")
    target = tmp_path / "model.onnx"
    program = SimpleNamespace(graph_signature=SimpleNamespace(user_inputs=["image"]))
    monkeypatch.setattr(exporting, "trace", lambda graph, size: program)
    monkeypatch.setattr(torch.onnx, "export", fail)
    export("--weights", weights, "--output", target)
    message = capsys.readouterr().err
    assert "cannot convert this model to ONNX (no such operator: x). torch 2.14 can" in message
    monkeypatch.undo()
    monkeypatch.setattr(torch.export, "export", fail)
    export("--weights", weights, "--output", target)
    captured = capsys.readouterr()
    assert "the file will take images of 64 x 96 alone" in captured.out
    assert "for images of one size (RuntimeError: step 3 failed)" in captured.err
    assert os.listdir(tmp_path) == []


def test_a_model_that_is_not_traced_for_any_size_is_written_for_the_usual_one(
    unwritten, weights, tmp_path, capsys, monkeypatch
):
    def trace(graph, size):
        if not size:
            raise ValueError("sides must be numbers")
        return graph

    monkeypatch.setattr(exporting, "trace", trace)
    export("--weights", weights, "--output", tmp_path / "model.onnx", code=0)
    said = capsys.readouterr().out
    assert "sides must be numbers: the file will take images of 64 x 96 alone" in said
    assert "Input: image (3, 64, 96) uint8" in said
    assert json.loads(unwritten["texts"]["input"])["shape"] == [3, 64, 96]


def test_without_onnxruntime_the_file_is_not_checked_and_that_is_said(model, monkeypatch):
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    graph = ImageToObjects(model)
    said = exporting.check_file(Path("none.onnx"), "onnx", graph, [(SIZE, SIZE)])
    assert "not checked" in said and "onnxruntime is not installed" in said


def test_detector_without_scores_is_refused(weights, tmp_path, capsys, monkeypatch):
    def scores(self, predictions, level):
        raise NotImplementedError

    monkeypatch.setattr("rdsnet.modeling.RetinaNetStream.scores", scores)
    export("--weights", weights, "--output", tmp_path / "model.pt2")
    assert (
        "RetinaNetStream cannot be exported: it has no method scores()" in capsys.readouterr().err
    )
    assert os.listdir(tmp_path) == []


def test_detector_that_is_exported_as_another_is_refused(weights, tmp_path, capsys, monkeypatch):
    """It overrides what detection uses, and not what the graph uses."""
    monkeypatch.setattr(
        "rdsnet.modeling.RetinaNetStream.nms", lambda self, detections: detections.places.argsort()
    )
    export("--weights", weights, "--output", tmp_path / "model.pt2")
    assert "changes detect_padded() too" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_file_that_finds_something_else_is_not_kept(
    unwritten, weights, tmp_path, capsys, monkeypatch
):
    kept = tmp_path / "model.pt2"
    kept.write_text("what was there before")
    read = exporting.read
    monkeypatch.setattr(
        exporting, "read", lambda *file: lambda image, size: read(*file)(image.flip(1), size)
    )
    export("--weights", weights, "--output", kept)
    assert "so it is not kept" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["model.pt2"] and kept.read_text() == "what was there before"
