"""Training on the workers of a Ray cluster: the same :class:`~rdsnet.training.trainer.Trainer`.

Ray places the workers, on one machine or many, and brings them together as torchrun does; from
there on it is :func:`rdsnet.training.launch.run`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from rdsnet.checkpoint.configs import load_config
from rdsnet.ray_cluster import connected
from rdsnet.training.launch import argument_parser, run


def train_on_ray(args: argparse.Namespace, *, workers: int = 1, address: str | None = None) -> None:
    """Train, as ``args`` of :func:`~rdsnet.training.launch.argument_parser` say.

    Data, weights and ``OUTPUT_DIR`` must have the same path on every machine.

    Args:
        args: config file, options, ``--resume``.
        workers: processes, with a GPU each unless ``MODEL.DEVICE`` is cpu.
        address: see :func:`rdsnet.ray_cluster.connected`.

    Raises:
        FileNotFoundError, ValueError: for what is missing or does not fit.
        OSError: Ray cannot be reached, or a worker has failed.
    """
    cfg = load_config(args.config_file, args.opts)
    if cfg.SOLVER.IMS_PER_BATCH % workers:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} cannot be shared equally by "
            f"{workers} workers: change it, or --workers"
        )
    output = Path(cfg.OUTPUT_DIR).absolute()
    on_gpu = cfg.MODEL.DEVICE != "cpu"
    # Workers have other folders of their own.
    config_file = args.config_file and os.path.abspath(args.config_file)
    words = ["--config-file", config_file] if config_file else []
    words += ["--resume"] if args.resume else []
    words += ["--trust-checkpoint"] if getattr(args, "trust_checkpoint", False) else []
    words += [*args.opts, "OUTPUT_DIR", str(output), "MODEL.DEVICE", cfg.MODEL.DEVICE]
    with connected(address, workers):
        trainer = TorchTrainer(
            _work,
            train_loop_config={"words": words, "folder": os.getcwd()},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpu),
            run_config=RunConfig(name="ray", storage_path=str(output)),
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        )
        try:
            trainer.fit()
        except Exception as error:  # of Ray's own kinds, which change with its versions
            raise OSError(f"a worker of Ray has failed: {error}") from error


def _work(settings: dict) -> None:
    """One of the processes."""
    if os.path.isdir(settings["folder"]):
        os.chdir(settings["folder"])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    run(argument_parser().parse_args(settings["words"]))
