#!/usr/bin/env python3
"""RDSNet-lite against Mask R-CNN with the same backbone, data, crops and CPU time; what every
element of its recipe is worth; and how it should see photographs.

Every budget is the time of so many iterations of Mask R-CNN, and a training of its own, with as
many iterations as fit into it: how long they take is measured first, the models taking turns. All
are trained as they are shipped: RDSNet in bfloat16 where the processor computes in it, as by
``rdsnet train --data``, Mask R-CNN in float32. Runs that are finished are skipped, so the same
command goes on after an interruption.

    export RDSNET_DATA=...   # the folder that holds nuclei/, waste/ and kudzu/
    OMP_NUM_THREADS=1 nice python benchmarks/peers/run.py
    OMP_NUM_THREADS=1 nice python benchmarks/peers/run.py --study recipe
    OMP_NUM_THREADS=1 nice python benchmarks/peers/run.py --study views
    OMP_NUM_THREADS=1 nice python benchmarks/peers/run.py --study variation
    OMP_NUM_THREADS=1 nice python benchmarks/peers/run.py --study heads --iterations 300 \\
        --runs output/heads
    OMP_NUM_THREADS=1 nice python benchmarks/peers/run.py --study pace --iterations 250 \\
        --runs output/pace
    python benchmarks/peers/run.py --device cuda --jobs 8   # peers_cuda.md: in the time of a GPU
    python benchmarks/peers/run.py --speed        # measure seconds per iteration, and stop
    python benchmarks/peers/run.py --dry-run      # what is finished and what would run
    python benchmarks/peers/run.py --report-only  # tables and plot from finished runs

Writes peers.json, peers.md and peers.png beside this file; with --study STUDY.json and STUDY.md;
on a GPU with "_cuda" in their names.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from data import DATA_SETS
from models import HEADS, MODELS, PACE, PEERS, RECIPE, VARIATION, VIEWS, Model
from report import write_peers, write_study

if TYPE_CHECKING:
    from detectron2.engine import DefaultTrainer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Iterations of this model, whose time all others get, too.
CLOCK = "mask_rcnn"
BUDGETS = (125, 250, 500)


@dataclass(frozen=True)
class Study:
    """RDSNet-lite with one element changed: on which data, in which time, with which changes."""

    data: str
    budget: int
    models: dict[str, Model]


STUDIES = {
    "recipe": Study("nuclei", 75, RECIPE),
    "views": Study("waste", 500, VIEWS),
    "variation": Study("waste", 250, VARIATION),
    "heads": Study("nuclei", 75, HEADS),
    "pace": Study("waste", 250, PACE),
}


@dataclass(frozen=True)
class Run:
    """One training."""

    data: str
    model: str
    budget: int
    seed: int
    device: str = "cpu"

    @property
    def name(self) -> str:
        name = f"{self.data}-{self.model}-{self.budget}-{self.seed}"
        return name if self.device == "cpu" else f"{name}-{self.device}"


# ------------------------------------------------------------------------- one run


def train(run: Run, args: argparse.Namespace) -> dict:
    """Train and evaluate; the result is also written into the run's folder."""
    import torch

    from rdsnet.training.trainer import Trainer

    torch.set_num_threads(1)
    folder = Path(args.runs) / run.name
    speeds = known_speeds(run.data, args)
    iterations = args.iterations or max(10, round(run.budget * speeds[CLOCK] / speeds[run.model]))
    cfg = config(run, args, folder, iterations)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)  # the pretrained backbone
    start = time.process_time()
    trainer.train()
    spent = time.process_time() - start
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = (f"{run.data}_val",)
    with averaged(trainer):
        metrics = Trainer.test(cfg, trainer.model.eval())
    result = {
        **vars(run),
        "iterations": iterations,
        "seconds_per_iteration": None if args.iterations else speeds.get(run.model),
        "cpu_seconds_spent": round(spent, 1),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        # of convolutions; only mixed precision names it
        "precision": str(getattr(trainer._trainer, "dtype", "float32")).removeprefix("torch."),
        "backbone_lr_factor": cfg.SOLVER.BACKBONE_LR_FACTOR,
        "date": time.strftime("%Y-%m-%d"),
        "AP": {
            task: {key: metrics[task][key] for key in ("AP", "AP50", "AP75")}
            for task in ("bbox", "bbox_regressed", "segm")
            if task in metrics
        },
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def averaged(trainer: DefaultTrainer) -> AbstractContextManager:
    """Inside, the model has the weights that it is to be used with: with EMA their average."""
    from rdsnet.training.hooks import WeightAverage

    averages = [hook for hook in trainer._hooks if isinstance(hook, WeightAverage)]
    return averages[0].applied() if averages else nullcontext()


def speed_file(data: str, args: argparse.Namespace) -> Path:
    return Path(args.runs) / f"speed-{data}{suffix(args)}.json"


def suffix(args: argparse.Namespace) -> str:
    """What the names of files about another device than the CPU end in."""
    return "" if args.device == "cpu" else f"_{args.device}"


def known_speeds(data: str, args: argparse.Namespace) -> dict[str, float]:
    """{model: seconds per iteration} as far as they have been measured: of the CPU, or of the
    clock on the wall where a GPU does the work.
    """
    file = speed_file(data, args)
    return json.loads(file.read_text()) if file.is_file() else {}


def measure_speeds(data: str, args: argparse.Namespace) -> None:
    """Of the models that are asked for and those that are known, in turns, unless all are known."""
    known = known_speeds(data, args)
    wanted = {CLOCK, *args.models}
    if wanted <= set(known):
        return
    from rdsnet.training import timing

    names = [name for name in MODELS if name in {*wanted, *known}]
    import torch

    torch.set_num_threads(1)
    folder = Path(args.runs) / "speed"
    runs = {name: Run(data, name, 0, 1, args.device) for name in names}
    configs = {name: config(run, args, folder, 1000) for name, run in runs.items()}
    file = speed_file(data, args)
    file.parent.mkdir(parents=True, exist_ok=True)
    clock = {} if args.device == "cpu" else {"clock": time.perf_counter}
    file.write_text(json.dumps(timing.seconds_per_iteration(configs, **clock), indent=1) + "\n")


def config(run: Run, args: argparse.Namespace, folder: Path, iterations: int):
    """The config of a run, whose data are the same for all models."""
    from detectron2.engine import default_argument_parser

    from rdsnet.training import setup

    data_set, model = DATA_SETS[run.data], MODELS[run.model]
    parts = data_set.prepare(Path(args.data), Path(args.runs) / "data" / run.data)
    classes = len(json.loads(parts["train"][0].read_text())["categories"])
    files = [
        [f"{run.data}_{split}", str(file), str(images)] for split, (file, images) in parts.items()
    ]
    options = {
        "DATASETS.COCO_FILES": files,
        "DATASETS.TRAIN": f"('{run.data}_train',)",
        "DATASETS.TEST": "()",
        "MODEL.RETINANET.NUM_CLASSES": classes,
        "MODEL.ROI_HEADS.NUM_CLASSES": classes,
        "MODEL.DEVICE": args.device,
        **data_set.options,
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.WARMUP_ITERS": iterations // 10,
        "SOLVER.STEPS": (round(0.8 * iterations), round(0.95 * iterations)),  # of variant "steps"
        "SOLVER.CHECKPOINT_PERIOD": 1_000_000,
        # On the CPU the time of reading would go uncounted.
        "DATALOADER.NUM_WORKERS": 0 if args.device == "cpu" else 1,
        "SEED": run.seed,
        "OUTPUT_DIR": str(folder),
        **_precision(model, args.device),
        **model.options,
    }
    words = ["--config-file", str(ROOT / model.config)]
    words += [str(word) for pair in options.items() for word in pair]
    return setup(default_argument_parser().parse_args(words))


def _precision(model: Model, device: str) -> dict[str, object]:
    """RDSNet's as ``rdsnet train --data`` chooses it."""
    from rdsnet.modeling.precision import chosen_precision

    if model.config != PEERS[CLOCK].config:
        return {"SOLVER.AMP.ENABLED": chosen_precision("auto", device)[0] == "bf16"}
    return {}


def milliseconds_per_image(runs: list[Run], args: argparse.Namespace, images: int = 20) -> dict:
    """{model: median milliseconds} on validation images of one data set, one thread, the models
    taking turns on each: from the image to boxes and masks of the image's size.
    """
    import torch
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.data import DatasetCatalog
    from detectron2.modeling import build_model

    from rdsnet.data.mapper import build_mapper

    torch.set_num_threads(1)
    models = {}
    for run in runs:
        folder = Path(args.runs) / run.name
        cfg = config(run, args, folder, 1)
        models[run.model] = build_model(cfg).eval()
        DetectionCheckpointer(models[run.model]).load(str(folder / "model_final.pth"))
    times: dict[str, list[float]] = {name: [] for name in models}
    mapper = build_mapper(cfg, is_train=False)
    with torch.no_grad():
        for described in DatasetCatalog.get(f"{runs[0].data}_val")[:images]:
            inputs = [mapper(described)]
            for repetition in range(3):
                for name, model in models.items():
                    start = time.perf_counter()
                    model(inputs)
                    if args.device == "cuda":
                        torch.cuda.synchronize()
                    if repetition > 0:  # the first warms up
                        times[name].append(1000 * (time.perf_counter() - start))
    return {name: round(statistics.median(values), 1) for name, values in times.items()}


# --------------------------------------------------------------------- command line


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=os.environ.get("RDSNET_DATA", ""))
    parser.add_argument("--runs", default="output/peers", help="folder of the runs")
    parser.add_argument("--out", default=str(HERE), help="folder of tables and plot")
    parser.add_argument(
        "--study", choices=list(STUDIES), help="RDSNet-lite with one element changed, instead"
    )
    parser.add_argument("--sets", nargs="+", choices=list(DATA_SETS), help="default: all")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), help="default: all")
    parser.add_argument("--budgets", nargs="+", type=int, help="iterations of Mask R-CNN")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument(
        "--iterations", type=int, help="so many for every model, instead of as much time"
    )
    parser.add_argument(
        "--speed", action="store_true", help="measure seconds per iteration, and stop"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs and stop")
    parser.add_argument("--report-only", action="store_true", help="reports of finished runs")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    study = STUDIES.get(args.study)
    args.models = args.models or list(study.models if study else PEERS)
    args.sets = args.sets or ([study.data] if study else list(DATA_SETS))
    args.budgets = args.budgets or ([study.budget] if study else BUDGETS)
    return args


def launch(run: Run, args: argparse.Namespace, argv: list[str]) -> bool:
    """One run in a process of its own, its output in the run's folder; whether it went well."""
    folder = Path(args.runs) / run.name
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with open(folder / "output.txt", "w") as log:
        one = [run.data, run.model, str(run.budget), str(run.seed)]
        command = [sys.executable, __file__, *argv, "--one", *one]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=env).returncode
    took = f"{time.perf_counter() - start:.0f} s"
    print(f"{run.name}: {took if code == 0 else f'FAILED, see {log.name}'}", flush=True)
    return code == 0


def has_weights(run: Run, args: argparse.Namespace) -> bool:
    return (Path(args.runs) / run.name / "model_final.pth").is_file()


def finished(run: Run, args: argparse.Namespace) -> dict | None:
    file = Path(args.runs) / run.name / "result.json"
    if not file.is_file():
        return None
    result = json.loads(file.read_text())
    is_another = args.iterations is not None and result["iterations"] != args.iterations
    return None if is_another else result


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    if args.one:
        data, model, budget, seed = args.one
        train(Run(data, model, int(budget), int(seed), args.device), args)
        return 0
    for name in args.sets:
        if not (Path(args.data) / name).is_dir():
            raise SystemExit(
                f"'{Path(args.data) / name}' does not exist: set RDSNET_DATA to the folder that "
                "holds it, or give --data, or choose other --sets"
            )
    # Seeds last: after the first, every cell of the tables has a figure.
    wanted = [
        Run(*key, args.device)
        for seed, data, budget in product(args.seeds, args.sets, args.budgets)
        for key in ((data, model, budget, seed) for model in args.models)
    ]
    to_do = [run for run in wanted if finished(run, args) is None]
    print(f"{len(wanted) - len(to_do)} of {len(wanted)} runs are finished")
    if args.dry_run:
        print("\n".join(run.name for run in to_do))
        return 0
    if not (args.report_only or args.iterations) or args.speed:
        for name in args.sets:
            measure_speeds(name, args)
            seconds = "CPU seconds" if args.device == "cpu" else "seconds"
            print(f"{name}, {seconds} per iteration: {known_speeds(name, args)}", flush=True)
    if args.speed:
        return 0
    all_well = True
    if not args.report_only:
        with ThreadPoolExecutor(max(1, args.jobs)) as pool:
            all_well = all(list(pool.map(lambda run: launch(run, args, argv), to_do)))
    done = [run for run in wanted if finished(run, args)]
    results = [finished(run, args) for run in done]
    out = Path(args.out)
    if done and args.study:
        study = STUDIES[args.study]
        print(write_study(args.study + suffix(args), study.models, results, out))
    elif done:
        times = {}
        for name in args.sets:
            largest = {run.model: run for run in done if run.data == name}
            largest = {model: run for model, run in largest.items() if has_weights(run, args)}
            times[name] = milliseconds_per_image(list(largest.values()), args) if largest else {}
        print(write_peers(results, times, out, f"peers{suffix(args)}"))
    return 0 if all_well else 1


if __name__ == "__main__":
    sys.exit(main())
