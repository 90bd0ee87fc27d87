"""OpenVINO's files: what they find, what they say about themselves, what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.exporting import SIZE, assert_same, found_by, need_onnx, random_image

from rdsnet.checkpoint.exported import read_texts
from rdsnet.checkpoint.trained import prediction_config
from rdsnet.cli import main
from rdsnet.export import files
from rdsnet.export.check import objects_of
from rdsnet.export.ir import loops_instead_of_scans
from rdsnet.prediction.exported import build_predictor

pytestmark = pytest.mark.slow  # three files are written

PAGE = Path(__file__).resolve().parents[2] / "docs" / "export.md"


@pytest.fixture(scope="module")
def ir_file(weights, tmp_path_factory):
    """The path of the .xml that the command writes."""
    need_onnx()
    pytest.importorskip("openvino", reason="needs rdsnet[openvino]")
    path = tmp_path_factory.mktemp("openvino") / "model.xml"
    assert main(["export", "--weights", weights, "--output", str(path)]) == 0
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.bin", "model.xml"]
    return path


@pytest.fixture(scope="module")
def run(ir_file):
    return files.read(ir_file, "openvino")


@pytest.mark.parametrize("size", [SIZE, (65, 97), (200, 32)])
def test_it_finds_what_the_model_finds_in_images_of_any_size(run, model, size):
    image = random_image(*size, seed=size[0])
    assert len(found_by(model, image).scores) > 10
    assert_same(run(image), model, image)


def test_results_in_another_size(run, model):
    image = random_image(*SIZE, seed=5)
    assert_same(run(image, (61, 50)), model, image, (61, 50))


def test_an_image_without_objects(run):
    found = run(torch.full((3, *SIZE), 128, dtype=torch.uint8))
    assert [tuple(x.shape) for x in found] == [(0, 4), (0, 4), (0,), (0,), (0, *SIZE)]


def test_results_are_not_overwritten_by_those_of_the_next_image(run):
    first = run(random_image(*SIZE, seed=1))
    kept = [x.clone() for x in first]
    run(random_image(*SIZE, seed=2))
    assert all(torch.equal(a, b) for a, b in zip(first, kept))


def test_it_says_about_itself_what_the_onnx_file_says(ir_file, onnx_file):
    assert read_texts(ir_file) == read_texts(onnx_file)


def test_predictor_gives_what_that_of_the_onnx_file_gives(ir_file, onnx_file):
    ir, onnx = (
        build_predictor(prediction_config(None, str(path), None, ()))
        for path in (ir_file, onnx_file)
    )
    image = random_image(90, 140, seed=3).permute(1, 2, 0).numpy()
    found, expected = (objects_of(each(image)["instances"]) for each in (ir, onnx))
    assert len(expected.scores) > 10
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-3, rtol=0)
    assert (found.masks != expected.masks).float().mean() < 1e-4


def test_program_of_the_guide(ir_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ir_file.parent, tmp_path / "output")
    programs = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (program,) = (text for text in programs if "import openvino" in text)
    names: dict = {}
    exec(program.replace("256, 512", "64, 96"), names)
    assert names["names"] == ["disc", "bar", "Größe"] and names["masks"].shape[1:] == SIZE


def test_compact_results(weights, tmp_path):
    """The command itself compares their masks with the model's."""
    need_onnx()
    pytest.importorskip("openvino", reason="needs rdsnet[openvino]")
    path = tmp_path / "compact.xml"
    assert main(["export", "--weights", weights, "--output", str(path), "--compact"]) == 0
    assert json.loads(read_texts(path)["outputs"])[4:6] == ["windows", "cells"]


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), random_image(90, 140, seed=3).permute(1, 2, 0).numpy())
    return path


def test_predict_takes_it(ir_file, photo, tmp_path):
    arguments = ["predict", "--weights", str(ir_file), "--input", str(photo), "--format", "coco"]
    assert main([*arguments, "--output", str(tmp_path / "found")]) == 0
    results = (tmp_path / "found" / "coco_instances_results.json").read_text()
    assert isinstance(json.loads(results), list)


def test_foreign_damaged_and_incomplete_files_are_refused(ir_file, photo, tmp_path, capsys):
    openvino = pytest.importorskip("openvino", reason="needs rdsnet[openvino]")
    foreign, alone, damaged = (tmp_path / f"{n}.xml" for n in ("foreign", "alone", "damaged"))
    value = openvino.opset13.parameter([1], dtype=np.float32)
    openvino.save_model(openvino.Model([openvino.opset13.relu(value)], [value]), foreign)
    shutil.copy(ir_file, alone)
    damaged.write_bytes(ir_file.read_bytes()[:5000])
    shutil.copy(ir_file.with_suffix(".bin"), damaged.with_suffix(".bin"))
    for path, message in (
        (foreign, "is an OpenVINO file of something else"),
        (alone, "alone.bin', which does not exist: copy both"),
        (damaged, "is cut off or no OpenVINO file"),
    ):
        arguments = ["--weights", str(path), "--input", str(photo)]
        assert main(["predict", *arguments, "--output", str(tmp_path / "o")]) == 2
        assert message in capsys.readouterr().err


def test_missing_openvino_is_named_with_its_remedy(weights, tmp_path, capsys, monkeypatch):
    need_onnx()
    there = files.find_spec
    monkeypatch.setattr(
        files, "find_spec", lambda name: None if name == "openvino" else there(name)
    )
    assert main(["export", "--weights", weights, "--output", str(tmp_path / "model.xml")]) == 2
    remedy = "OpenVINO files need openvino: pip install 'rdsnet[export,openvino]'"
    assert remedy in capsys.readouterr().err


def test_openvino_file_where_openvino_is_missing(photo, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rdsnet.checkpoint.exported.find_spec", lambda name: None)
    path = tmp_path / "model.xml"
    path.write_text("<net/>")
    arguments = ["--weights", str(path), "--input", str(photo), "--output", str(tmp_path / "o")]
    assert main(["predict", *arguments]) == 2
    assert "pip install 'rdsnet[openvino]'" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 5])
def test_a_loop_computes_what_its_scan_computes(count):
    """Sums and squares of rows of x times a factor from outside the loop, in onnxruntime."""
    onnxruntime, onnx = need_onnx(), pytest.importorskip("onnx", reason="needs rdsnet[export]")
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        scanned (float[n, 3] x, float[3] factor, float[3] start) => (float[3] end, float[n, 3] y) {
            end, y = Scan <num_scan_inputs = 1, body = one (float[3] sum, float[3] row)
                => (float[3] next, float[3] square) {
                    scaled = Mul(row, factor)
                    next = Add(sum, scaled)
                    square = Mul(scaled, scaled)
                }>(start, x)
        }""")
    generator = np.random.default_rng(0)
    shapes = {"x": (count, 3), "factor": (3,), "start": (3,)}
    inputs = {name: generator.normal(size=shape).astype("f") for name, shape in shapes.items()}

    def results():
        session = onnxruntime.InferenceSession(model.SerializeToString())
        return session.run(None, inputs)

    expected = results()
    loops_instead_of_scans(model)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node].count("Loop") == 1
    for found, each in zip(results(), expected):
        np.testing.assert_array_equal(found, each)
    scaled = inputs["x"] * inputs["factor"]
    np.testing.assert_allclose(expected[1], scaled**2, rtol=1e-6)
    np.testing.assert_allclose(expected[0], inputs["start"] + scaled.sum(0), rtol=1e-5)


def test_a_scan_backwards_is_refused():
    onnx = pytest.importorskip("onnx", reason="needs rdsnet[export]")
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        scanned (float[n, 3] x) => (float[n, 3] y) {
            y = Scan <num_scan_inputs = 1, scan_input_directions = [1], body = one (float[3] row)
                => (float[3] square) { square = Mul(row, row) }>(x)
        }""")
    with pytest.raises(ValueError, match="scan_input_directions cannot be written for OpenVINO"):
        loops_instead_of_scans(model)
