"""benchmarks/serve: a few clients for a moment, and its table."""

import argparse
import json
import sys
from pathlib import Path

import pytest
from helpers.predicting import picture
from PIL import Image

for package in ("fastapi", "prometheus_client", "python_multipart", "swagger_ui_bundle", "httpx"):
    pytest.importorskip(package, reason="needs rdsnet[serve]")

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "serve"


@pytest.fixture
def run(monkeypatch):
    monkeypatch.delitem(sys.modules, "run", raising=False)
    monkeypatch.syspath_prepend(FOLDER)
    import run

    yield run
    sys.modules.pop("run")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_few_clients_are_served_and_reported(run, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "noise.png")
    args = argparse.Namespace(
        clients=3, seconds=0.5, format="png", weights="nuclei", image=str(tmp_path / "noise.png")
    )
    results = run.measured(args)
    assert results["answers"] >= 3 and not results["errors"] and results["exit_status"] == 0
    assert 0 < results["p50_s"] <= results["p95_s"]
    assert 0 < results["memory_before_mib"] <= results["memory_peak_mib"]
    assert f"| {results['answers']}, 0 |" in run.report(results, "a machine")


def test_the_figures_shown_are_those_measured(run):
    """Table and json of the same run, without an error."""
    results = json.loads((FOLDER / "serve.json").read_text())
    shown = (FOLDER / "serve.md").read_text()
    machine = shown.partition(f", {results['date']}")[0]
    table = run.report(results, machine).partition("| ---")[2]
    assert table == shown.partition("| ---")[2] and not results["errors"]
