"""The argument by which a user says that a checkpoint's code may run."""

from __future__ import annotations

import argparse


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """``--trust-checkpoint``, see :func:`rdsnet.checkpoint.read_checkpoint`."""
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="load checkpoints that hold more than numbers, running the code in them; only for "
        "files of people you trust",
    )
