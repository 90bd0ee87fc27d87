#!/usr/bin/env python3
"""Object streams against each other, and the ablation of the paper's Table 3, on cell nuclei.

Every model has the same small backbone, crops, batches, iterations and optimizer; only the detector
and the masks differ. Six trainings per seed give all rows: what is expanded at inference needs no
training of its own. Runs that are finished are skipped, so the same command goes on after an
interruption.

    export RDSNET_DATA=...   # the folder that holds nuclei/
    OMP_NUM_THREADS=1 nice python benchmarks/streams/run.py --jobs 2
    python benchmarks/streams/run.py --dry-run      # what is finished and what would run
    python benchmarks/streams/run.py --report-only  # tables and plot from finished runs

Writes results.json, comparison.md, ablation.md and streams.png beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from report import write_reports
from trainings import COMPARED, TRAININGS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Settings:
    """The same for every run. Only images of at most ``max_side`` px are used: they are most of
    the set, of one magnification, and quickly evaluated.
    """

    data: str
    max_iter: int = 500
    batch: int = 4
    crop: int = 128
    max_side: int = 320
    val_images: int = 1000


QUICK = {"max_iter": 2, "batch": 2, "crop": 64, "val_images": 2}


# ------------------------------------------------------------------------- one run


def run_one(name: str, seed: int, settings: Settings, folder: Path) -> dict:
    """Train and evaluate; the result is also written to ``folder``/result.json."""
    import torch
    from detectron2.engine import default_argument_parser

    from rdsnet.training import setup
    from rdsnet.training.trainer import Trainer

    torch.set_num_threads(1)
    training = TRAININGS[name]
    arguments = ["--config-file", str(ROOT / training.config)]
    arguments += [*options(settings, folder), "SEED", str(seed)]
    cfg = setup(default_argument_parser().parse_args(arguments))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)  # pretrained weights, where the config has some
    wall, cpu = time.perf_counter(), cpu_seconds()
    trainer.train()
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    torch.save({"model": trainer.model.state_dict()}, folder / "model_final.pth")

    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = ("streams_val",)
    result = {
        "name": name,
        "seed": seed,
        "settings": asdict(settings),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "training_seconds": round(wall, 1),
        "training_cpu_seconds": round(cpu, 1),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "evaluations": {},
    }
    for expand in training.test_expands:
        trainer.model.eval().test_expand = expand
        metrics = Trainer.test(cfg, trainer.model)
        result["evaluations"][str(expand)] = {
            task: {key: metrics[task][key] for key in ("AP", "AP50", "AP75")}
            for task in ("bbox", "bbox_regressed", "segm")
        }
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def options(settings: Settings, folder: Path) -> list[str]:
    """Config options that all runs share; writes the two json files of the data into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    data = Path(settings.data)
    files = []
    for split, limit in (("train", None), ("val", settings.val_images)):
        path = folder / f"{split}.json"
        write_subset(data / f"{split}.json", path, settings.max_side, limit)
        files.append([f"streams_{split}", str(path), str(data / "images")])
    first, second = (round(settings.max_iter * share) for share in (0.8, 0.95))
    steps = (first, second) if settings.max_iter >= 20 else ()
    return [
        *("DATASETS.COCO_FILES", str(files), "DATASETS.TRAIN", "('streams_train',)"),
        *("DATASETS.TEST", "()", "MODEL.RETINANET.NUM_CLASSES", "-1", "MODEL.DEVICE", "cpu"),
        *("INPUT.CROP.SIZE", f"[{settings.crop}, {settings.crop}]"),
        *("SOLVER.IMS_PER_BATCH", str(settings.batch), "SOLVER.MAX_ITER", str(settings.max_iter)),
        *("SOLVER.STEPS", str(steps), "SOLVER.WARMUP_ITERS", str(settings.max_iter // 10)),
        *("SOLVER.CHECKPOINT_PERIOD", "1000000", "DATALOADER.NUM_WORKERS", "0"),
        *("OUTPUT_DIR", str(folder)),
    ]


def write_subset(source: Path, target: Path, max_side: int, limit: int | None) -> None:
    """Copy a COCO json with the images whose sides are at most ``max_side`` px, the first ones."""
    content = json.loads(source.read_text())
    images = [i for i in content["images"] if max(i["height"], i["width"]) <= max_side][:limit]
    ids = {image["id"] for image in images}
    annotations = [a for a in content["annotations"] if a["image_id"] in ids]
    target.write_text(json.dumps({**content, "images": images, "annotations": annotations}))


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def seconds_per_image(runs: Path, settings: Settings, seed: int, images: int = 20) -> dict:
    """{name: milliseconds}: median over validation images, the models taking turns on each.

    One thread, from the image to masks and refined boxes in run-length form.
    """
    import torch
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    from rdsnet.checkpoint import load_config
    from rdsnet.data.images import read_image

    torch.set_num_threads(1)
    models = {}
    folders = {name: runs / f"{name}-{seed}" for name, _ in COMPARED}
    folders = {name: folder for name, folder in folders.items() if finished(folder, settings)}
    for name, folder in folders.items():
        keys = ["MODEL.RDSNET.DENSE_MASKS", "False", "DATASETS.COCO_FILES", "[]"]
        keys += ["MODEL.RDSNET.TEST_EXPAND", str(dict(COMPARED)[name])]
        models[name] = build_model(load_config(str(folder / "config.yaml"), keys)).eval()
        DetectionCheckpointer(models[name]).load(str(folder / "model_final.pth"))
    if not models:
        return {}
    times: dict[str, list[float]] = {name: [] for name in models}
    content = json.loads((next(iter(folders.values())) / "val.json").read_text())
    with torch.no_grad():
        for info in content["images"][:images]:
            image = read_image(str(Path(settings.data) / "images" / info["file_name"]), "BGR")
            image = torch.from_numpy(image.transpose(2, 0, 1).copy())
            for repetition in range(3):
                for name, model in models.items():
                    start = time.perf_counter()
                    model([{"image": image}])[0]["instances"].pred_masks.rle()
                    if repetition > 0:  # the first warms up
                        times[name].append(1000 * (time.perf_counter() - start))
    return {name: round(statistics.median(values), 1) for name, values in times.items()}


# --------------------------------------------------------------------- command line


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = Path(os.environ.get("RDSNET_DATA", "")) / "nuclei"
    parser.add_argument("--data", default=str(data), help="train.json, val.json and images/")
    parser.add_argument("--runs", default="output/streams", help="folder of the runs")
    parser.add_argument("--out", default=str(HERE), help="folder of tables and plot")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", choices=list(TRAININGS), default=list(TRAININGS))
    parser.add_argument("--max-iter", type=int, default=Settings.max_iter)
    parser.add_argument("--quick", action="store_true", help="two iterations: does it run?")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and stop")
    parser.add_argument("--report-only", action="store_true", help="reports of finished runs")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def finished(folder: Path, settings: Settings) -> dict | None:
    """The result of a run with the same settings, if there is one."""
    if not (folder / "result.json").is_file():
        return None
    result = json.loads((folder / "result.json").read_text())
    return result if result["settings"] == asdict(settings) else None


def launch(name: str, seed: int, folder: Path, argv: list[str]) -> bool:
    """One run in a process of its own, its output in ``folder``/log.txt; whether it went well."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with open(folder / "log.txt", "w") as log:
        command = [sys.executable, __file__, *argv, "--one", name, str(seed)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=env).returncode
    took = f"{time.perf_counter() - start:.0f} s"
    print(f"{name} seed {seed}: {took if code == 0 else f'FAILED, see {log.name}'}", flush=True)
    return code == 0


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    changes = QUICK if args.quick else {"max_iter": args.max_iter}
    settings = Settings(str(Path(args.data).resolve()), **changes)
    if not (Path(settings.data) / "train.json").is_file():
        raise SystemExit(
            f"'{settings.data}/train.json' does not exist: set RDSNET_DATA to the folder that "
            "holds nuclei/, or give --data"
        )
    runs = Path(args.runs)
    if args.one:
        name, seed = args.one[0], int(args.one[1])
        run_one(name, seed, settings, runs / f"{name}-{seed}")
        return 0
    wanted = {(n, s): runs / f"{n}-{s}" for s in args.seeds for n in args.only}
    to_do = {key: f for key, f in wanted.items() if finished(f, settings) is None}
    print(f"{len(wanted) - len(to_do)} of {len(wanted)} runs are finished")
    if args.dry_run:
        for name, seed in to_do:
            print(f"{name} seed {seed}: {TRAININGS[name].config}")
        return 0
    all_well = True
    if not args.report_only:
        with ThreadPoolExecutor(args.jobs) as pool:
            jobs = [pool.submit(launch, *key, folder, argv) for key, folder in to_do.items()]
            all_well = all([job.result() for job in jobs])
    results = [r for folder in wanted.values() if (r := finished(folder, settings))]
    if results:
        milliseconds = seconds_per_image(runs, settings, args.seeds[0])
        write_reports(results, milliseconds, Path(args.out))
        print((Path(args.out) / "comparison.md").read_text())
        print((Path(args.out) / "ablation.md").read_text())
    return 0 if all_well else 1


if __name__ == "__main__":
    sys.exit(main())
