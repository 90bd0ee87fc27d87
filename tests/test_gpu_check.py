"""make cuda-build and make gpu-check, as far as that goes without a GPU."""

from __future__ import annotations

import json
import re
import sys

import build_cuda
import gpu_check
import gpu_kernels
import gpu_system
import pytest


def test_without_a_gpu_nothing_is_touched(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_check, "obstacle", lambda: "torch sees no GPU")
    monkeypatch.setattr(build_cuda, "build", lambda *_: pytest.fail("nothing is to be built"))
    output = tmp_path / "gpu"
    assert gpu_check.main(["--output", str(output)]) == 2
    assert "nothing was checked" in capsys.readouterr().err
    assert not output.exists()


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """A machine on which everything is there; returns what the commands will say, by a word."""
    said = {"pytest": "90 passed, 3 skipped", "sanitizer": "0 errors", "benchmark": "written"}
    monkeypatch.setattr(gpu_check, "obstacle", lambda: None)
    monkeypatch.setattr(gpu_check, "describe_machine", lambda: {"gpu": "none"})
    monkeypatch.setattr(build_cuda, "build", lambda *_: tmp_path / "_C.so")
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: name)
    results = {
        "agreement": {"1": gpu_kernels.agreement((64, 96), (50, 70), 1, ("cpu", "cpu"))},
        "timings": {
            "1": [
                {"what": "a", "dtype": "float32", "kernels_ms": 0.1, "call_ms": 1, "goal_ms": 0.2},
                {"what": "b", "dtype": "float32", "kernels_ms": None, "call_ms": 1, "goal_ms": 0.5},
            ]
        },
    }
    said["gpu_kernels"] = json.dumps(results)
    losses = {"first losses": [3.0, 2.5, 2.0], "last losses": [1.0, 0.9, 0.8]}
    same = {"images/s": 9.0, "peak MB": 70, "objects": 20, "matched": 1.0, "mean mask IoU": 1.0}
    said["gpu_system"] = json.dumps(
        {"agreement": {"CPU": {"images/s": 2.0}, "CUDA, float32": same}, "training": {"a": losses}}
    )

    def execute(command, library, seconds=0):
        text = next(text for word, text in said.items() if word in " ".join(command))
        return (text, "") if isinstance(text, int) else (0, text)

    monkeypatch.setattr(gpu_check, "execute", execute)
    return said


def test_figures_are_written_and_missed_goals_named(pretended, tmp_path, capsys):
    assert gpu_check.main(["--output", str(tmp_path / "gpu")]) == 0
    output = capsys.readouterr().out
    assert re.search(r"\d+0 tests of the operators passed on the GPU", output)
    assert "slower than their goals: b (float32, 1 objects)" in output
    assert (
        "| 1 | a | float32 | 0.100 | 1.000 | 0.200 |" in (tmp_path / "gpu/kernels.md").read_text()
    )
    steps = json.loads((tmp_path / "gpu/summary.json").read_text())["steps"]
    assert list(steps) == ["tests", "sanitizer", "kernels", "system", "models"]
    table = (tmp_path / "gpu/system.md").read_text()
    assert "| CUDA, float32 | 9 | 70 | 20 | 1 | 1 |" in table
    assert "| a | 3.00, 2.50, 2.00 | 1.00, 0.90, 0.80 |" in table


def test_tests_that_were_skipped_are_a_failure(pretended, tmp_path, capsys):
    pretended["pytest"] = "SKIPPED [78] no CUDA device\n9 passed, 78 skipped"
    skip = ["--skip", "sanitizer", "kernels", "system", "models"]
    assert gpu_check.main(["--output", str(tmp_path), *skip]) == 1
    assert "the tests did not run on the GPU" in capsys.readouterr().out


def test_what_takes_too_long_is_stopped_and_the_rest_goes_on(tmp_path):
    command = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(600)"]
    status, output = gpu_check.execute(command, tmp_path, seconds=5)
    assert status == gpu_check.TOO_LONG and "timed out after 5 seconds" in output


def test_a_crash_is_a_failure_that_says_where(pretended, tmp_path, capsys, monkeypatch):
    pretended["pytest"] = -11
    pretended["torch.zeros"] = "RuntimeError: shape '[3]' is invalid for input of size 2"
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: None)
    skip = ["--skip", "sanitizer", "kernels", "system", "models"]
    assert gpu_check.main(["--output", str(tmp_path), *skip]) == 1
    output = capsys.readouterr().out
    assert "test_correlate.py: exit status -11" in output and "no gdb and no cuda-gdb" in output
    assert "an error of PyTorch's own with it: raised" in output


@pytest.mark.parametrize(
    ("part", "row", "values", "words"),
    [
        ("agreement", "CUDA, float32", {"matched": 0.9}, "objects are not the CPU's"),
        ("agreement", "CUDA, float32", {"mean mask IoU": 0.5}, "objects are not the CPU's"),
        ("training", "a", {"last losses": [3.1, 3.2, 3.3]}, "a does not learn"),
        ("training", "a", {"last losses": [0.1, 0.2, float("nan")]}, "a does not learn"),
    ],
)
def test_whole_models_that_go_wrong_are_a_failure(
    pretended, tmp_path, capsys, part, row, values, words
):
    results = json.loads(pretended["gpu_system"])
    results[part][row].update(values)
    pretended["gpu_system"] = json.dumps(results)
    skip = ["--skip", "tests", "sanitizer", "kernels", "models"]
    assert gpu_check.main(["--output", str(tmp_path), *skip]) == 1
    assert words in capsys.readouterr().out


def test_a_model_is_compared_with_itself_on_the_cpu():
    pictures = gpu_system.images(1)
    found = gpu_system.predictions("cpu", "float32", False, pictures)
    same = gpu_system.compare(found["found"], found["found"])
    assert same["objects"] > 5 and same["matched"] == 1 and same["mean mask IoU"] == 1


@pytest.mark.parametrize("difference", [0.1, float("nan")])
def test_disagreement_with_the_cpu_is_a_failure(pretended, tmp_path, capsys, difference):
    results = json.loads(pretended["gpu_kernels"])
    results["agreement"]["1"]["losses"] = difference
    pretended["gpu_kernels"] = json.dumps(results)
    skip = ["--skip", "tests", "sanitizer", "system", "models"]
    assert gpu_check.main(["--output", str(tmp_path), *skip]) == 1
    assert "CPU and CUDA differ" in capsys.readouterr().out


def test_agreement_of_the_cpu_with_itself_is_exact_on_masks_that_are_there():
    found = gpu_kernels.agreement((64, 96), (50, 70), 5, ("cpu", "cpu"))
    assert set(found.values()) == {0.0}
    assert gpu_kernels.Scene((64, 96), (50, 70), 5, "cpu").masks().areas.sum() > 0


def test_machine_without_nvcc_skips_the_build_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(build_cuda, "find_nvcc", lambda: None)
    assert build_cuda.main([]) == 0
    assert "skipped, there is no nvcc" in capsys.readouterr().out


def test_nvcc_that_fails_fails_the_build(monkeypatch, capsys):
    def build(architectures):
        raise build_cuda.BuildError("masks.cu: error")

    monkeypatch.setattr(build_cuda, "find_nvcc", lambda: "/opt/cuda/bin/nvcc")
    monkeypatch.setattr(build_cuda, "build", build)
    assert build_cuda.main([]) == 1
    assert "masks.cu: error" in capsys.readouterr().err
