"""Convert a checkpoint of the authors' implementation (mmdetection) to this one.

Reads a file with an entry "state_dict", as mmdetection saves it, or a bare state_dict, of
rdsnet_r50_fpn_1x, rdsnet_r101_fpn_1x or rdsnet_640_800_r101_fpn_2x, with or without MBRM. The
result serves the configs of projects/AuthorsCompat, which compute what the authors' code computes.

Example:
  rdsnet convert rdsnet_r50_fpn_1x.pth rdsnet.pth
  rdsnet predict --config-file projects/AuthorsCompat/configs/rdsnet_R_50_FPN_mmdet.yaml \\
      --weights rdsnet.pth --input photo.jpg --output predictions
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rdsnet.checkpoint.trust import add_trust_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="AUTHORS.pth", help="checkpoint of the authors' code")
    parser.add_argument("target", metavar="RDSNET.pth", help="where to write the converted one")
    add_trust_argument(parser)


def run(args: argparse.Namespace) -> None:
    import torch

    from rdsnet.checkpoint import convert_mmdet_state_dict, read_state_dict

    source, target = Path(args.source), Path(args.target)
    if target.resolve() == source.resolve():
        raise ValueError(f"'{target}' would overwrite the checkpoint it is made from")
    state_dict = read_state_dict(source, args.trust_checkpoint)
    try:
        converted = convert_mmdet_state_dict(state_dict)
    except ValueError as error:
        raise ValueError(f"'{source}': {error}") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": converted}, target)

    counters = sum(name.endswith("num_batches_tracked") for name in state_dict)
    depth = 101 if "backbone.bottom_up.res4.6.conv1.weight" in converted else 50
    classes = len(converted["object_stream.head.cls_score.bias"]) // 9
    print(f"{source}: ResNet-{depth}, {classes} classes, {len(state_dict)} entries")
    print(f"  {len(state_dict) - counters} parameters and statistics renamed")
    if counters:
        print(f"  {counters} counters num_batches_tracked left out: statistics are fixed")
    if any(name.endswith("mbrm.weight") for name in state_dict):
        print("  MBRM kernel taken from the checkpoint")
    else:
        print("  MBRM kernel added as published by the authors")
    print(f"{target}: written. Use it with")
    print(f"  projects/AuthorsCompat/configs/rdsnet_R_{depth}_FPN_mmdet.yaml")
    if classes != 80:
        print(f"  MODEL.RETINANET.NUM_CLASSES {classes}")
