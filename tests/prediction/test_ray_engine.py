"""``rdsnet predict --engine ray``: what is written, by workers that run in this process.

test_ray.py has the same with Ray itself.
"""

import sys
from contextlib import nullcontext

import numpy as np
import pytest
from helpers.folders import contents
from helpers.predicting import OBJECTS, picture
from PIL import Image

from rdsnet.cli import main

for package in ("ray", "pyarrow"):
    pytest.importorskip(package, reason="needs rdsnet[ray]")

from rdsnet.prediction import ray_engine  # noqa: E402

OF_THE_RUN = {"run.json", "inputs.parquet", "failures.csv"}


@pytest.fixture
def ran(monkeypatch):
    """The shards that were predicted, in their order: the last one first."""
    ran = []

    def in_this_process(shards, wanted, predictor, retry_failed, workers, on_gpu):
        assert not on_gpu
        worker = ray_engine._ShardPredictor(str(shards.folder), ".", predictor, retry_failed)
        for shard in reversed(wanted):
            worker({"shard": np.array([shard])})
            ran.append(shard)

    monkeypatch.setattr(ray_engine, "_predict_shards", in_this_process)
    monkeypatch.setattr(ray_engine, "connected", lambda *given: nullcontext())
    return ran


@pytest.fixture
def photos(tmp_path):
    """Seven images, of which "broken.png" is cut off, and a stack of three pages."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for k, size in enumerate([(60, 90), (90, 60), (60, 90), (40, 40), (60, 90), (60, 90)]):
        Image.fromarray(picture(*size, k)).save(folder / f"{k}.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:400])
    pages = [Image.fromarray(picture(50, 70, seed)) for seed in (2, 3, 4)]
    pages[0].save(folder / "stack.tif", save_all=True, append_images=pages[1:])
    (folder / "0").mkdir()
    Image.fromarray(picture(30, 30)).save(folder / "0" / "1.png")  # another one of this name
    return folder


@pytest.fixture
def predict(model_files, tmp_path):
    """Call with the name of the output folder, inputs and arguments; returns the exit status."""

    def call(out, *words):
        given = ["--config-file", model_files["config"], "--weights", model_files["weights"]]
        given += ["--precision", "float32", "--score-threshold", "0"]
        return main(["predict", *given, "--output", str(tmp_path / out), *map(str, words)])

    return call


def results(folder):
    """What the formats have written."""
    files = contents(folder)
    return {name: files[name] for name in files if name not in OF_THE_RUN and "shards/" not in name}


RAY = ("--engine", "ray", "--shard-size", "3")


@pytest.mark.parametrize("how", [(), ("--tile", "512", "--overlap", "64"), ("--pages", "1-")])
def test_both_engines_write_the_same(how, predict, ran, photos, tmp_path):
    given = ["--input", photos, photos / "0" / "1.png", "--format", "coco,csv,geojson", *how]
    assert predict("local", *given) == 1
    assert predict("ray", *given, *RAY) == 1
    assert ran == [2, 1, 0]
    assert len(results(tmp_path / "local")) >= 10
    assert results(tmp_path / "ray") == results(tmp_path / "local")


def test_the_summary_is_the_same(predict, ran, photos, capsys):
    assert predict("local", "--input", photos, "--format", "csv") == 1
    local = capsys.readouterr().out.splitlines()
    assert predict("ray", "--input", photos, *RAY) == 1
    got = capsys.readouterr().out.splitlines()
    assert local[0] == got[0] == f"{9 * OBJECTS} objects in 9 images."
    assert got[:-2] == local[:-1] and got[-2].endswith("ray/shards")
    assert "failures.csv names them; --retry-failed" in got[-1]


def test_a_second_run_does_what_is_missing(predict, ran, photos, tmp_path, capsys):
    given = ["--input", photos, "--format", "coco", *RAY]
    assert predict("ray", *given) == 1
    first = contents(tmp_path / "ray")
    (tmp_path / "ray/shards/000001.parquet").unlink()
    (tmp_path / "ray/images.json").unlink()
    ran.clear()
    assert predict("ray", *given) == 1
    assert ran == [1] and contents(tmp_path / "ray") == first
    assert "2 shards of an earlier run were kept" in capsys.readouterr().out
    ran.clear()
    assert predict("ray", *given) == 1 and not ran


def test_failures_are_kept_until_they_are_tried_again(predict, ran, photos, tmp_path, capsys):
    lost = photos / "5.png"
    content = lost.read_bytes()
    lost.unlink()
    lost.symlink_to(tmp_path / "nothing")
    given = ["--input", photos, *RAY]
    assert predict("ray", *given) == 1
    lines = (tmp_path / "ray/failures.csv").read_text().splitlines()
    assert lines[0] == "file,reason" and len(lines) == 3
    assert lines[1].startswith(str(lost)) and "does not exist" in lines[1]
    assert lines[2].startswith(str(photos / "broken.png")) and "truncated" in lines[2]
    (tmp_path / "nothing").write_bytes(b"")  # a file of another size is another file
    ran.clear()
    assert predict("ray", *given) == 1 and ran == [1]
    (tmp_path / "nothing").write_bytes(content)
    (photos / "broken.png").write_bytes(content)
    ran.clear()
    assert predict("ray", *given, "--retry-failed") == 0
    assert ran == [2, 1] or ran == [1] or ran == [2]
    assert not (tmp_path / "ray/failures.csv").exists()


def test_another_model_or_threshold_is_refused(predict, ran, photos, capsys):
    assert predict("ray", "--input", photos, *RAY) == 1
    capsys.readouterr()
    assert predict("ray", "--input", photos, *RAY, "--opts", "INPUT.MIN_SIZE_TEST", "64") == 2
    assert "INPUT.MIN_SIZE_TEST was 96 and is 64" in capsys.readouterr().err
    assert predict("ray", "--input", photos, *RAY, "--classes", "disc") == 2
    assert "--classes was [] and is ['disc']" in capsys.readouterr().err
    assert predict("ray", "--input", photos, *RAY, "--tile", "auto") == 2
    assert "--tile was None and is 'auto'" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [1, 3])
def test_shards_that_nobody_finishes_are_named(
    workers, predict, ran, photos, monkeypatch, capsys, tmp_path
):
    finish = ray_engine._ShardPredictor.__call__
    monkeypatch.setattr(
        ray_engine._ShardPredictor,
        "__call__",
        lambda self, batch: finish(self, batch) if batch["shard"][0] != 1 else None,
    )
    given = ["--input", photos, "--format", "coco", *RAY, "--workers", workers]
    assert predict("ray", *given) == 1
    out = capsys.readouterr().out
    assert f"Not finished: 3 files from '{photos}/3.png' on." in out
    assert "1 shard could not be finished" in out and "The same command tries again" in out
    assert not (tmp_path / "ray/images.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--workers", "2"), "--workers can only be given together with --engine ray"),
        (("--format", "parquet"), "--format parquet can only be given together with --engine ray"),
        (("--engine", "ray", "--format", "png"), "writes the formats parquet, coco, csv, geojson"),
        (("--engine", "ray", "--pages", "x"), "'x' names no pages"),
        (("--engine", "ray", "--overlap", "9"), "together with --tile"),
        (("--engine", "ray", "--tile", "auto", "--max-frames", "9"), "does not go with --tile"),
    ],
)
def test_what_does_not_go_together_is_said(words, message, predict, photos, capsys):
    assert predict("ray", "--input", photos, *words) == 2
    assert message in capsys.readouterr().err


def test_formats_of_the_help_are_those_that_are_written():
    from rdsnet.commands.predict import FORMATS_OF_RAY

    for name in FORMATS_OF_RAY:
        ray_engine._check_formats([name])


def test_a_missing_package_is_named_with_its_remedy(predict, photos, monkeypatch, capsys):
    for name in list(sys.modules):
        if name.split(".")[0] == "ray" or name == "rdsnet.prediction.ray_engine":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert predict("ray", "--input", photos, "--engine", "ray") == 2
    assert "needs Ray Data: pip install 'rdsnet[ray]'" in capsys.readouterr().err
