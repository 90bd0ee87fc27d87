"""The script interruption.py as a test."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.hanging import HANG

SCRIPT = str(Path(__file__).with_name("interruption.py"))


@pytest.mark.slow
def test_a_training_killed_twenty_times_ends_like_an_undisturbed_one():
    run = subprocess.run(
        [sys.executable, SCRIPT, "--kills", "20"], capture_output=True, text=True, timeout=HANG
    )
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    assert "20 kills" in run.stdout and "are equal bit for bit" in run.stdout
