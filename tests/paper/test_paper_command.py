"""``rdsnet paper`` from its words to its tables."""

import fcntl
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
        (
            ["--iterations", "5", "--without", "rdsnet,htc"],
            "--without rdsnet, htc: there are retinanet, mask_rcnn",
        ),
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


def test_what_is_left_out_is_not_trained(words, tmp_path, capsys):
    more = ["--iterations", "6", "--only", "table2", "--without", "cascade_mask_rcnn, mask_rcnn"]
    assert main(["paper", *words, *more, "--dry-run", "--output", str(tmp_path), *SIZE]) == 0
    printed = capsys.readouterr().out
    assert "retinanet" in printed and "mask_rcnn" not in printed
    assert "without" not in json.loads((tmp_path / "paper.json").read_text())


class Command:
    """``rdsnet paper`` in a session of its own: signals reach its trainings as Ctrl-C does."""

    def __init__(self, words):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rdsnet.cli", "paper", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )

    def wait_for(self, path):
        """Until a file is there."""
        end = time.monotonic() + 600
        while not path.is_file() and self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        assert path.is_file(), self.process.communicate(timeout=60)[0]

    def send(self, number, *, to_trainings):
        """The signal; what the command has printed."""
        (os.killpg if to_trainings else os.kill)(self.process.pid, number)
        return self.process.communicate(timeout=300)[0]


@pytest.mark.slow
def test_killed_again_and_again_and_gone_on_with_it_is_equal_to_an_undisturbed_one(words, tmp_path):
    """In a training and between two, by Ctrl-C, and by SIGKILL, of the command alone and of all."""
    only = ["--only", "table4,fig1,fig3,fig5,beyond", "--seeds", "2", "--iterations", "20"]
    folders = {name: tmp_path / name / "paper" for name in ("undisturbed", "disturbed")}
    settings = [*SIZE, "MODEL.RDSNET.MBRM.FIT.MAX_ITER", "30"]  # of a dozen kernels
    command = {name: [*words, *only, "--output", str(f), *settings] for name, f in folders.items()}
    runs = folders["disturbed"] / "runs"

    command_alone = Command(command["disturbed"])
    command_alone.wait_for(runs / "rdsnet-1" / "model_0000001.pth")
    command_alone.send(signal.SIGKILL, to_trainings=False)  # its training stops by itself

    interrupted = Command(command["disturbed"])
    interrupted.wait_for(runs / "rdsnet-1" / "model_0000011.pth")
    printed = interrupted.send(signal.SIGINT, to_trainings=True)
    assert interrupted.process.returncode == 130, printed
    assert "Interrupted; the same command goes on." in printed
    assert not (runs / "rdsnet-1" / "result.json").exists()

    between = Command(command["disturbed"])
    between.wait_for(runs / "rdsnet-2" / "output.txt")  # the first has ended, the second begins
    between.send(signal.SIGKILL, to_trainings=True)

    killed = Command(command["disturbed"])
    killed.wait_for(runs / "rdsnet-2" / "model_0000007.pth")
    killed.send(signal.SIGKILL, to_trainings=True)

    for words_ in command.values():
        assert main(["paper", *words_]) == 0
    results = {}
    for name, folder in folders.items():
        results[name] = [read_result(folder / "runs" / f"rdsnet-{seed}") for seed in (1, 2)]
    assert results["disturbed"] == results["undisturbed"]
    assert results["disturbed"][0]["fig5"].keys() >= {"4"}
    texts = [(folder / "paper.md").read_text() for folder in folders.values()]
    tables = [[line for line in text.splitlines() if "Trained" not in line] for text in texts]
    assert tables[0] == tables[1]
    for title in ("Table 4: MBRM", "Fig. 1", "Fig. 3", "Fig. 5", "Beyond the paper 2"):
        assert f"## {title}" in texts[0]

    paths = list(folders["disturbed"].glob("runs/*/result.json"))
    times = [path.stat().st_mtime_ns for path in paths]
    assert main(["paper", *command["disturbed"]]) == 0  # everything is done: nothing is done again
    assert times == [path.stat().st_mtime_ns for path in paths]


def read_result(folder):
    """All but what is of the day and the place; NaN as text, which is equal to itself."""
    result = json.loads((folder / "result.json").read_text(), parse_constant=str)
    return {key: value for key, value in result.items() if key not in ("date", "weights")}


def test_a_training_stops_when_the_command_that_started_it_is_gone():
    """Its standard input is a pipe that closes then."""
    code = (
        "import sys, time\n"
        "from rdsnet.paper import runs\n"
        "runs._stop_without_parent()\n"
        "print('begun', flush=True)\n"
        "time.sleep(float(sys.argv[1]))\n"
    )
    for seconds, close, status in (("600", True, -signal.SIGTERM), ("0", False, 0)):
        process = subprocess.Popen(
            [sys.executable, "-c", code, seconds], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        process.stdout.readline()
        if close:
            process.stdin.close()
        assert process.wait(timeout=300) == status


def test_two_processes_do_not_work_on_the_same_run(tmp_path):
    """A second one waits until the first has ended."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from rdsnet.paper import runs\n"
        "with runs._alone_in(Path(sys.argv[1])):\n"
        "    print('in', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    with open(tmp_path / "lock") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.kill()
        process.wait()
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system has taken it away
