#!/usr/bin/env python3
"""What showing a rare class more often gains: `rdsnet train --data` with and without it.

Nuclei of at most 320 px in two classes: on dark ground (254 images) and on bright ground, stained,
of which training has only so many (`--rare`). The other images of the rare class are validation
images. Every seed draws other ones; both trainings of a seed see the same images, so their
difference is paired. Runs that are finished are skipped.

    export RDSNET_DATA=...   # the folder that holds nuclei/
    OMP_NUM_THREADS=1 nice python benchmarks/rare/run.py

Writes rare.json and rare.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
CLASSES = ("nucleus on dark ground", "stained nucleus")
SAMPLERS = {"as often": "TrainingSampler", "more often": ""}  # "": as train --data chooses
LARGEST = 320  # px
CROP = 128  # px, in training
BRIGHT = 100  # mean of 0..255


def split(root: Path, rare: int, seed: int) -> tuple[dict, dict]:
    """COCO contents: training with ``rare`` images of the second class, and validation."""
    contents = [json.loads((root / f"{part}.json").read_text()) for part in ("train", "val")]
    images: tuple[list, list] = ([], [])  # of training, of validation
    kinds: dict[tuple[int, int], int] = {}
    for part, content in enumerate(contents):
        small = [i for i in content["images"] if max(i["width"], i["height"]) <= LARGEST]
        for image in small:
            with Image.open(root / "images" / image["file_name"]) as picture:
                kinds[part, image["id"]] = int(np.asarray(picture.convert("L")).mean() > BRIGHT)
        stained = [i for i in small if kinds[part, i["id"]]]
        images[part].extend(i for i in small if not kinds[part, i["id"]])
        kept = rare if part == 0 else 0
        order = np.random.default_rng(seed).permutation(len(stained))
        images[0].extend({**stained[k], "part": part} for k in order[:kept])
        images[1].extend({**stained[k], "part": part} for k in order[kept:])
    return tuple(_content(contents, chosen, part, kinds) for part, chosen in enumerate(images))


def _content(contents: list[dict], images: list[dict], part: int, kinds: dict) -> dict:
    """Images and their objects, numbered anew: those of two files have the same numbers."""
    objects: dict[tuple[int, int], list] = {}
    for source, content in enumerate(contents):
        for annotation in content["annotations"]:
            objects.setdefault((source, annotation["image_id"]), []).append(annotation)
    coco: dict[str, list] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)],
    }
    for number, image in enumerate(images, start=1):
        source = image.get("part", part), image["id"]
        keys = ("file_name", "width", "height")
        coco["images"].append({"id": number, **{key: image[key] for key in keys}})
        for annotation in objects.get(source, []):
            new = {"id": len(coco["annotations"]) + 1, "image_id": number}
            coco["annotations"].append({**annotation, **new, "category_id": kinds[source] + 1})
    return coco


def run_one(args: argparse.Namespace, sampler: str, seed: int, folder: Path) -> None:
    """Train and evaluate; ``folder``/result.json has AP of each class."""
    import torch

    from rdsnet.checkpoint import load_config, load_model
    from rdsnet.checkpoint.atomic import write_atomically
    from rdsnet.cli import build_parser
    from rdsnet.commands.train import use_own_data
    from rdsnet.training import Trainer
    from rdsnet.training import run as train

    torch.set_num_threads(1)
    root = Path(args.root) / "nuclei"
    words = ["train"]
    for option, content in zip(("data", "val"), split(root, args.rare, seed), strict=True):
        path = folder / f"{option}.json"
        path.write_text(json.dumps(content))
        words += [f"--{option}", str(path), str(root / "images")]
    words += ["--output", str(folder / "out"), "--device", "cpu", "--config", "lite"]
    words += ["--iterations", str(args.iterations), "--batch-size", "4", "SEED", str(seed)]
    words += ["TEST.REPORT", "False", "DATALOADER.NUM_WORKERS", "0", "TEST.EVAL_PERIOD", "0"]
    words += ["INPUT.MIN_SIZE_TRAIN", "(0,)", "INPUT.MIN_SIZE_TEST", "0"]  # their own
    words += ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "absolute"]
    words += ["INPUT.CROP.SIZE", f"[{CROP}, {CROP}]", "MODEL.RDSNET.MBRM.FIT.AFTER_TRAINING"]
    words += ["False", "MODEL.RDSNET.FIT_MASK_THRESHOLD", "False"]
    words += ["MODEL.RDSNET.FIT_SCORE_THRESHOLDS", "False"]
    words += ["DATALOADER.SAMPLER_TRAIN", sampler] if sampler else []
    start = time.perf_counter()
    parsed = build_parser().parse_args(words)
    use_own_data(parsed)
    train(parsed)
    seconds = time.perf_counter() - start
    weights = str(folder / "out" / "model_final.pth")
    cfg = load_config(weights, ["MODEL.WEIGHTS", weights])
    found = Trainer.test(cfg, load_model(cfg))
    result = {
        "iterations": args.iterations,
        "rare": args.rare,
        "sampler": cfg.DATALOADER.SAMPLER_TRAIN,
        "seconds": round(seconds, 1),
        "date": time.strftime("%Y-%m-%d"),
        "AP": {
            task: {name: found[task][f"AP-{name}"] for name in CLASSES} for task in ("bbox", "segm")
        },
    }
    text = json.dumps(result, indent=1) + "\n"
    write_atomically(folder / "result.json", lambda file: file.write(text.encode()))


def table(results: dict[str, dict], args: argparse.Namespace) -> str:
    """The report: means over seeds, and paired gains with their standard errors."""
    seeds = [s for s in args.seeds if all(f"{arm}-{s}" in results for arm in SAMPLERS)]
    rows = ["| | " + " | ".join(f"{t} AP, {c}" for c in CLASSES for t in ("box", "mask")) + " |"]
    rows.append("| --- |" + " --- |" * 4)

    def values(arm: str) -> np.ndarray:  # (seeds, 4)
        found = [results[f"{arm}-{seed}"]["AP"] for seed in seeds]
        return np.array([[f[t][c] for c in CLASSES for t in ("bbox", "segm")] for f in found])

    def cells(numbers: np.ndarray, sign: str = "") -> str:
        error = numbers.std(0, ddof=1) / math.sqrt(len(seeds)) if len(seeds) > 1 else [math.nan] * 4
        pairs = zip(numbers.mean(0), error, strict=True)
        return " | ".join(f"{mean:{sign}.1f} ± {se:.1f}" for mean, se in pairs)

    often, more = (values(arm) for arm in SAMPLERS)
    rows.append(f"| images with the rare class as often as others | {cells(often)} |")
    rows.append(f"| more often, as `rdsnet train --data` does | {cells(more)} |")
    rows.append(f"| gain, paired | {cells(more - often, '+')} |")
    return "\n".join(
        [
            "# What showing a rare class more often gains\n",
            f"Nuclei of at most {LARGEST} px, those on dark ground and {args.rare} images of "
            f"stained tissue; `rdsnet train --data --config lite`, {args.iterations} iterations "
            f"of 4 crops of {CROP} px, nothing fitted afterwards, seeds "
            f"{', '.join(map(str, seeds))}; AP in percent, mean ± standard error. "
            f"Made by `benchmarks/rare/run.py`.\n",
            *rows,
            "",
        ]
    )


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", default=os.environ.get("RDSNET_DATA", ""), help="$RDSNET_DATA")
    parser.add_argument("--rare", type=int, default=3, help="training images of the rare class")
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--runs", default="output/rare", help="folder of the runs")
    parser.add_argument("--out", default=str(HERE), help="folder of the table")
    parser.add_argument("--one", nargs=2, metavar=("SAMPLER", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not (Path(args.root) / "nuclei" / "train.json").is_file():
        raise SystemExit(
            f"'{Path(args.root) / 'nuclei' / 'train.json'}' does not exist: set RDSNET_DATA to "
            "the folder that holds nuclei/, or give --root"
        )
    return args


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    if args.one:
        arm, seed = args.one
        run_one(args, SAMPLERS[arm], int(seed), Path(args.runs) / f"{arm}-{seed}")
        return 0
    results = {}
    for seed in args.seeds:
        for arm in SAMPLERS:
            folder = Path(args.runs) / f"{arm}-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            kept = folder / "result.json"
            same = {"iterations": args.iterations, "rare": args.rare}
            if not kept.is_file() or not same.items() <= json.loads(kept.read_text()).items():
                command = [sys.executable, __file__, *argv, "--one", arm, str(seed)]
                with open(folder / "log.txt", "w") as log:
                    done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT)
                if done.returncode:
                    raise SystemExit(f"{arm}-{seed} failed, see '{folder / 'log.txt'}'")
            results[f"{arm}-{seed}"] = json.loads(kept.read_text())
            print(arm, seed, results[f"{arm}-{seed}"]["AP"], flush=True)
    Path(args.out, "rare.json").write_text(json.dumps(results, indent=1) + "\n")
    Path(args.out, "rare.md").write_text(table(results, args))
    print(table(results, args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
