"""The trainings of a paper: each in a process of its own, resumed where it was interrupted.

``runs/NAME-SEED`` has the training's own folder. ``result.json`` in it says that the model is
trained and evaluated, and what it was analysed for; ``evaluation.yaml`` is the config with which
``rdsnet eval --config-file`` gives the same APs again.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.config import CfgNode

from rdsnet.checkpoint import Checkpointer, read_checkpoint
from rdsnet.fitting.fit import build_mbrm, fit_mbrm
from rdsnet.fitting.profiles import NothingFound
from rdsnet.modeling import MBRM, inference_precision, prepare_for_inference
from rdsnet.paper.analysis import ANALYSES, analyse
from rdsnet.paper.plan import Paper
from rdsnet.paper.trainings import Training
from rdsnet.training import argument_parser, run
from rdsnet.training.trainer import Trainer

RESULT, EVALUATION = "result.json", "evaluation.yaml"
# Of the other figures the first seed is shown.
_OF_EVERY_SEED = ("table4", "beyond")
# Exit statuses of a training that a signal has stopped, and of Python where one ends it.
_STOPPED = (signal.SIGINT, signal.SIGTERM)
_INTERRUPTED = {code for number in _STOPPED for code in (128 + number, -number)}


def finished(paper: Paper, training: Training, seed: int) -> dict | None:
    """The result of a run; None: it is not trained and evaluated."""
    path = paper.run_folder(training, seed) / RESULT
    return json.loads(path.read_text()) if path.is_file() else None


def missing_analyses(paper: Paper, training: Training, seed: int) -> list[str]:
    """Tables and figures that this command asks for and that a run's result does not have."""
    if training.name != "rdsnet":
        return []
    done = (finished(paper, training, seed) or {}).get("analysed", [])
    first = seed == paper.seeds[0]
    shown = [name for name in ANALYSES if name in paper.tables and name not in done]
    return [name for name in shown if first or name in _OF_EVERY_SEED]


def is_complete(paper: Paper, training: Training, seed: int) -> bool:
    """Whether there is nothing left to do."""
    return bool(finished(paper, training, seed)) and not missing_analyses(paper, training, seed)


def state(paper: Paper, training: Training, seed: int) -> str:
    """ "finished", "not begun", or where the training stands."""
    if finished(paper, training, seed):
        missing = missing_analyses(paper, training, seed)
        return f"trained, without {', '.join(missing)}" if missing else "finished"
    last = paper.run_folder(training, seed) / "last_checkpoint"
    if not last.is_file():
        return "not begun"
    name = Path(last.read_text().strip()).stem
    if name == "model_final":
        return "trained, to be evaluated"
    return f"trained to iteration {int(name.removeprefix('model_')) + 1}"


def run_all(paper: Paper, progress: Callable[[str], None] = print) -> None:
    """Do what is left of all runs, one after the other.

    Raises:
        KeyboardInterrupt: a run was interrupted; its checkpoint is written.
        ValueError: runs have failed. The others are done.
    """
    failed = []
    for training, seed in paper.runs():
        if is_complete(paper, training, seed):
            continue
        start = time.perf_counter()
        code, log = _launch(paper, training, seed)
        if code in _INTERRUPTED:
            raise KeyboardInterrupt
        how = "done" if code == 0 else f"FAILED, see {log}"
        progress(f"{training.name}, seed {seed}: {how} ({time.perf_counter() - start:,.0f} s)")
        if code:
            why = _killed(code) if code < 0 else _last_line(log)
            failed.append(f"{training.name}, seed {seed}: {why} ({log})")
    if failed:
        raise ValueError(f"{len(failed)} trainings failed:\n" + "\n".join(failed))


def _launch(paper: Paper, training: Training, seed: int) -> tuple[int, Path]:
    """Exit status and log of a run in a process of its own."""
    folder = paper.run_folder(training, seed)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "output.txt"
    words = [str(paper.folder), training.name, str(seed), ",".join(paper.tables)]
    command = [sys.executable, "-m", __name__, *words]
    with open(log, "a") as output:
        # The pipe closes when this process ends, however it does: see _stop_without_parent.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
        )
        while True:
            try:
                return process.wait(), log
            except KeyboardInterrupt:  # which the process has received, too, and answers
                continue


def _killed(code: int) -> str:
    """What a negative exit status means."""
    name = signal.Signals(-code).name
    if name == "SIGKILL":
        return "killed (SIGKILL): the machine may have run out of memory"
    return f"ended by {name}"


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


# ------------------------------------------------------------------------- one run


def run_one(paper: Paper, training: Training, seed: int) -> dict:
    """Train, fit MBRM, evaluate, analyse: what is left of it.

    Returns:
        The result, which is also written into the run's folder.
    """
    cfg = paper.config(training, seed)
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder):
        result = finished(paper, training, seed) or _trained(cfg, training, seed)
        if missing := missing_analyses(paper, training, seed):
            cfg.MODEL.WEIGHTS = result["weights"]
            result |= analyse(cfg, _kernel(cfg), missing)
            result["analysed"] = [*result.get("analysed", []), *missing]
            _keep(result, folder)
    return result


def _trained(cfg: CfgNode, training: Training, seed: int) -> dict:
    """The result without analyses."""
    folder = Path(cfg.OUTPUT_DIR)
    _train(cfg, folder / "training.yaml")
    cfg.MODEL.WEIGHTS = str(folder.absolute() / "model_final.pth")
    not_fitted = None
    if training.is_rdsnet:
        try:
            fit_mbrm(cfg)
            cfg.MODEL.WEIGHTS = str(folder.absolute() / "mbrm" / "model_final.pth")
        except NothingFound as error:  # a model of few iterations: its figures are still figures
            not_fitted = str(error)
    _write_evaluation_config(cfg, folder)
    result = {
        "name": training.name,
        "seed": seed,
        "iterations": cfg.SOLVER.MAX_ITER,
        "batch": cfg.SOLVER.IMS_PER_BATCH,
        "torch": torch.__version__,
        "machine": _machine(),
        "date": time.strftime("%Y-%m-%d"),
        "weights": cfg.MODEL.WEIGHTS,
        "kernel_not_fitted": not_fitted,
        "metrics": _evaluate(cfg, training),
    }
    _keep(result, folder)
    for checkpoint in folder.glob("model_[0-9]*.pth"):  # of the way: nobody needs them any more
        checkpoint.unlink()
    return result


def _machine() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{platform.machine()}, {os.cpu_count()} cores, no GPU"


def _keep(result: dict, folder: Path) -> None:
    unfinished = folder / f"{RESULT}.unfinished"
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    unfinished.replace(folder / RESULT)


def _train(cfg: CfgNode, file: Path) -> None:
    """By the command for any config, which resumes; without evaluations on the way."""
    if (file.parent / "model_final.pth").is_file():
        return
    cfg = cfg.clone()
    cfg.DATASETS.TEST = ()
    file.write_text(cfg.dump())
    words = ["--config-file", str(file), "--resume"]
    if cfg.MODEL.DEVICE == "cuda":
        words += ["--num-gpus", str(torch.cuda.device_count())]
    run(argument_parser().parse_args(words))


def _kernel(cfg: CfgNode) -> MBRM:
    """MBRM as it is in ``MODEL.WEIGHTS``; where it was not fitted, with the published kernel."""
    mbrm = build_mbrm(cfg)
    weights = read_checkpoint(cfg.MODEL.WEIGHTS)["model"]
    own = {name.removeprefix("mbrm."): w for name, w in weights.items() if name[:5] == "mbrm."}
    mbrm.load_state_dict({name: torch.as_tensor(w) for name, w in own.items()})
    return mbrm


def _write_evaluation_config(cfg: CfgNode, folder: Path) -> None:
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(folder / "evaluation")
    (folder / EVALUATION).write_text(cfg.dump())


def _evaluate(cfg: CfgNode, training: Training) -> dict[str, dict]:
    """As ``rdsnet eval``, with every expansion of the boxes.

    Returns:
        {expansion, or "None": the config's: {task: {metric: value}}}
    """
    model = Trainer.build_model(cfg).eval()
    Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    model = prepare_for_inference(model)
    results = {}
    for expand in training.test_expands:
        if hasattr(model, "test_expand"):
            model.test_expand = expand or cfg.MODEL.RDSNET.TEST_EXPAND
        with inference_precision(cfg):
            tasks = Trainer.test(cfg, model)
        results[str(expand)] = {
            task: {name: value for name, value in metrics.items() if "-" not in name}
            for task, metrics in tasks.items()
        }
    return results


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process works on the same run.

    One whose parent was killed is still writing its last checkpoint when the command is given
    again. The system takes the lock away when its owner ends, however that happens.
    """
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _stop_without_parent() -> None:
    """End this process as SIGTERM does, with a checkpoint, when the one that started it is gone."""

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)  # blocks until the pipe is closed
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    _stop_without_parent()
    _folder, _name, _seed, _tables = sys.argv[1:]
    _paper = Paper.read(_folder, _tables.split(","))
    (_training,) = (t for t in _paper.trainings if t.name == _name)
    run_one(_paper, _training, int(_seed))
