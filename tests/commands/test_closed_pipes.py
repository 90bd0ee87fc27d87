"""``rdsnet ... | head``: nobody reads the output to its end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.hanging import HANG
from reliability import tiny

BROKEN_PIPE = 141  # 128 + SIGPIPE, as of every program that head ends


def unread(*words, stderr=subprocess.PIPE):
    """Run a program whose output is a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONUNBUFFERED", None)
    try:
        return subprocess.run(
            [sys.executable, *words],
            stdout=writing,
            stderr=writing if stderr is None else stderr,
            env=environment,
            cwd=tiny.ROOT,
            text=True,
            timeout=HANG,
        )
    finally:
        os.close(writing)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "--help"]])
def test_help_that_nobody_reads_ends_silently(words):
    run = unread("-m", "rdsnet.cli", *words)
    assert (run.returncode, run.stderr) == (BROKEN_PIPE, "")


def test_a_command_ends_at_the_line_that_nobody_reads(tmp_path):
    """In the middle of what it does, whose output is not held back for once."""
    paths = tiny.make_data(tmp_path, images=3)
    words = ["-u", "-m", "rdsnet.cli", "check-data", paths["train_json"], paths["train_images"]]
    run = unread(*words)
    assert run.returncode == BROKEN_PIPE
    assert "Error" not in run.stderr and "pipe" not in run.stderr
    # With 2>&1 there is nowhere left to write an error to.
    assert unread(*words, stderr=None).returncode == BROKEN_PIPE


@pytest.mark.parametrize("program", [["-m", "rdsnet.cli", "train"], ["train_net.py"]])
def test_a_training_goes_on_without_its_console(tmp_path, program):
    data = tiny.make_data(tmp_path / "data", images=4)
    words = ["--config-file", tiny.SMALL, *tiny.options(data, tmp_path / "out", 2)]
    run = unread(*program, *words)
    assert run.returncode == (BROKEN_PIPE if "train" in program else 0)
    assert "Error" not in run.stderr and "Traceback" not in run.stderr
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_final.pth"
    log = Path(tmp_path / "out" / "log.txt").read_text()
    assert "Starting training from iteration 0" in log and "model_final.pth" in log
