"""A training on shapes so small that it can be killed and resumed many times."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = str(ROOT / "configs" / "small" / "rdsnet_small.yaml")
TINY = [
    *("MODEL.FPN.OUT_CHANNELS", "64", "MODEL.RDSNET.PIXEL_STREAM.CONV_DIM", "32"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "32", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32"),
    *("MODEL.RETINANET.NUM_CONVS", "1", "MODEL.DEVICE", "cpu"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,72,80)", "INPUT.MIN_SIZE_TEST", "64"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.STEPS", "(30,)", "SOLVER.WARMUP_ITERS", "5"),
]


def make_data(folder: str | Path, images: int = 12) -> dict[str, str]:
    from rdsnet.data.shapes import make_shapes_dataset

    return make_shapes_dataset(folder, num_train=images, num_val=4, size=(64, 80), seed=3)


def options(data: dict[str, str], output: str | Path, iterations: int, *more: str) -> list[str]:
    """KEY VALUE options of a tiny training on :func:`make_data`."""
    files = [
        ["tiny_train", data["train_json"], data["train_images"]],
        ["tiny_val", data["val_json"], data["val_images"]],
    ]
    return [
        *TINY,
        *("DATASETS.COCO_FILES", str(files)),
        *("DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "()"),
        *("SOLVER.MAX_ITER", str(iterations), "OUTPUT_DIR", str(output), "SEED", "7"),
        *("DATALOADER.NUM_WORKERS", "0"),
        *more,
    ]


def curve(output: str | Path) -> list[dict]:
    """The lines of ``metrics.json`` without what depends on the clock."""
    clock = ("time", "data_time", "eta_seconds", "rank_data_time")
    lines = (Path(output) / "metrics.json").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def train(*arguments: str) -> None:
    """train_net.py in this process."""
    from rdsnet.training import argument_parser, run

    run(argument_parser().parse_args(["--config-file", SMALL, *arguments]))


if __name__ == "__main__":
    train(*sys.argv[1:])
