#!/usr/bin/env python3
"""Milliseconds of a training image before the model sees it: masks each augmented whole, as
Detectron2 does, and looked up where the augmented image's pixels came from, as here.

    export RDSNET_DATA=...   # the folder that holds nuclei/
    OMP_NUM_THREADS=1 python benchmarks/training/loader.py

Reading, augmenting and cropping images of nuclei with all their objects, both ways in turn on the
same images with the same random numbers; the results must be equal. CPU time: other work on the
machine counts less. Writes loader.md beside this file.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import DatasetMapper
from detectron2.data.datasets import load_coco_json
from detectron2.structures import Instances

from rdsnet.benchmark.measure import describe_machine
from rdsnet.config import get_cfg
from rdsnet.data.mapper import build_mapper
from rdsnet.data.moved_masks import MovedMasks

HERE = Path(__file__).resolve().parent


def move_whole(self: MovedMasks, segmentations: list[dict]) -> list[np.ndarray]:
    """In place of :meth:`MovedMasks.move`, for run-length coded masks."""
    masks = (mask_util.decode(segmentation) for segmentation in segmentations)
    return [self.transforms.apply_segmentation(mask).astype(bool) for mask in masks]


def mapper_of(side: int) -> DatasetMapper:
    """What prepares training images of nuclei; ``side`` of the crops, 0: whole images, resized."""
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.AUGMENTATION = "microscopy"
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.MIN_SIZE_TRAIN = (0,) if side else (256,)
    if side:
        cfg.INPUT.CROP.ENABLED = True
        cfg.INPUT.CROP.TYPE = "absolute"
        cfg.INPUT.CROP.SIZE = [side, side]
    return build_mapper(cfg, is_train=True)


def timed(mapper: DatasetMapper, described: dict, seed: int) -> tuple[float, Instances]:
    """CPU milliseconds of one image, and its objects."""
    np.random.seed(seed)
    start = time.process_time()
    instances = mapper(described)["instances"]
    return 1000 * (time.process_time() - start), instances


def measure(mapper: DatasetMapper, images: list[dict]) -> tuple[list[float], list[float]]:
    """Milliseconds of every image: masks moved whole, and looked up.

    Raises:
        RuntimeError: the objects are not the same.
    """
    whole, looked_up = [], []
    for seed, described in enumerate(images):
        with mock.patch.object(MovedMasks, "move", move_whole):
            milliseconds, expected = timed(mapper, described, seed)
        whole.append(milliseconds)
        milliseconds, found = timed(mapper, described, seed)
        looked_up.append(milliseconds)
        same = torch.equal(expected.gt_masks.tensor, found.gt_masks.tensor)
        if not (same and torch.equal(expected.gt_boxes.tensor, found.gt_boxes.tensor)):
            raise RuntimeError(f"other objects in {described['file_name']}, seed {seed}")
    return whole, looked_up


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=os.environ.get("RDSNET_DATA", ""))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--out", default=str(HERE), help="folder of loader.md")
    args = parser.parse_args(argv)
    folder = Path(args.data) / "nuclei"
    if not folder.is_dir():
        raise SystemExit(f"'{folder}' does not exist: set RDSNET_DATA to the folder that holds it")
    images = load_coco_json(str(folder / "train.json"), str(folder / "images"), "nuclei")
    images = images[: args.images]
    rows = [
        "| training sees | masks moved whole | looked up | times as fast |",
        "| --- | --- | --- | --- |",
    ]
    for name, side in (("crops of 128 px", 128), ("crops of 256 px", 256), ("images of 256 px", 0)):
        whole, looked_up = map(statistics.mean, measure(mapper_of(side), images))
        rows.append(f"| {name} | {whole:.1f} ms | {looked_up:.1f} ms | {whole / looked_up:.1f} |")
    objects = sum(len(image["annotations"]) for image in images) / len(images)
    machine = describe_machine("cpu")
    parts = [
        "# A training image before the model sees it",
        f"{len(images)} images of nuclei with {objects:.0f} objects in the mean, their sizes, "
        "sides and colours varied; mean CPU time per image, both ways in turn on each, with the "
        "same boxes and masks to the bit.",
        "\n".join(rows),
        f"date {machine['date']}, cpu {machine['cpu']}, load average at start "
        f"{machine['load_average_at_start']}. Made by `benchmarks/training/loader.py`.",
    ]
    text = "\n\n".join(parts) + "\n"
    (Path(args.out) / "loader.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
