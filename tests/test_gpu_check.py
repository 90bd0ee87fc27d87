"""make cuda-build and make gpu-check, as far as that goes without a GPU."""

from __future__ import annotations

import json

import build_cuda
import gpu_check
import gpu_kernels
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

    def run(command, library, seconds=0):
        return next(text for word, text in said.items() if word in " ".join(command))

    monkeypatch.setattr(gpu_check, "run", run)
    return said


def test_figures_are_written_and_missed_goals_named(pretended, tmp_path, capsys):
    assert gpu_check.main(["--output", str(tmp_path / "gpu")]) == 0
    output = capsys.readouterr().out
    assert "90 tests of the operators passed on the GPU" in output
    assert "slower than their goals: b (float32, 1 objects)" in output
    assert (
        "| 1 | a | float32 | 0.100 | 1.000 | 0.200 |" in (tmp_path / "gpu/kernels.md").read_text()
    )
    steps = json.loads((tmp_path / "gpu/summary.json").read_text())["steps"]
    assert list(steps) == ["tests", "sanitizer", "kernels", "models"]


def test_tests_that_were_skipped_are_a_failure(pretended, tmp_path, capsys):
    pretended["pytest"] = "SKIPPED [78] no CUDA device\n9 passed, 78 skipped"
    skip = ["--skip", "sanitizer", "kernels", "models"]
    assert gpu_check.main(["--output", str(tmp_path), *skip]) == 1
    assert "the tests did not run on the GPU" in capsys.readouterr().out


@pytest.mark.parametrize("difference", [0.1, float("nan")])
def test_disagreement_with_the_cpu_is_a_failure(pretended, tmp_path, capsys, difference):
    results = json.loads(pretended["gpu_kernels"])
    results["agreement"]["1"]["losses"] = difference
    pretended["gpu_kernels"] = json.dumps(results)
    assert (
        gpu_check.main(["--output", str(tmp_path), "--skip", "tests", "sanitizer", "models"]) == 1
    )
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
