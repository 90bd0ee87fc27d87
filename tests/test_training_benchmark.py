"""benchmarks/training: it runs, and its variants compute the same."""

import os
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "training"


@pytest.fixture
def run(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    sys.modules.pop("run", None)
    import run

    yield run
    sys.modules.pop("run", None)


def test_every_variant_takes_part(run, tmp_path, capsys, monkeypatch):
    losses = []
    step = run.step
    monkeypatch.setattr(
        run,
        "step",
        lambda trainer, batch, precision: (
            losses.append(float(sum(trainer.model(batch).values())))
            or step(trainer, batch, precision)
        ),
    )
    words = ["--sides", "64", "--precisions", "float32", "--steps", "1", "--out", str(tmp_path)]
    run.main(words)
    printed = capsys.readouterr().out
    assert (tmp_path / "training.md").read_text() in printed
    assert all(f"| {variant} |" in printed for variant in run.VARIANTS)
    assert (tmp_path / "training.json").is_file()
    first = losses[: len(run.VARIANTS)]  # from the same weights, on the same batch
    assert first == pytest.approx([first[0]] * len(first), rel=1e-3)


@pytest.mark.skipif("RDSNET_DATA" not in os.environ, reason="RDSNET_DATA is not set")
def test_images_are_prepared_both_ways_alike(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    import loader

    assert loader.main(["--images", "3", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "loader.md").read_text()
    assert text in capsys.readouterr().out and "| crops of 128 px |" in text
    monkeypatch.setattr(loader, "move_whole", lambda *_: [])
    with pytest.raises(RuntimeError, match="other objects in .*seed 0"):
        loader.main(["--images", "3", "--out", str(tmp_path)])
