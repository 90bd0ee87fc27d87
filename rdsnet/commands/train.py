"""Train a model, as train_net.py does.

Examples:
  rdsnet train --config-file configs/COCO-InstanceSegmentation/rdsnet_R_50_FPN_1x.yaml --num-gpus 4
  rdsnet train --config-file configs/small/rdsnet_small.yaml OUTPUT_DIR output/mine \\
      DATASETS.COCO_FILES "[['mine', 'data/train.json', 'data/images']]" \\
      DATASETS.TRAIN "('mine',)" DATASETS.TEST "('mine',)"
  rdsnet train --config-file output/mine/config.yaml --resume
"""

from __future__ import annotations

import argparse

TRUST_HELP = (
    "load checkpoints that hold more than numbers, running the code in them; only for files of "
    "people you trust"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of Detectron2's ``default_argument_parser``."""
    add_run_arguments(parser)
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, do not train"
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """What training and evaluation have in common."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help="yaml config file")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in OUTPUT_DIR, if there is one",
    )
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="GPUs per machine (default: 1)"
    )
    parser.add_argument(
        "--num-machines", type=int, default=1, metavar="N", help="machines (default: 1)"
    )
    parser.add_argument(
        "--machine-rank",
        type=int,
        default=0,
        metavar="N",
        help="number of this machine, from 0 (default: 0)",
    )
    parser.add_argument(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="where the processes of a distributed run meet, such as tcp://HOST:PORT of machine 0 "
        "(default: a free port of this machine)",
    )
    parser.add_argument("--trust-checkpoint", action="store_true", help=TRUST_HELP)
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config options to change, after all other arguments",
    )


def run(args: argparse.Namespace) -> None:
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ValueError("--num-machines above 1 needs --dist-url tcp://HOST:PORT of machine 0")
    from rdsnet.engine import run

    run(args)
