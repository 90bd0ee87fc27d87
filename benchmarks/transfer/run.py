#!/usr/bin/env python3
"""What a trained model is worth as a start: AP after training on few images of another data set.

Every run is `rdsnet train --data` with few images, starting from the nuclei model, from ImageNet,
or from random weights; all else is equal. Runs that are finished are skipped, so the same command
goes on after an interruption.

    export RDSNET_DATA=...   # the folder that holds kudzu/ and waste/
    OMP_NUM_THREADS=1 nice python benchmarks/transfer/run.py
    python benchmarks/transfer/run.py --dry-run      # what is finished and what would run
    python benchmarks/transfer/run.py --report-only  # table and plot from finished runs
    python benchmarks/transfer/run.py --quick        # two iterations: does it run?

Writes results.json, transfer.md and transfer.png beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from data import DATA_SETS, coco_content, few
from report import STARTS, write_reports

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Settings:
    """The same for every run."""

    iterations: int = 300
    batch: int = 4
    val_images: int | None = None  # None: all
    evaluations: int = 2  # the better model is kept


@dataclass(frozen=True)
class Run:
    """What is trained: from which start, on how many images of which data, by which seed."""

    data: str
    start: str
    images: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.data}-{self.images}-{self.start}-{self.seed}"


QUICK = Settings(iterations=2, batch=2, val_images=2, evaluations=1)
QUICK_IMAGES = (2, 3)


def run_one(run: Run, settings: Settings, folder: Path, root: Path, weights: str) -> dict:
    """Train and evaluate; the result is also written to ``folder``/result.json."""
    import torch

    from rdsnet.cli import build_parser
    from rdsnet.commands.train import use_own_data
    from rdsnet.training import run as train

    torch.set_num_threads(1)
    words = ["train", *data_words(run, settings, folder, root), "--output", str(folder / "out")]
    words += ["--iterations", str(settings.iterations), "--batch-size", str(settings.batch)]
    words += ["--weights", weights] if run.start == "nuclei" else ["--config", "lite"]
    words += ["--device", "cpu", "SEED", str(run.seed), "DATALOADER.NUM_WORKERS", "0"]
    words += ["TEST.REPORT", "False", "DATASETS.INVALID_ANNOTATIONS", "skip"]
    words += ["TEST.EVAL_PERIOD", str(-(-settings.iterations // settings.evaluations))]
    words += ["MODEL.WEIGHTS", ""] if run.start == "scratch" else []
    args = build_parser().parse_args(words)
    wall, cpu = time.perf_counter(), cpu_seconds()
    use_own_data(args)
    train(args)
    result = {
        **asdict(run),
        "settings": asdict(settings),
        "weights": digest(run.start, weights),
        "seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(cpu_seconds() - cpu, 1),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "metrics": evaluated(folder / "out" / "model_best.pth"),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def evaluated(best: Path) -> dict[str, dict[str, float]]:
    """{task: {metric: AP}} of a training's model on its validation images.

    Where nothing is detected the evaluator has no AP; here it is 0.
    """
    from rdsnet.checkpoint import load_config, load_model
    from rdsnet.training import Trainer

    cfg = load_config(str(best), ["MODEL.WEIGHTS", str(best)])
    found = Trainer.test(cfg, load_model(cfg))
    metrics = {
        task: {key: found.get(task, {}).get(key, 0.0) for key in ("AP", "AP50", "AP75")}
        for task in ("bbox", "bbox_regressed", "segm")
    }
    return {
        task: {key: 0.0 if math.isnan(value) else value for key, value in values.items()}
        for task, values in metrics.items()
    }


def data_words(run: Run, settings: Settings, folder: Path, root: Path) -> list[str]:
    """``--data`` and ``--val``; writes their two json files into ``folder``."""
    words = []
    data = DATA_SETS[run.data]
    for option, source, number, seed in (
        ("--data", data.train, run.images, run.seed),
        ("--val", data.val, settings.val_images, 0),
    ):
        annotations, images = (root / part for part in source)
        path = folder / f"{option.strip('-')}.json"
        path.write_text(
            json.dumps(few(coco_content(annotations, images, data.category), number, seed))
        )
        words += [option, str(path), str(images)]
    return words


def digest(start: str, weights: str) -> str:
    """What tells one model as a start from another; "" for the other starts.

    Raises:
        FileNotFoundError: there are no such weights.
    """
    if start != "nuclei":
        return ""
    from rdsnet.checkpoint.shipped import weights_file

    return hashlib.sha256(Path(weights_file(weights)).read_bytes()).hexdigest()[:12]


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# --------------------------------------------------------------------- command line


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = os.environ.get("RDSNET_DATA", "")
    parser.add_argument("--root", default=root, help="folder of the data sets ($RDSNET_DATA)")
    parser.add_argument("--data", nargs="+", choices=list(DATA_SETS), default=list(DATA_SETS))
    parser.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS))
    parser.add_argument("--weights", default="nuclei", help="the start 'nuclei': name or file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--iterations", type=int, default=Settings.iterations)
    parser.add_argument("--runs", default="output/transfer", help="folder of the runs")
    parser.add_argument("--out", default=str(HERE), help="folder of table and plot")
    parser.add_argument("--quick", action="store_true", help="two iterations: does it run?")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and stop")
    parser.add_argument("--report-only", action="store_true", help="reports of finished runs")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def wanted_runs(args: argparse.Namespace) -> dict[str, Run]:
    """All runs by name, a seed after the other, so that unfinished results are of all kinds."""
    runs = [
        Run(data, start, images, seed)
        for seed in (args.seeds[:1] if args.quick else args.seeds)
        for data in args.data
        for images in (QUICK_IMAGES if args.quick else DATA_SETS[data].sizes)
        for start in args.starts
    ]
    return {run.name: run for run in runs}


def finished(run: Run, folder: Path, settings: Settings, weights: str) -> dict | None:
    """The result of a run with the same settings and the same start, if there is one."""
    if not (folder / "result.json").is_file():
        return None
    result = json.loads((folder / "result.json").read_text())
    same = asdict(settings), digest(run.start, weights)
    return result if (result["settings"], result["weights"]) == same else None


def launch(run: Run, folder: Path, argv: list[str]) -> bool:
    """One run in a process of its own, its output in ``folder``/log.txt; whether it went well."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in (folder / "out").glob("*last_checkpoint"):  # of a run that was interrupted
        left.unlink()
    start = time.perf_counter()
    with open(folder / "log.txt", "w") as log:
        command = [sys.executable, __file__, *argv, "--one", run.name]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=env).returncode
    took = f"{time.perf_counter() - start:.0f} s"
    print(f"{run.name}: {took if code == 0 else f'FAILED, see {log.name}'}", flush=True)
    return code == 0


def check(args: argparse.Namespace, root: Path) -> None:
    """Raise SystemExit where data or the model to start from is missing."""
    for name in args.data:
        if not (root / DATA_SETS[name].train[0]).is_file():
            raise SystemExit(
                f"'{root / DATA_SETS[name].train[0]}' does not exist: set RDSNET_DATA to the "
                "folder that holds the data sets, give --root, or choose others with --data"
            )
    try:
        for start in args.starts:
            digest(start, args.weights)
    except OSError as error:
        raise SystemExit(f"the start 'nuclei' (--weights): {error}") from error


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    root = Path(args.root).absolute()
    settings = QUICK if args.quick else Settings(iterations=args.iterations)
    check(args, root)
    folder = Path(args.runs) / "quick" if args.quick else Path(args.runs)
    wanted = wanted_runs(args)
    if args.one:
        run_one(wanted[args.one], settings, folder / args.one, root, args.weights)
        return 0

    def result(name: str) -> dict | None:
        return finished(wanted[name], folder / name, settings, args.weights)

    to_do = [name for name in wanted if result(name) is None]
    print(f"{len(wanted) - len(to_do)} of {len(wanted)} runs are finished")
    if args.dry_run:
        print("\n".join(to_do))
        return 0
    all_well = True
    if not args.report_only:
        all_well = all([launch(wanted[name], folder / name, argv) for name in to_do])
    results = [found for name in wanted if (found := result(name))]
    if results:
        write_reports(results, Path(args.out))
        print((Path(args.out) / "transfer.md").read_text())
    return 0 if all_well else 1


if __name__ == "__main__":
    sys.exit(main())
