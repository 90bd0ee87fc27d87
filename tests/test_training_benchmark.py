"""benchmarks/training: it runs, and its variants compute the same."""

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
