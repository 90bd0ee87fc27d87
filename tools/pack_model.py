#!/usr/bin/env python3
"""Pack a trained model as a small file to ship: half precision, no paths, and a card of its own.

    python tools/pack_model.py output/nuclei projects/Nuclei/nuclei/nuclei.pth \\
        --finds "cell nuclei in microscope images" --licence "CC0 1.0" \\
        --data "500 images of the 2018 Data Science Bowl, stage 1" \\
        --val nuclei/val.json nuclei/images --evaluated-on "80 other images of it"

With --val, the model is evaluated before and after packing, and what the packed one reaches goes
into its card, which 'rdsnet models' shows. The lowest scores to show are chosen there, too (where
F1 is best), unless its training has done so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from rdsnet.checkpoint import load_config, load_model
from rdsnet.checkpoint.packing import BEST_MODEL, Card, pack
from rdsnet.checkpoint.trained import score_thresholds
from rdsnet.evaluation import results_table
from rdsnet.evaluation.breakdown import results_folder
from rdsnet.evaluation.thresholds import read_thresholds
from rdsnet.training import Trainer

# What the card has of an evaluation: titles, and the evaluator's names.
FIGURES = {
    "box AP": ("bbox", "AP"),
    "mask AP": ("segm", "AP"),
    "mask AP50": ("segm", "AP50"),
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="output folder of a training, or a checkpoint of it")
    parser.add_argument("target", help="file to write (.pth)")
    parser.add_argument("--finds", required=True, metavar="TEXT", help="what it finds, and where")
    parser.add_argument("--data", required=True, metavar="TEXT", help="what it was trained on")
    parser.add_argument("--licence", required=True, metavar="TEXT", help="of the weights")
    parser.add_argument(
        "--val", nargs=2, metavar=("JSON", "IMAGES"), help="evaluate on this, before and after"
    )
    parser.add_argument("--evaluated-on", default="", metavar="TEXT", help="what --val is")
    parser.add_argument("--max-detections", type=int, metavar="N", help="per image in --val")
    return parser.parse_args(argv)


def evaluate(
    weights: str, val: list[str], max_detections: int | None
) -> tuple[dict, list[float] | None]:
    """A checkpoint with its own config on a json and its images.

    Returns:
        The evaluator's results, and the lowest scores to show, its own or those of the best F1;
        None: nothing is found.
    """
    name = "packed_model_val"
    with tempfile.TemporaryDirectory() as folder:
        keys = ["DATASETS.COCO_FILES", repr([[name, *val]]), "DATASETS.TRAIN", "()"]
        keys += ["DATASETS.TEST", f"('{name}',)", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", folder]
        cfg = load_config(weights, keys, max_detections=max_detections)
        results = Trainer.test(cfg, load_model(cfg))
        thresholds = read_thresholds(results_folder(cfg, name))
        return results, score_thresholds(cfg) or (thresholds and thresholds.best_scores)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    source = Path(args.source)
    source = source / BEST_MODEL if source.is_dir() else source
    card = Card(args.finds, args.licence, args.data)
    try:
        packed = pack(source, args.target, card)
        if args.val:
            before, _ = evaluate(str(source), args.val, args.max_detections)
            after, scores = evaluate(args.target, args.val, args.max_detections)
            figures = {title: round(after[task][key], 2) for title, (task, key) in FIGURES.items()}
            card = replace(card, evaluated_on=args.evaluated_on or args.val[0], figures=figures)
            packed = pack(source, args.target, card, scores)
            print(f"\n{source}:\n{results_table(before)}")
            print(f"\n{args.target}:\n{results_table(after)}\n")
    except (OSError, ValueError) as error:
        print(f"pack_model: {error}", file=sys.stderr)
        return 2
    print(
        f"{packed.path}: {packed.size / 1e6:.2f} MB; {packed.halved} tensors in half precision, "
        f"changed by at most {packed.largest_change:.1e} of their norm, {packed.kept} as they were"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
