"""Training curves from Detectron2's metrics.json."""

import json

import cv2
import pytest

from rdsnet.visualization import plot_training_curves
from rdsnet.visualization.curves import read_metrics


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def losses(iteration, total):
    return {"iteration": iteration, "total_loss": total, "loss_mask": total / 2}


def test_resumed_run_counts_as_written_last(tmp_path):
    lines = [losses(19, 3.0), losses(39, 2.0), losses(59, 9.0), losses(59, 1.0), losses(79, 0.5)]
    file = write(tmp_path / "metrics.json", lines)
    assert read_metrics(file)["total_loss"] == [(19, 3.0), (39, 2.0), (59, 1.0), (79, 0.5)]


def test_unfinished_last_line_of_an_interrupted_run_is_ignored(tmp_path):
    file = write(tmp_path / "metrics.json", [losses(19, 3.0)])
    file.write_text(file.read_text() + '{"iteration": 39, "total_')
    assert read_metrics(file)["total_loss"] == [(19, 3.0)]


@pytest.mark.parametrize("points", [1, 4, 40])
def test_curves_are_drawn_from_few_and_many_points(tmp_path, points):
    file = write(tmp_path / "metrics.json", [losses(20 * k, 2.0) for k in range(points)])
    plot_training_curves(file, tmp_path / "curve.png")
    picture = cv2.imread(str(tmp_path / "curve.png"))
    assert (picture.max(axis=2) < 255).any()  # something other than white


def test_repeated_evaluation_is_a_second_panel(tmp_path):
    lines = [{**losses(20 * k, 2.0), "segm/AP": 10.0 * k, "bbox/AP": 11.0 * k} for k in range(4)]
    plot_training_curves(write(tmp_path / "a.json", lines), tmp_path / "with.png")
    lines = [losses(20 * k, 2.0) for k in range(4)]
    plot_training_curves(write(tmp_path / "b.json", lines), tmp_path / "without.png")
    widths = [cv2.imread(str(tmp_path / f"{name}.png")).shape[1] for name in ("with", "without")]
    assert widths[0] > widths[1]


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="metrics.json"):
        plot_training_curves(tmp_path / "metrics.json", tmp_path / "curve.png")
    (tmp_path / "empty.json").write_text("")
    with pytest.raises(ValueError, match="empty.json.*no metrics"):
        plot_training_curves(tmp_path / "empty.json", tmp_path / "curve.png")
