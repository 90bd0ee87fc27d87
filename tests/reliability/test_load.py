"""The script load.py, with fewer images."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.hanging import HANG


@pytest.mark.alone
@pytest.mark.slow
def test_memory_is_flat_and_bounded():
    script = str(Path(__file__).with_name("load.py"))
    run = subprocess.run(
        [sys.executable, script, "--images", "400"], capture_output=True, text=True, timeout=HANG
    )
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
