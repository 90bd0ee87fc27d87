"""``rdsnet paper`` from its words to its tables."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from rdsnet.cli import main
from rdsnet.data.shapes import make_shapes_dataset


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Data of made-up photographs, brought to a shorter side of 64 px."""
    made = make_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=8, num_val=3)
    words = ["--data", made["train_json"], made["train_images"]]
    return [*words, "--val", made["val_json"], made["val_images"]]


SIZE = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--iterations", "5", "--only", "table9"], "--only table9: there are table1, table2"),
        ([], "give --budget HOURS, or --iterations N"),
        (["--iterations", "5", "SEED", "x"], "config options 'SEED x' cannot be used"),
    ],
)
def test_mistakes_are_said_before_anything_is_written(words, tmp_path, capsys, more, message):
    assert main(["paper", *words, "--output", str(tmp_path / "paper"), *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "paper").exists()


def test_a_dry_run_says_what_would_be_trained(words, tmp_path, capsys):
    output = ["--output", str(tmp_path / "paper")]
    more = ["--iterations", "6", "--only", "table4", "--dry-run", *output, *SIZE]
    assert main(["paper", *words, *more]) == 0
    printed = capsys.readouterr().out
    assert "rdsnet" in printed and "not begun" in printed and "mask_rcnn" not in printed
    assert "hours of training are left" in printed
    assert not (tmp_path / "paper" / "runs").exists()


@pytest.mark.slow
def test_interrupted_and_gone_on_with_all_tables_are_written(words, tmp_path, capsys):
    folder = tmp_path / "paper"
    more = ["--iterations", "30", "--output", str(folder), "--only", "table4,fig1,fig3,fig5,beyond"]
    command = [*words, *more, *SIZE]
    process = subprocess.Popen(
        [sys.executable, "-m", "rdsnet.cli", "paper", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    checkpoint = folder / "runs" / "rdsnet-1" / "model_0000002.pth"
    end = time.monotonic() + 300
    while not checkpoint.is_file() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    assert "Interrupted; the same command goes on." in printed
    assert not (folder / "runs" / "rdsnet-1" / "result.json").exists()

    assert main(["paper", *command]) == 0
    printed = capsys.readouterr().out
    assert "trained to iteration" in printed
    result = json.loads((folder / "runs" / "rdsnet-1" / "result.json").read_text())
    assert set(result["table4"]) >= {"none", "direct", "MBRM"} and set(result["fig5"]) >= {"4"}
    assert result["metrics"]["None"]["bbox"]["AP"] == result["metrics"]["None"]["bbox"]["AP"]
    text = (folder / "paper.md").read_text()
    for title in ("Table 4: MBRM", "Fig. 5", "Beyond the paper: without the expansion"):
        assert f"## {title}" in text
    assert (folder / "pictures" / "fig5.png").is_file()
    times = {path: path.stat().st_mtime for path in folder.glob("runs/*/result.json")}
    assert {path.parent.name for path in times} == {
        *("rdsnet-1", "corr-1", "corr_te-1", "rdsnet_s-1")
    }

    assert main(["paper", *command]) == 0  # everything is done: nothing is trained again
    assert times == {path: path.stat().st_mtime for path in folder.glob("runs/*/result.json")}
