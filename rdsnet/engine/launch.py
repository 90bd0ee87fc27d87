"""From the command line to a training or evaluation run."""

from __future__ import annotations

import argparse
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from rdsnet.checkpoint.description import read_config
from rdsnet.config import get_cfg
from rdsnet.data.datasets import (
    check_num_classes,
    register_coco_files,
    with_classes,
    with_num_classes,
)
from rdsnet.engine.finish import finish
from rdsnet.engine.report import report_run
from rdsnet.engine.trainer import Trainer


def load_config(config_file: str, opts: list[str] | None = None) -> CfgNode:
    """The config of a file with command-line options merged over it.

    Registers ``DATASETS.COCO_FILES`` and settles the number of classes and their names.

    Args:
        config_file: a yaml file, or a checkpoint (.pth) that holds the config it was trained with.
        opts: KEY VALUE words.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: for an unknown key, a value of the wrong kind, or data that does not fit.
    """
    if not Path(config_file).is_file():
        raise FileNotFoundError(
            f"config file '{config_file}' does not exist. The configs of this project lie in "
            "configs/, for example configs/COCO-InstanceSegmentation/rdsnet_R_50_FPN_1x.yaml."
        )
    opts = opts or []
    if len(opts) % 2:
        raise ValueError(
            f"config options come in pairs KEY VALUE, got {len(opts)} words: {' '.join(opts)}"
        )
    cfg = get_cfg()
    with naming(f"config file '{config_file}'"):
        merge_config_file(cfg, config_file)
    with naming(f"config options '{' '.join(opts)}'"):
        cfg.merge_from_list(opts)
    register_coco_files(cfg)
    return with_classes(with_num_classes(cfg))


def merge_config_file(cfg: CfgNode, config_file: str) -> None:
    """Merge a yaml file, or the config that a checkpoint (.pth) holds, into a config."""
    if Path(config_file).suffix != ".pth":
        cfg.merge_from_file(config_file)
        return
    stored = read_config(config_file)
    if stored is None:
        raise ValueError(
            "this checkpoint holds no config. Give the yaml file that it was trained with (a "
            "training run keeps it as config.yaml beside its checkpoints)"
        )
    cfg.merge_from_other_cfg(stored)


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Turn what yacs and yaml raise for a config into a ValueError that names its source."""
    try:
        yield
    except (KeyError, AssertionError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{source} cannot be used: {error}") from error


def setup(args: argparse.Namespace) -> CfgNode:
    """Config, logging, seed and output folder of a run (Detectron2's ``default_setup``)."""
    cfg = load_config(args.config_file, args.opts)
    check_num_classes(cfg)
    weights = cfg.MODEL.WEIGHTS
    if weights and "://" not in weights and not Path(weights).is_file():
        raise FileNotFoundError(
            f"MODEL.WEIGHTS '{weights}' does not exist. Give the path of a checkpoint (.pth or "
            ".pkl), or MODEL.WEIGHTS '' to start from random weights."
        )
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="rdsnet")
    return cfg


def main(args: argparse.Namespace) -> OrderedDict | None:
    """Train, or evaluate with ``--eval-only``, as ``args`` of Detectron2's parser say."""
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg).eval()
        checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        report_run(cfg, model)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def run(args: argparse.Namespace) -> OrderedDict | None:
    """:func:`main` in one process per GPU; after training, what completes the model.

    See :func:`rdsnet.engine.finish.finish`.
    """
    available = torch.cuda.device_count()
    if args.num_gpus > max(available, 1):
        raise ValueError(
            f"--num-gpus {args.num_gpus}, but torch sees {available} GPUs on this machine "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')})."
        )
    results = launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
    if args.eval_only or args.machine_rank > 0:
        return results
    return finish(load_config(args.config_file, args.opts), results)


__all__ = ["load_config", "main", "run", "setup"]
