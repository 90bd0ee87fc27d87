"""benchmarks/predict: its images, its ways, and its tables from results made by hand."""

import sys
from pathlib import Path

import pytest
from helpers.predicting import picture
from PIL import Image

from rdsnet.checkpoint.trained import names_and_ids, prediction_config
from rdsnet.prediction.predictor import CountingPredictor

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "predict"


@pytest.fixture
def run(monkeypatch):
    monkeypatch.delitem(sys.modules, "run", raising=False)
    monkeypatch.syspath_prepend(FOLDER)
    import run

    yield run
    sys.modules.pop("run")


@pytest.fixture
def files(run, tmp_path):
    """Five JPEGs of 40 x 30 px, made of two images."""
    (tmp_path / "data").mkdir()
    for k in range(2):
        Image.fromarray(picture(seed=k)).save(tmp_path / "data" / f"{k}.png")
    return run.make_images(tmp_path / "work" / "images", tmp_path / "data", 5, (40, 30))


def test_images_are_copies_in_turn_and_parts_share_them(run, files):
    first, second, third, *_ = (file.read_bytes() for file in files)
    assert first == third != second and Image.open(files[4]).size == (40, 30)
    parts = [
        sorted(path.name for path in part.iterdir()) for part in run.folders_of_parts(files, 2)
    ]
    assert parts == [["0000.jpg", "0002.jpg", "0004.jpg"], ["0001.jpg", "0003.jpg"]]


@pytest.mark.parametrize("sleeps", [True, False])
def test_all_ways_take_turns_and_write_the_same(run, files, model_files, sleeps):
    cfg = prediction_config(model_files["config"], model_files["weights"], 0.0)
    predictor, metadata = CountingPredictor(cfg), names_and_ids(cfg)
    if sleeps:
        predictor = run.SleepingPredictor(predictor, files[0], 0.001)
    results = run.measure(predictor, metadata, run.folders_of_parts(files, 2), ["csv"])
    assert list(results) == ["model", "serial", "predict"]
    for of_way in results.values():
        assert len(of_way["rounds"]) == 2
        # 3 images, then 2: the mean of all lies between the rounds.
        assert min(of_way["rounds"]) <= of_way["images_per_second"] <= max(of_way["rounds"])


def test_tables_show_shares_of_the_model_alone(run):
    def ways(model, serial, predict):
        rounds = {"model": model, "serial": serial, "predict": predict}
        return {
            way: {"images_per_second": sum(r) / 2, "processor_ms": 7, "rounds": r}
            for way, r in rounds.items()
        }

    text = run.report(
        {
            "machine": "a processor",
            "date": "2026-01-01",
            "images": "10 JPEGs",
            "load": 1.5,
            "sleep_ms": 50,
            "speed": {"csv": ways([10, 10], [5, 7], [9, 10])},
            "sleeping": {"csv": ways([20, 20], [5, 5], [20, 19])},
            "memory": {1: {"serial": 100.2, "predict": 110}, 10: {"serial": 100, "predict": 111}},
        }
    )
    assert "| csv | 10.00 | 6.00 | 9.50 | 95% (rounds: 90% to 100%) | 7, 7, 7 ms |" in text
    assert "| csv | 20.00 | 5.00 | 19.50 | 98% (rounds: 95% to 100%) | 7, 7, 7 ms |" in text
    assert "| 1 | 100 | 110 |" in text and "sleeps for 50 ms" in text
