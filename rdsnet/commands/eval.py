"""Evaluate a checkpoint: box AP with and without MBRM, and mask AP.

The data sets are DATASETS.TEST of the config. Same as train_net.py --eval-only. With
--max-detections N, AP counts the best N detections of every image instead of COCO's 100. Figures
are those of float32, whatever the processor has; --precision auto gives those of rdsnet predict.

Without --config-file, the checkpoint's own config is used.

Examples:
  rdsnet eval --weights output/mine/model_best.pth
  rdsnet eval --config-file output/mine/config.yaml MODEL.WEIGHTS output/mine/model_final.pth
  rdsnet eval --weights nuclei --max-detections 500 DATASETS.TEST "('mine',)" \\
      DATASETS.COCO_FILES "[['mine', 'mine.json', 'images/']]"
"""

from __future__ import annotations

import argparse

from rdsnet.commands import train
from rdsnet.commands.arguments import add_max_detections, add_precision, precision_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_max_detections(parser)
    add_precision(parser, None, "MODEL.RDSNET.INFERENCE.PRECISION of the config, float32")
    train.add_run_arguments(parser)


def run(args: argparse.Namespace) -> None:
    args.eval_only = True
    args.opts = [*precision_options(args), *args.opts]
    train.run(args)
