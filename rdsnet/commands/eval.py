"""Evaluate a checkpoint: box AP with and without MBRM, and mask AP.

The data sets are DATASETS.TEST of the config. Same as train_net.py --eval-only.

Example:
  rdsnet eval --config-file output/mine/config.yaml MODEL.WEIGHTS output/mine/model_final.pth
"""

from __future__ import annotations

import argparse

from rdsnet.commands import train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    train.add_run_arguments(parser)


def run(args: argparse.Namespace) -> None:
    args.eval_only = True
    train.run(args)
