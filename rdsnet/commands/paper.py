"""Make the paper's tables and figures again, on any data.

Trains what they need (once where several need it), fits MBRM, evaluates, and writes paper.html and
paper.md with the paper's figures beside. Every model gets the same number of iterations, decided
from --budget and the measured time of an iteration; on COCO without a budget every model has the
schedule of its config. The same command after an interruption goes on where it stopped.

Examples:
  rdsnet paper --data train.json photos/ --val val.json photos/ --budget 8 --output output/paper
  rdsnet paper --data train.json photos/ --val val.json photos/ --budget 8 --output output/paper \\
      --dry-run
  rdsnet paper --data mine/data.yaml --models lite --budget 1 --only table3,fig5 --output output/a
  rdsnet paper --data coco --models R_50 --output output/coco
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rdsnet.commands.arguments import add_config_options, add_data, positive

if TYPE_CHECKING:
    from rdsnet.paper.plan import Paper
    from rdsnet.paper.trainings import Training

# Iterations of each model that are timed.
_MEASURED = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(
        parser,
        "--data",
        "annotations of any tool and, if needed, the folder of their images, as for train; or "
        "coco: COCO 2017 in the folder DETECTRON2_DATASETS",
    )
    add_data(parser, "--val", "the same, to evaluate on (default: as for train)")
    parser.add_argument(
        "--models",
        choices=("lite", "R_50", "R_101"),
        help="the backbone of all models (default: R_101, the paper's, on coco; else lite)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--budget", type=positive(float), metavar="HOURS", help="for everything together"
    )
    length.add_argument(
        "--iterations", type=positive(int), metavar="N", help="or so many for every model"
    )
    parser.add_argument(
        "--seeds", type=positive(int), metavar="N", default=1, help="trainings of each (default: 1)"
    )
    parser.add_argument(
        "--only",
        metavar="LIST",
        help="of table1, table2, table3, table4, fig1, fig3, fig4, fig5, beyond and detectors "
        "(what the paper leaves open: by the same trainings, by more of them), by commas (default: "
        "all)",
    )
    parser.add_argument(
        "--without",
        metavar="LIST",
        help="trainings to leave out, by commas: names as --dry-run lists them, such as the "
        "slowest, cascade_mask_rcnn; the tables are made without them",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be trained, for how long, and what is done already",
    )
    add_config_options(parser)


def run(args: argparse.Namespace) -> None:
    from rdsnet.paper import document, runs
    from rdsnet.paper.comparison import write_fig_4
    from rdsnet.paper.speed import images_per_second

    paper = _planned(args)
    print(_plan_text(paper))
    if args.dry_run:
        return
    interrupted = failed = None
    try:
        runs.run_all(paper)
    except KeyboardInterrupt as error:
        interrupted = error
    except ValueError as error:
        failed = error
    done = all(runs.finished(paper, t, paper.seeds[0]) for t in paper.trainings)
    has_speed = done and {"table1", "table2"} & set(paper.tables)
    fps = images_per_second(paper) if has_speed and not interrupted else {}
    if "fig4" in paper.tables and not interrupted:
        write_fig_4(paper, paper.folder / document.PICTURES / "fig4.jpg")
    print(f"Written: {document.write(paper, fps)}")
    if interrupted:
        print("Interrupted; the same command goes on.")
    if interrupted or failed:
        raise interrupted or failed


def _planned(args: argparse.Namespace) -> Paper:
    """All decisions, made now or kept in the folder."""

    from rdsnet.paper.plan import COCO, Paper, require_coco
    from rdsnet.paper.trainings import TABLES

    if not args.data:
        raise ValueError("give --data ANNOTATIONS IMAGES, or --data coco")
    on_coco = args.data[0] == COCO
    if on_coco:
        if args.val or args.data[1]:
            raise ValueError("--data coco is train2017 and val2017: give no images and no --val")
        require_coco()
    if not (on_coco or args.budget or args.iterations):
        raise ValueError("give --budget HOURS, or --iterations N")
    tables = [word.strip() for word in args.only.split(",")] if args.only else list(TABLES)
    if unknown := [word for word in tables if word not in TABLES]:
        raise ValueError(f"--only {', '.join(unknown)}: there are {', '.join(TABLES)}")
    paper = Paper(
        folder=args.output,
        family=args.models or ("R_101" if on_coco else "lite"),
        data=list(args.data),
        val=list(args.val) if args.val else None,
        seeds=list(range(1, args.seeds + 1)),
        budget=args.budget,
        iterations=args.iterations,
        options=list(args.opts),
        tables=tables,
        without=[word.strip() for word in args.without.split(",")] if args.without else [],
    )
    if not paper.take_up():
        paper.decide_on_data()
    missing = [t for t in paper.trainings if t.name not in paper.seconds_per_iteration]
    if missing:
        print(f"Measuring an iteration of {len(missing)} models in turns ...", flush=True)
        # Of trainings that take seconds, not much longer than they do.
        number = min(_MEASURED, max(1, (args.iterations or 100) // 10))
        paper.seconds_per_iteration |= _measured(paper, missing, number)
    paper.decide_on_iterations()
    paper.keep()
    return paper


def _measured(paper: Paper, trainings: list[Training], iterations: int) -> dict[str, float]:
    """{training: seconds of an iteration}, with all that a machine has."""
    from rdsnet.training.timing import seconds_per_iteration

    with tempfile.TemporaryDirectory() as folder:
        configs = {training.name: paper.config(training, 1) for training in trainings}
        for cfg in configs.values():
            cfg.OUTPUT_DIR, cfg.DATALOADER.NUM_WORKERS = folder, 0
            cfg.SOLVER.BASE_LR = 0.0  # without the warm-up some would diverge
        return seconds_per_iteration(configs, iterations, time.perf_counter)


def _plan_text(paper: Paper) -> str:
    from tabulate import tabulate

    from rdsnet.paper import runs

    rows, total = [], 0.0
    for training, seed in paper.runs():
        hours = paper.hours(training)
        state = runs.state(paper, training, seed)
        if state != "finished":
            total += hours
        needed = ", ".join(name for name in training.needed_for if name in paper.tables)
        iterations = paper.iterations or paper.config(training, seed).SOLVER.MAX_ITER
        rows.append([training.name, seed, f"{iterations:,}", f"{hours:.2f}", needed, state])
    table = tabulate(rows, ["training", "seed", "iterations", "hours", "for", "state"])
    return f"{table}\n\n{total:.2f} hours of training are left, by the time of an iteration here."
