"""Kill a training again and again and compare what becomes of it with an undisturbed one.

    python tests/reliability/interruption.py --kills 20 [KEY VALUE ...]

One process imports everything and forks a training per attempt, so that a kill costs a second.
Every attempt resumes with --resume and dies by SIGKILL: at a random moment, or (every second one)
while a checkpoint is being written. When the kills are used up the training runs to its end.
It averages its weights (SOLVER.EMA), is evaluated on its way and keeps the best model. Config
options at the end of the command line change it. Prints a line of figures; the exit status is 1
when the last checkpoint, the best model or a curve differs from the undisturbed run's by a bit.
"""

from __future__ import annotations

import argparse
import json
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
OPTIONS = (
    *("SOLVER.CHECKPOINT_PERIOD", "4", "SOLVER.EMA.ENABLED", "True"),
    *("DATASETS.TEST", "('tiny_val',)", "TEST.EVAL_PERIOD", "15", "TEST.BEST_METRIC", "bbox/AP"),
    *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),  # so few iterations give low scores
)


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
    parser.add_argument("options", nargs="*", metavar="KEY VALUE", help="config options")
    args = parser.parse_args()
    torch.set_num_threads(1)
    import rdsnet.training  # noqa: F401  (once, for all children)

    rng, start = random.Random(args.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        data = tiny.make_data(folder / "data")
        undisturbed, killed = folder / "undisturbed", folder / "killed"
        options = ("DATALOADER.NUM_WORKERS", args.workers, *args.options)
        if os.waitpid(fork_training(undisturbed, data, *args.options), 0)[1]:
            print(undisturbed.with_suffix(".stderr").read_text()[-3000:])
            return 1
        moments, restarts = [], 0
        while len(moments) < args.kills:
            pid = fork_training(killed, data, *options)
            moment = kill_somewhere(pid, killed, rng, while_saving=len(moments) % 2 == 1)
            if moment is None:  # it had come to its end: begin a new one in the same place
                if differences(undisturbed, killed):
                    break
                restarts += 1
                killed = folder / f"killed{restarts}"
            else:
                moments.append(moment)
        status = os.waitpid(fork_training(killed, data, *options), 0)[1]
        if status:
            print(killed.with_suffix(".stderr").read_text()[-3000:])
            return 1
        problems = differences(undisturbed, killed)
        print(
            f"{len(moments)} kills ({moments.count('saving')} while a checkpoint was written) in "
            f"{restarts + 1} trainings of {ITERATIONS} iterations, {time.monotonic() - start:.0f} "
            f"s: {'; '.join(problems) or 'checkpoint, best model and curves are equal bit for bit'}"
        )
        return bool(problems)


def differences(a: Path, b: Path) -> list[str]:
    """What differs between two finished trainings."""
    last, best = (
        [torch.load(p / name, weights_only=True) for p in (a, b)]
        for name in ("model_final.pth", "model_best.pth")
    )
    parts = {
        "the weights": [c["model"] for c in last],
        "their average": [c["ema"] for c in last],
        "optimizer": [c["trainer"]["_trainer"] for c in last],
        "learning rate": [c["trainer"]["hooks"]["LRScheduler"] for c in last],
        "place in the data": [c["trainer"]["data_loader"] for c in last],
        # Without its description, which names the output folder.
        "the best model": [(c["model"], c["best"]) for c in best],
        # As text: NaN, where an average precision has no objects, is equal to itself.
        "the curves": [json.dumps(tiny.curve(p), sort_keys=True) for p in (a, b)],
    }
    return [f"{name} differs" for name, (left, right) in parts.items() if not same(left, right)]


def same(a: object, b: object) -> bool:
    """Whether two contents of a checkpoint are equal, tensors bit for bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


if __name__ == "__main__":
    sys.exit(main())
