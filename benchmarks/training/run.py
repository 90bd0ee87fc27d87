#!/usr/bin/env python3
"""Seconds of a training step of RDSNet-lite on a CPU: as Detectron2 and timm compute their parts,
and as they are computed here.

    OMP_NUM_THREADS=1 python benchmarks/training/run.py

All variants start from the same weights and take turns on the same batches of made-up shapes, in
one process: forward, backward and AdamW. CPU seconds: other work on the machine counts less.
Writes training.md and training.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from detectron2.engine import default_argument_parser
from detectron2.modeling.backbone import FPN
from detectron2.utils.events import EventStorage
from torch import nn

from rdsnet.benchmark.measure import describe_machine
from rdsnet.data.shapes import make_shapes_dataset
from rdsnet.modeling.backbones.depthwise import QuickGradientConv2d
from rdsnet.modeling.backbones.timm_fpn import TimmFPN
from rdsnet.training import setup
from rdsnet.training.trainer import Trainer

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parents[1] / "configs" / "lite" / "rdsnet_lite0_96.yaml"
BATCH = 4


@contextmanager
def usual_gradients() -> Iterator[None]:
    """Inside, depthwise convolutions have PyTorch's gradients."""
    with mock.patch.object(QuickGradientConv2d, "_conv_forward", nn.Conv2d._conv_forward):
        yield


@contextmanager
def usual_layout() -> Iterator[None]:
    """Inside, the pyramid's maps lie in memory with one channel after the other."""
    with mock.patch.object(TimmFPN, "forward", FPN.forward):
        yield


@contextmanager
def usual() -> Iterator[None]:
    with usual_gradients(), usual_layout():
        yield


@contextmanager
def as_here() -> Iterator[None]:
    yield


VARIANTS = {
    "as Detectron2 and timm": usual,
    "depthwise gradients in float32": usual_layout,
    "channels side by side": usual_gradients,
    "both, as here": as_here,
}


def measure(side: int, precision: str, steps: int) -> dict[str, list[float]]:
    """{variant: CPU seconds of every step} on images of ``side`` px."""
    with tempfile.TemporaryDirectory() as folder:
        made = make_shapes_dataset(folder, num_train=8, num_val=1, size=(side, side))
        name = f"shapes_{side}_{precision}"
        options = {
            "DATASETS.COCO_FILES": [[name, str(made["train_json"]), f"{folder}/train"]],
            "DATASETS.TRAIN": f"('{name}',)",
            "DATASETS.TEST": "()",
            "MODEL.RETINANET.NUM_CLASSES": -1,
            "MODEL.DEVICE": "cpu",
            "INPUT.MIN_SIZE_TRAIN": (side,),
            "SOLVER.IMS_PER_BATCH": BATCH,
            "SOLVER.AMP.ENABLED": precision == "bf16",
            "DATALOADER.NUM_WORKERS": 0,
            "SEED": 1,
            "OUTPUT_DIR": folder,
        }
        words = ["--config-file", str(CONFIG)]
        words += [str(word) for pair in options.items() for word in pair]
        cfg = setup(default_argument_parser().parse_args(words))
        trainers = {}
        for variant in VARIANTS:
            torch.manual_seed(1)  # of the weights that are not pretrained
            trainers[variant] = Trainer(cfg)
            trainers[variant].resume_or_load(resume=False)
            trainers[variant].model.train()
        loader = iter(Trainer.build_train_loader(cfg))
        seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        with EventStorage():
            for number in range(steps + 1):
                batch = next(loader)
                for variant, trainer in trainers.items():
                    with VARIANTS[variant]():
                        took = step(trainer, batch, precision)
                    if number > 0:  # the first warms up
                        seconds[variant].append(took)
    return seconds


def step(trainer: Trainer, batch: list[dict], precision: str) -> float:
    start = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        losses = trainer.model(batch)
    trainer.optimizer.zero_grad()
    sum(losses.values()).backward()
    trainer.optimizer.step()
    return time.process_time() - start


def table(results: list[dict]) -> str:
    columns = [f"{r['side']} px, {r['precision']}" for r in results]
    rows = [f"| | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    base = next(iter(VARIANTS))
    for variant in VARIANTS:
        cells = []
        for result in results:
            pairs = zip(result["seconds"][variant], result["seconds"][base])
            ratio = statistics.median(ours / theirs for ours, theirs in pairs)
            least = min(result["seconds"][variant])
            cells.append(f"{1000 * least:.0f} ms" + (f" ({ratio:.2f})" if variant != base else ""))
        rows.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sides", nargs="+", type=int, default=[128, 256], help="of images, pixels"
    )
    parser.add_argument("--precisions", nargs="+", default=["float32", "bf16"])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    results = [
        {
            "side": side,
            "precision": precision,
            "seconds": measure(side, precision, args.steps),
        }
        for precision in args.precisions
        for side in args.sides
    ]
    machine = describe_machine("cpu")
    args.out.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine, "results": results}
    (args.out / "training.json").write_text(json.dumps(document, indent=1) + "\n")
    shown = ("date", "cpu", "torch", "load_average_at_start")
    facts = ", ".join(f"{key.replace('_', ' ')} {machine[key]}" for key in shown)
    text = (
        "# A training step of RDSNet-lite on one CPU thread\n\n"
        f"{BATCH} images, CPU time: least of {args.steps} steps, and in brackets the median ratio "
        "to the first row on the same batch.\n\n"
        f"{table(results)}\n\n{facts}. Made by `benchmarks/training/run.py`.\n"
    )
    (args.out / "training.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
