"""tools/demo.py from beginning to end, in a run too short to learn anything."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
from helpers.hanging import HANG

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "demo.py"
ITERATIONS = 6


def test_demo_starts_afresh_and_writes_pictures_figures_and_a_model(tmp_path):
    output = tmp_path / "demo"
    # What an interrupted earlier run left, and a file that is not the demo's.
    (output / "inference").mkdir(parents=True)
    (output / "metrics.json").write_text('{"iteration": 999, "total_loss": 1.0}\n{"itera')
    (output / "model_0000001.pth").write_bytes(b"cut off")
    (output / "last_checkpoint").write_text("model_0000001.pth")
    (output / "notes.txt").write_text("mine")

    words = [sys.executable, str(SCRIPT), "--output", str(output), "--iterations", str(ITERATIONS)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=HANG, cwd=tmp_path)
    assert result.returncode == 0, result.stderr

    for row in ("box", "box without MBRM", "mask"):
        assert f"| {row} " in result.stdout
    assert "overview.png" in result.stdout and "Total time" in result.stdout
    assert f"Report:     {output / 'report.html'}: open it in a browser" in result.stdout
    assert "</html>" in (output / "report.html").read_text()
    assert f"{ITERATIONS}/{ITERATIONS}" in result.stderr  # the progress bar
    assert "INFO" not in result.stdout + result.stderr  # Detectron2's log is in log.txt
    assert "Total training time" in (output / "log.txt").read_text()

    overview = cv2.imread(str(output / "overview.png"))
    assert overview.shape[1] > 4 * 400
    assert cv2.imread(str(output / "loss_curve.png")) is not None
    report = (output / "results.md").read_text()
    assert "box without MBRM" in report and f"{ITERATIONS} iterations" in report
    for name in ("AP50", "AP75", "torch", "Machine", "overview.png"):
        assert name in report

    metrics = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert all(line["iteration"] < ITERATIONS for line in metrics)
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    assert not (output / "model_0000001.pth").exists()
    assert (output / "notes.txt").read_text() == "mine"
    held_out = json.loads((output / "data" / "val.json").read_text())
    assert len(held_out["images"]) >= 6
    assert (output / "inference" / "coco_instances_results.json").is_file()

    # The model and config that it leaves are what `rdsnet predict` asks for.
    words = [sys.executable, "-m", "rdsnet.cli", "predict", "--config-file"]
    words += [str(output / "config.yaml"), "--weights", str(output / "model_final.pth")]
    words += ["--input", str(output / "data" / "val"), "--output", str(tmp_path / "predictions")]
    words += ["--format", "coco", "--score-threshold", "0.1"]
    repository = str(SCRIPT.parents[1])
    result = subprocess.run(words, capture_output=True, text=True, timeout=HANG, cwd=repository)
    assert result.returncode == 0, result.stderr
    images = json.loads((tmp_path / "predictions" / "images.json").read_text())
    names = [category["name"] for category in images["categories"]]
    assert names == ["ellipse", "triangle", "rectangle", "star", "ring"]
    assert len(images["images"]) == len(held_out["images"])


def test_number_of_iterations_must_be_positive(tmp_path):
    words = [sys.executable, str(SCRIPT), "--output", str(tmp_path), "--iterations", "0"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=HANG)
    assert result.returncode == 2
    assert (
        "'0' is not a whole number of at least 1" in result.stderr
        and "Traceback" not in result.stderr
    )
