"""From the command line to a training or evaluation run."""

from __future__ import annotations

import argparse
import logging
import os
from collections import OrderedDict
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm

from rdsnet.checkpoint import Checkpointer
from rdsnet.checkpoint.changes import check_other_use, described, refuse_other_run
from rdsnet.checkpoint.checkpointer import last_checkpoint
from rdsnet.checkpoint.configs import load_config
from rdsnet.checkpoint.description import may_hold_config
from rdsnet.checkpoint.exported import is_exported
from rdsnet.checkpoint.trust import add_trust_argument
from rdsnet.data.datasets import check_num_classes
from rdsnet.export.runtime import ExportedModel
from rdsnet.modeling import inference_precision, prepare_for_inference
from rdsnet.reports.report import report_run
from rdsnet.training.console import details_in_log_alone, setup_loggers
from rdsnet.training.finish import finish
from rdsnet.training.processes import is_started_by_launcher, process_group
from rdsnet.training.trainer import Trainer

logger = logging.getLogger(__name__)


def setup(args: argparse.Namespace) -> CfgNode:
    """Config, logging, seed and output folder of a run (Detectron2's ``default_setup``).

    Raises:
        FileNotFoundError, ValueError: what is given does not fit together, or with what --resume
            would go on with; then nothing has been written.
    """
    max_detections = getattr(args, "max_detections", None)
    cfg = load_config(args.config_file, args.opts, max_detections=max_detections)
    resumes = args.resume and not args.eval_only
    changes = refuse_other_run(cfg) if resumes else {}
    check_num_classes(cfg)
    weights = cfg.MODEL.WEIGHTS
    if weights and "://" not in weights and not Path(weights).is_file():
        raise FileNotFoundError(
            f"MODEL.WEIGHTS '{weights}' does not exist. Give the path of a checkpoint (.pth or "
            ".pkl), or MODEL.WEIGHTS '' to start from random weights."
        )
    cfg.freeze()
    setup_loggers(cfg.OUTPUT_DIR)
    if args.eval_only:
        last = last_checkpoint(cfg.OUTPUT_DIR) if args.resume else ""
        check_other_use(cfg, last or weights)
    if changes:
        logger.info(f"Changed since the checkpoint: {described(changes)}")
    if may_hold_config(args.config_file):  # Detectron2 would log it as text
        args = argparse.Namespace(**{**vars(args), "config_file": ""})
    with details_in_log_alone(_is_own_data(args)):
        default_setup(cfg, args)
    return cfg


def _is_own_data(args: argparse.Namespace) -> bool:
    """Whether this is ``rdsnet train --data``, which has said already what it is about to do."""
    return bool(getattr(args, "data", None))


def main(args: argparse.Namespace, trainer_class: type[Trainer] = Trainer) -> OrderedDict | None:
    """Train, or evaluate with ``--eval-only``, as ``args`` of :func:`argument_parser` say."""
    cfg = setup(args)
    trust = getattr(args, "trust_checkpoint", False)
    if args.eval_only and is_exported(cfg.MODEL.WEIGHTS):
        results = trainer_class.test(cfg, ExportedModel(cfg))
        report_run(cfg)
        return results
    if args.eval_only:
        model = trainer_class.build_model(cfg).eval()
        checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, trust=trust)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        model = prepare_for_inference(model)
        with inference_precision(cfg) as precision:
            logger.info(f"Evaluating in {precision}")
            results = trainer_class.test(cfg, model)
        report_run(cfg, model)
        return results
    with details_in_log_alone(_is_own_data(args)):
        trainer = trainer_class(cfg, trust_checkpoint=trust)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Detectron2's parser with ``--trust-checkpoint``."""
    parser = default_argument_parser(epilog)
    add_trust_argument(parser)
    return parser


def run(args: argparse.Namespace, trainer_class: type[Trainer] = Trainer) -> OrderedDict | None:
    """:func:`main` in several processes; after training, what completes the model.

    The processes are one per GPU, or those that torchrun or Slurm have started. See
    :func:`rdsnet.training.finish.finish`.
    """
    if is_started_by_launcher():
        with process_group(args.opts):
            results = main(args, trainer_class)
            is_first = comm.is_main_process()
    else:
        _check_gpus(args.num_gpus)
        results = launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args, trainer_class),
        )
        is_first = args.machine_rank == 0
    if args.eval_only or not is_first:
        return results
    return finish(load_config(args.config_file, args.opts), results)


def _check_gpus(number: int) -> None:
    """Raise ValueError when there are fewer GPUs."""
    available = torch.cuda.device_count()
    if number > max(available, 1):
        raise ValueError(
            f"--num-gpus {number}, but torch sees {available} GPUs on this machine "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}). Several "
            "processes on a CPU are started by torchrun --nproc-per-node N train_net.py ..."
        )
