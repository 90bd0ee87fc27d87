"""The trainings of a paper: each in a process of its own, resumed where it was interrupted.

``runs/NAME-SEED`` has the training's own folder; ``result.json`` in it says that it is finished.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import CfgNode

from rdsnet.checkpoint import Checkpointer
from rdsnet.fitting.fit import fit_mbrm
from rdsnet.paper.analysis import analyse
from rdsnet.paper.plan import Paper
from rdsnet.paper.trainings import Training
from rdsnet.training import argument_parser, run
from rdsnet.training.trainer import Trainer

RESULT = "result.json"
# Of the other figures the first seed is shown.
_OF_EVERY_SEED = ("table4", "beyond")
_INTERRUPTED = (128 + 2, 128 + 15)  # SIGINT, SIGTERM


def finished(paper: Paper, training: Training, seed: int) -> dict | None:
    """The result of a run; None: it has not come to its end."""
    path = paper.run_folder(training, seed) / RESULT
    return json.loads(path.read_text()) if path.is_file() else None


def state(paper: Paper, training: Training, seed: int) -> str:
    """ "finished", "not begun", or where the training stands."""
    if finished(paper, training, seed):
        return "finished"
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
        if finished(paper, training, seed):
            continue
        start = time.perf_counter()
        code, log = _launch(paper, training, seed)
        if code in _INTERRUPTED:
            raise KeyboardInterrupt
        how = "done" if code == 0 else f"FAILED, see {log}"
        progress(f"{training.name}, seed {seed}: {how} ({time.perf_counter() - start:,.0f} s)")
        if code:
            failed.append(f"{training.name}, seed {seed}: {_last_line(log)} ({log})")
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
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while True:
            try:
                return process.wait(), log
            except KeyboardInterrupt:  # which the process has received, too, and answers
                continue


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


# ------------------------------------------------------------------------- one run


def run_one(paper: Paper, training: Training, seed: int) -> dict:
    """Train, fit MBRM, evaluate; the result is also written into the run's folder."""
    cfg = paper.config(training, seed)
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    _train(cfg, folder / "training.yaml")
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    mbrm = None
    if training.is_rdsnet:
        mbrm, _ = fit_mbrm(cfg)
        cfg.MODEL.WEIGHTS = str(folder / "mbrm" / "model_final.pth")
    result = {
        "name": training.name,
        "seed": seed,
        "iterations": cfg.SOLVER.MAX_ITER,
        "batch": cfg.SOLVER.IMS_PER_BATCH,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "metrics": _evaluate(cfg, training),
    }
    if training.name == "rdsnet":
        tables = paper.tables if seed == paper.seeds[0] else _OF_EVERY_SEED
        result |= analyse(cfg, mbrm, tables)
    unfinished = folder / f"{RESULT}.unfinished"
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    unfinished.replace(folder / RESULT)
    for checkpoint in folder.glob("model_[0-9]*.pth"):  # of the way: nobody needs them any more
        checkpoint.unlink()
    return result


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


def _evaluate(cfg: CfgNode, training: Training) -> dict[str, dict]:
    """{expansion of the boxes, or "None": the config's: {task: {metric: value}}}"""
    model = Trainer.build_model(cfg).eval()
    Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    results = {}
    for expand in training.test_expands:
        if hasattr(model, "test_expand"):
            model.test_expand = expand or cfg.MODEL.RDSNET.TEST_EXPAND
        results[str(expand)] = {
            task: {name: value for name, value in metrics.items() if "-" not in name}
            for task, metrics in Trainer.test(cfg, model).items()
        }
    return results


if __name__ == "__main__":
    _folder, _name, _seed, _tables = sys.argv[1:]
    _paper = Paper.read(_folder, _tables.split(","))
    (_training,) = (t for t in _paper.trainings if t.name == _name)
    run_one(_paper, _training, int(_seed))
