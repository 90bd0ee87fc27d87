"""Evaluate a checkpoint: box AP with and without MBRM, and mask AP.

The data sets are DATASETS.TEST of the config, or --data: annotations of any tool ('rdsnet
convert-data --help' lists them), of several parts the one for validation. Same as train_net.py
--eval-only. With --max-detections N, AP counts the best N detections of every image instead of
COCO's 100. Figures are those of float32, whatever the processor has; --precision auto gives those
of rdsnet predict.

Without --config-file, the checkpoint's own config is used.

Examples:
  rdsnet eval --weights output/mine/model_best.pth
  rdsnet eval --config-file output/mine/config.yaml MODEL.WEIGHTS output/mine/model_final.pth
  rdsnet eval --weights nuclei --max-detections 500 --data mine.json images/
"""

from __future__ import annotations

import argparse
import os

from rdsnet.commands import train
from rdsnet.commands.arguments import (
    add_data,
    add_max_detections,
    add_precision,
    precision_options,
    use_weights,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(
        parser,
        "--data",
        "annotations to evaluate on, as of 'rdsnet train', and the folder of their images",
    )
    add_max_detections(parser)
    add_precision(parser, None, "MODEL.RDSNET.INFERENCE.PRECISION of the config, float32")
    train.add_run_arguments(parser)


def run(args: argparse.Namespace) -> None:
    args.eval_only = True
    args.opts = [*precision_options(args), *args.opts]
    if args.data:
        use_data(args)
    train.run(args)


def use_data(args: argparse.Namespace) -> None:
    """Replace --data by the config options that mean it."""
    from rdsnet.checkpoint.configs import load_config
    from rdsnet.training.data_parts import evaluated_part
    from rdsnet.training.own_data import dataset_names

    use_weights(args)
    args.weights = None
    cfg = load_config(args.config_file, args.opts)
    json_file, images = evaluated_part(args.data, cfg.DATASETS.CLASSES, cfg.OUTPUT_DIR)
    name = dataset_names(args.data[0], None)[0]
    files = [[name, os.path.abspath(json_file), os.path.abspath(images)]]
    args.opts = ["DATASETS.COCO_FILES", str(files), "DATASETS.TEST", str((name,)), *args.opts]
    args.data = None
