"""Train a model: on your own data with --data, or with any config as train_net.py does.

With --data, everything else is decided from the data and printed: classes, input size or crops,
anchors, detections per image, schedule, learning rate, evaluation; and the train_net.py command
that does the same. OUTPUT_DIR then has model_best.pth, the model to use: the best by mask AP, with
MBRM fitted to it, its config and the names of its classes. Without --val, the part of the
export that is for validation is taken (of YOLO's data.yaml, say), or else a tenth of the images is
held out (--no-val: none, and no evaluation). With --weights, training starts from a model that has
learnt something else: its architecture is taken unless --config names another; the number of
classes may differ.

Examples:
  rdsnet train --data train.json photos/ --val val.json photos/ --output output/mine
  rdsnet train --data roboflow/data.yaml
  rdsnet train --data labelme_folder/ --val others/
  rdsnet train --data train.json photos/ --config R_101 --epochs 24 --batch-size 8 --patience 5
  rdsnet train --data train.json photos/ --weights nuclei
  rdsnet train --data train.json photos/ --output output/mine --resume
  rdsnet train --config-file configs/COCO-InstanceSegmentation/rdsnet_R_50_FPN_1x.yaml --num-gpus 4
  rdsnet train --config-file output/mine/config.yaml --resume
"""

from __future__ import annotations

import argparse
import os

from rdsnet.checkpoint.trust import add_trust_argument
from rdsnet.commands.arguments import (
    add_augment,
    add_config_options,
    add_data,
    add_weights,
    positive,
    use_weights,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of Detectron2's ``default_argument_parser``, and those for own data."""
    own = parser.add_argument_group("own data")
    add_data(
        own,
        "--data",
        "annotations of any tool: a json of COCO, or a file or folder that 'rdsnet convert-data' "
        "reads; and the folder of their images, unless the export says where they are",
    )
    add_data(own, "--val", "the same, to evaluate on while training")
    own.add_argument("--no-val", action="store_true", help="train on all of --data")
    own.add_argument(
        "--config",
        metavar="NAME",
        help="lite (EfficientNet-Lite0), small (from scratch), R_50, R_101 or a yaml file, also of "
        "projects/ (default: that of --weights, else R_50 with a GPU and lite without)",
    )
    own.add_argument("--output", metavar="DIR", help="default: output/ and the name of the data")
    length = own.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=positive(float), metavar="N", help="passes over the data")
    length.add_argument("--iterations", type=positive(int), metavar="N", help="or iterations")
    own.add_argument(
        "--batch-size", type=positive(int), metavar="N", help="images per iteration, on all GPUs"
    )
    own.add_argument(
        "--patience",
        type=positive(int),
        metavar="N",
        help="stop when mask AP has not improved in N evaluations (20 in a whole run)",
    )
    own.add_argument(
        "--ema", action="store_true", help="use a moving average of the weights over iterations"
    )
    add_augment(own, "; 'rdsnet check-data --show-augmentations' shows it")
    own.add_argument(
        "--channels",
        type=positive(int),
        metavar="N",
        help="of an image; 3: photographs, if they have 8 bits (default: by the files)",
    )
    own.add_argument("--device", metavar="NAME", help="cpu or cuda")
    add_ray(parser)
    add_run_arguments(parser, "; training starts from it")
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, do not train"
    )


def add_run_arguments(parser: argparse.ArgumentParser, on_weights: str = "") -> None:
    """What training and evaluation have in common.

    Args:
        on_weights: what is done with ``--weights``.
    """
    parser.add_argument(
        "--config-file",
        default="",
        metavar="FILE",
        help="yaml config file, or a checkpoint that holds its config",
    )
    add_weights(parser, on_weights)
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
    add_trust_argument(parser)
    add_config_options(parser)


def add_ray(parser: argparse.ArgumentParser) -> None:
    """Training by the workers of Ray."""
    ray = parser.add_argument_group("on a Ray cluster (rdsnet[ray])")
    ray.add_argument(
        "--engine", choices=("ray",), help="train on workers of Ray instead of this process"
    )
    ray.add_argument(
        "--workers", type=positive(int), metavar="N", help="processes, a GPU each (default: 1)"
    )
    ray.add_argument(
        "--address", metavar="HOST:PORT", help="of the cluster (default: RAY_ADDRESS, or here)"
    )


def run(args: argparse.Namespace) -> None:
    _check_ray(args)
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ValueError("--num-machines above 1 needs --dist-url tcp://HOST:PORT of machine 0")
    if getattr(args, "data", None):
        use_own_data(args)
    elif not (args.config_file or args.eval_only):
        raise ValueError(
            "give --data ANNOTATIONS IMAGES to train on your own data, or --config-file FILE for a "
            "config that names its data"
        )
    elif alone := [f"--{name.replace('_', '-')}" for name in OWN_DATA if getattr(args, name, None)]:
        raise ValueError(f"{', '.join(alone)} can only be given together with --data")
    else:
        use_weights(args)
    if getattr(args, "engine", None):
        from rdsnet.training.on_ray import train_on_ray

        train_on_ray(args, workers=args.workers or 1, address=args.address)
        return
    from rdsnet.training import run

    run(args)


def _check_ray(args: argparse.Namespace) -> None:
    """Raise ValueError where arguments about processes contradict each other."""
    engine = getattr(args, "engine", None)
    if not engine and (getattr(args, "workers", None) or getattr(args, "address", None)):
        raise ValueError("--workers and --address go with --engine ray")
    if engine and (args.num_gpus > 1 or args.num_machines > 1 or args.eval_only):
        raise ValueError(
            "--engine ray places the processes itself: give --workers N instead of --num-gpus and "
            "--num-machines, and no --eval-only"
        )


# What only --data makes sense of.
OWN_DATA = (
    *("val", "no_val", "config", "output", "epochs", "iterations", "batch_size", "patience"),
    *("ema", "augment", "channels", "device"),
)


def use_own_data(args: argparse.Namespace) -> None:
    """Replace the arguments about own data by the config file and options that they mean."""
    if args.config_file or args.eval_only:
        raise ValueError("--data goes with --config NAME, not with --config-file or --eval-only")
    if args.val and args.no_val:
        raise ValueError("--val and --no-val contradict each other")
    from rdsnet.training.own_data import command_line, prepare
    from rdsnet.training.settings import Wishes

    wishes = Wishes(
        epochs=args.epochs,
        iterations=args.iterations,
        batch_size=args.batch_size,
        num_gpus=args.num_gpus,
        patience=args.patience or 0,
        ema=args.ema,
        augment=args.augment,
        channels=args.channels,
    )
    device = ["MODEL.DEVICE", args.device] if args.device else []
    args.config_file, args.opts, settings = prepare(
        args.data,
        args.val,
        config=args.config,
        weights=args.weights,
        output=args.output,
        wishes=wishes,
        hold_out=not args.no_val,
        opts=[*device, *args.opts],
        resume=args.resume,
    )
    log_file = os.path.join(settings.options["OUTPUT_DIR"], "log.txt")
    for topic, text in settings.notes:
        print(f"{topic:<12}{text}")
    print(f"{'Log':<12}{log_file}: everything, with environment, whole config and model")
    print(f"\nThe same by hand:\n{command_line(args.config_file, args.opts, args.num_gpus)}\n")
