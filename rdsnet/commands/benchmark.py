"""Measure speed and memory: of the mask path, and of whole models side by side.

--mask-path compares a straightforward implementation, the PyTorch definition and the compiled
operators on made-up scenes; --models compares RDSNet with RetinaNet and Mask R-CNN of the same
backbone, a ResNet and the lite one, with random weights, and on a CPU also the model nuclei with
its exported files, and 'rdsnet predict' with the model alone; --goals holds times of whole models
on one thread of a CPU against what this project wants to reach. What is compared takes turns in one
process. Tables, plots and json go to --output. On a CPU close everything else first; with default
settings it takes minutes.

Examples:
  rdsnet benchmark --mask-path --output output/mask_path
  rdsnet benchmark --models --depth 50 --size 800 --output output/models
  rdsnet benchmark --models --output output/no_norm MODEL.RETINANET.NORM ""
  rdsnet benchmark --goals --rounds 2 --output output/goals
  rdsnet benchmark --mask-path --models --quick --output output/quick
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to measure, at least one")
    what.add_argument("--mask-path", action="store_true", help="correlation to masks and boxes")
    what.add_argument("--models", action="store_true", help="RDSNet, RetinaNet, Mask R-CNN")
    what.add_argument("--goals", action="store_true", help="speed of whole models beside the goals")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for the results"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small sizes: a minute or two, to see that everything works",
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", metavar="N", help="default: 1 and all cores"
    )
    path = parser.add_argument_group("--mask-path")
    path.add_argument("--objects", type=int, nargs="+", metavar="N", help="default: 1 10 100 300")
    path.add_argument("--sizes", type=int, nargs="+", metavar="PX", help="default: 400 800 1600")
    path.add_argument(
        "--seconds", type=float, default=4, help="per combination, 3 rounds at least (default: 4)"
    )
    path.add_argument(
        "--memory-limit-gb",
        type=float,
        default=4,
        metavar="GB",
        help="leave the straightforward implementation out where it would need more (default: 4)",
    )
    models = parser.add_argument_group("--models (--rounds: --goals, too)")
    models.add_argument("--depth", type=int, choices=(50, 101), default=50, help="of the ResNet")
    models.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    models.add_argument(
        "--size",
        type=int,
        default=800,
        metavar="PX",
        help="shorter side (default: 800; of the lite backbone at most 512)",
    )
    models.add_argument(
        "--images", type=int, default=1, metavar="N", help="images per batch (default: 1)"
    )
    models.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="how often each model runs (default: 3)"
    )
    models.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config options of RDSNet on a ResNet and of the RetinaNet beside it; with some, the "
        "lite backbone and the model nuclei are left out",
    )


def run(args: argparse.Namespace) -> None:
    import torch

    from rdsnet.benchmark import measure

    if not (args.mask_path or args.models or args.goals):
        raise ValueError("nothing to measure: give --mask-path, --models or both, or --goals")
    if args.goals and args.device != "cpu":
        raise ValueError(f"--goals are about CPUs, not about --device {args.device}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU ('rdsnet doctor' says more)")
    for name in ("threads", "objects", "sizes", "size", "images", "rounds", "seconds"):
        values = getattr(args, name)
        if values is not None and min(values if isinstance(values, list) else [values]) <= 0:
            raise ValueError(f"--{name} must be positive, got {values}")
    if args.threads is None:
        # A GPU does its work whatever the number of threads.
        args.threads = [1] if args.device == "cuda" else sorted({1, measure.cpu_count()})
    if args.mask_path:
        _mask_path(args)
    if args.models:
        _models(args)
    if args.goals:
        _goals(args)


def _mask_path(args: argparse.Namespace) -> None:
    from rdsnet.benchmark import lazy, mask_path, report
    from rdsnet.benchmark.scene import make_scene

    plan = mask_path.Plan(
        args.objects or ((1, 5) if args.quick else (1, 10, 100, 300)),
        args.sizes or ((96, 128) if args.quick else (400, 800, 1600)),
        args.threads,
        0.0 if args.quick else args.seconds,
        (1, 1) if args.quick else (3, 15),
        args.memory_limit_gb,
    )
    results = mask_path.run(plan, args.device)
    size, objects = sorted(plan.sizes)[len(plan.sizes) // 2], min(max(plan.objects), 100)
    results["agreement"] = mask_path.agreement(make_scene(objects, size, args.device))
    channels = 32 if args.quick else 256
    results["lazy_convolution"] = lazy.run(
        size, channels, objects, plan.thread_counts, args.device, plan.seconds, plan.rounds
    )
    text = report.mask_path_text(results)
    report.write(results, args.output, "mask_path", text)
    report.plot_mask_path(results, args.output / "mask_path.png")
    print(f"\n{text}\n\nWritten to {args.output}")


def _models(args: argparse.Namespace) -> None:
    from rdsnet.benchmark import models, report

    settings = models.Settings(
        args.device,
        args.dtype,
        args.depth,
        128 if args.quick else args.size,
        args.images,
        max(args.threads),
        1 if args.quick else args.rounds,
        args.opts,
    )
    results = models.run(settings)
    _write_models(results, args.output)
    if args.device == "cpu" and not args.opts:
        from rdsnet.benchmark import in_use

        height, images = (128, 2) if args.quick else (520, 60)
        files = list(in_use.FILES)[:1] if args.quick else list(in_use.FILES)
        with TemporaryDirectory(prefix="rdsnet-benchmark-") as folder:
            size = (height, height * 4 // 3)
            results["in_use"] = in_use.run(
                Path(folder), size, images, settings.rounds, settings.threads, files
            )
        _write_models(results, args.output)
    print(f"\n{report.models_text(results)}\n\nWritten to {args.output}")


def _write_models(results: dict, output: Path) -> None:
    from rdsnet.benchmark import report

    report.write(results, output, "models", report.models_text(results))
    report.plot_models(results, output / "models.png")


def _goals(args: argparse.Namespace) -> None:
    from rdsnet.benchmark import goals, report

    sizes = (128, 128) if args.quick else (800, 512)
    results = goals.run(*sizes, 1 if args.quick else args.rounds)
    text = report.goals_text(results)
    report.write(results, args.output, "goals", text)
    print(f"\n{text}\n\nWritten to {args.output}")
