"""Kill a training again and again and compare what becomes of it with an undisturbed one.

    python tests/reliability/interruption.py --kills 20

One process imports everything and forks a training per attempt, so that a kill costs a second.
Every attempt resumes with --resume and dies by SIGKILL: at a random moment, or (every second one)
while a checkpoint is being written. When the kills are used up the training runs to its end.
Prints a line of figures; the exit status is 1 when weights or curves differ from the undisturbed
run by a single bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import tiny
import torch

ITERATIONS = 60
OPTIONS = ("SOLVER.CHECKPOINT_PERIOD", "4")


def fork_training(output: Path, data: dict[str, str], *extra: str) -> int:
    """Start a training in a child; its output goes to ``OUTPUT_DIR/log.txt`` alone."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        errors = os.open(output.with_suffix(".stderr"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(errors, 2)
        tiny.train("--resume", *tiny.options(data, output, ITERATIONS, *OPTIONS, *extra))
        status = 0
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    finally:
        os._exit(status)


def kill_somewhere(pid: int, output: Path, rng: random.Random, while_saving: bool) -> str | None:
    """Kill the child; what it was doing, None if it had finished before."""
    begin = time.time_ns()

    def is_saving() -> bool:  # not what an earlier attempt has left
        try:
            return any(p.stat().st_mtime_ns > begin for p in output.glob("*.pth.tmp"))
        except FileNotFoundError:
            return False

    deadline = time.monotonic() + rng.uniform(0.3, 2.0)
    while time.monotonic() < deadline or (while_saving and not is_saving()):
        if os.waitpid(pid, os.WNOHANG)[0]:
            return None
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "saving" if is_saving() else "training"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", default="0", help="data-loader workers of the killed training")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    torch.set_num_threads(1)
    import rdsnet.engine  # noqa: F401  (once, for all children)

    rng, start = random.Random(args.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        data = tiny.make_data(folder / "data")
        undisturbed, killed = folder / "undisturbed", folder / "killed"
        workers = ("DATALOADER.NUM_WORKERS", args.workers)
        if os.waitpid(fork_training(undisturbed, data), 0)[1]:
            print(undisturbed.with_suffix(".stderr").read_text()[-3000:])
            return 1
        moments, restarts = [], 0
        while len(moments) < args.kills:
            pid = fork_training(killed, data, *workers)
            moment = kill_somewhere(pid, killed, rng, while_saving=len(moments) % 2 == 1)
            if moment is None:  # it had come to its end: begin a new one in the same place
                if differences(undisturbed, killed):
                    break
                restarts += 1
                killed = folder / f"killed{restarts}"
            else:
                moments.append(moment)
        status = os.waitpid(fork_training(killed, data, *workers), 0)[1]
        if status:
            print(killed.with_suffix(".stderr").read_text()[-3000:])
            return 1
        problems = differences(undisturbed, killed)
        print(
            f"{len(moments)} kills ({moments.count('saving')} while a checkpoint was written) in "
            f"{restarts + 1} trainings of {ITERATIONS} iterations, {time.monotonic() - start:.0f} "
            f"s: {'; '.join(problems) or 'weights, optimizer and curves are equal bit for bit'}"
        )
        return bool(problems)


def differences(a: Path, b: Path) -> list[str]:
    """What differs between two finished trainings."""
    left, right = (torch.load(p / "model_final.pth", weights_only=True) for p in (a, b))
    found = []
    if left["model"].keys() != right["model"].keys() or not all(
        torch.equal(v, right["model"][k]) for k, v in left["model"].items()
    ):
        found.append("the weights differ")
    states = [c["trainer"]["_trainer"]["optimizer"]["state"] for c in (left, right)]
    if not all(
        torch.equal(value, states[1][i][name])
        for i, state in states[0].items()
        for name, value in state.items()
    ):
        found.append("the optimizer differs")
    if tiny.curve(a) != tiny.curve(b):
        found.append(f"the curves differ: {tiny.curve(a)} and {tiny.curve(b)}")
    return found


if __name__ == "__main__":
    sys.exit(main())
