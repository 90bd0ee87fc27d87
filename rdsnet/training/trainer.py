"""Training and evaluation with Detectron2's trainer."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, TrainerBase, hooks
from detectron2.utils import comm
from torch import nn

from rdsnet.checkpoint import Checkpointer, read_checkpoint
from rdsnet.checkpoint.changes import refuse_other_run
from rdsnet.checkpoint.transfer import load_first_weights
from rdsnet.data.datasets import register_coco_files
from rdsnet.data.mapper import build_mapper
from rdsnet.data.train_loader import TrainLoader, build_train_loader
from rdsnet.evaluation import RDSNetEvaluator
from rdsnet.reports.report import ReportHook
from rdsnet.training.hooks import LRScheduler, StopTraining, with_own_hooks
from rdsnet.training.interruption import (
    LOG_PERIOD,
    MetricsHistory,
    PeriodicWriter,
    SeedIterations,
    StopOnSignal,
)
from rdsnet.training.non_finite import StopOnNonFiniteLoss
from rdsnet.training.optimizer import build_optimizer
from rdsnet.training.resuming import (
    ConfiguredRates,
    require_fitting_state,
    require_fitting_weights,
)
from rdsnet.training.steps import AMPStep, distributed


class Trainer(DefaultTrainer):
    """Detectron2's trainer with RDSNet's data, evaluator and gradient clipping.

    It survives: a checkpoint (:class:`~rdsnet.checkpoint.Checkpointer`) holds all that a resumed
    training needs to be equal to an uninterrupted one, on the CPU bit for bit
    (:mod:`rdsnet.training.interruption`). It also trains in several processes without a GPU.

    Args:
        cfg: the config.
        trust_checkpoint: load checkpoints that hold arbitrary Python objects; see
            :func:`rdsnet.checkpoint.read_checkpoint`.
    """

    def __init__(self, cfg: CfgNode, trust_checkpoint: bool = False) -> None:
        # In place of DefaultTrainer's, which knows no other checkpointer, no several processes on a
        # CPU, and whose 0.6 release leaves the optimizer out of checkpoints.
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        step = AMPStep if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = step(distributed(model), self.build_train_loader(cfg), optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model, cfg.OUTPUT_DIR, trust=trust_checkpoint, trainer=weakref.proxy(self)
        )
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks, those for the best model, averaged weights and the report, and around
        them those that make a training survive.

        What comes before :class:`StopOnSignal` is in the checkpoint of an iteration; what comes
        after it (evaluation, log) is caught up with by a resumed training.
        """
        output_dir = Path(self.cfg.OUTPUT_DIR)
        before, after = [], []
        for hook in with_own_hooks(self, super().build_hooks()):
            if isinstance(hook, hooks.PeriodicWriter):
                after.append(PeriodicWriter(hook._writers, LOG_PERIOD))
            elif isinstance(hook, hooks.EvalHook):
                after.append(hook)
            elif isinstance(hook, hooks.LRScheduler):
                before.append(LRScheduler())
            elif hook is not None:
                before.append(hook)
        metrics_file = output_dir / "metrics.json" if comm.is_main_process() else None
        self._history = MetricsHistory(metrics_file)
        return [
            SeedIterations(),
            StopOnNonFiniteLoss(output_dir),
            self._history,
            *before,
            StopOnSignal(self.checkpointer),
            *after,
            ReportHook(self.cfg),
        ]

    def before_train(self) -> None:
        super().before_train()
        if self.start_iter > 0:
            self._catch_up()

    def _catch_up(self) -> None:
        """Do what the interrupted training may not have done after its checkpoint."""
        self.iter = self.storage.iter = self.start_iter - 1
        checkpointed = [isinstance(hook, StopOnSignal) for hook in self._hooks].index(True)
        logged = self._history.last_written == self.iter
        for hook in self._hooks[checkpointed + 1 :]:
            if not (logged and isinstance(hook, PeriodicWriter)):
                hook.after_step()
        self.iter = self.storage.iter = self.start_iter

    def resume_or_load(self, resume: bool = True) -> None:
        """Go on from the last intact checkpoint in ``OUTPUT_DIR``, or load ``MODEL.WEIGHTS``.

        Learning rate, momentum and weight decay are those of the config, also where they have
        changed.

        A new training may start from a model that has learnt something else, see
        :mod:`rdsnet.checkpoint.transfer`.

        Raises:
            FileNotFoundError: a process cannot read the checkpoint that the first one has found.
            ValueError: the checkpoint is of a run with other classes, another model or another
                optimizer.
        """
        last = ""
        if resume:
            last = self.checkpointer.get_checkpoint_file() if comm.is_main_process() else ""
            last = comm.all_gather(last)[0]
        if not last:
            load_first_weights(self.checkpointer, self.cfg)
            return
        if not all(comm.all_gather(Path(last).is_file())):
            raise FileNotFoundError(
                f"not every process can read the checkpoint '{last}'. OUTPUT_DIR has to be a "
                "folder that all machines share; or copy the checkpoint to each of them."
            )
        refuse_other_run(self.cfg)
        content = read_checkpoint(last, self.checkpointer.trust)
        weights = content.get("model", content)
        require_fitting_weights(self.checkpointer.model, weights, last)
        state = content.get("trainer", {}).get("_trainer", {}).get("optimizer")
        if state:
            require_fitting_state(self.optimizer, state, last)
        del content, weights, state
        rates = ConfiguredRates(self.optimizer, self.scheduler)
        self.checkpointer.load(last)
        rates.restore()
        self.start_iter = self.iter + 1  # the checkpoint names the iteration that was finished

    def state_dict(self) -> dict:
        """Iteration and hooks, optimizer (``_trainer``, as in Detectron2), data."""
        return {
            **TrainerBase.state_dict(self),
            "_trainer": self._trainer.state_dict(),
            "data_loader": self.data_loader.state_dict(),
        }

    def load_state_dict(self, state_dict: dict) -> None:
        TrainerBase.load_state_dict(self, state_dict)
        if "_trainer" in state_dict:
            self._trainer.load_state_dict(state_dict["_trainer"])
        if "data_loader" in state_dict:
            self.data_loader.load_state_dict(state_dict["data_loader"])

    def train(self) -> OrderedDict | None:
        """Train to the end and return the results of the last evaluation."""
        with suppress(StopTraining):
            super().train()
        return getattr(self, "_last_eval_results", None)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        register_coco_files(cfg)  # where the config comes from another process
        return build_train_loader(cfg, build_mapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        register_coco_files(cfg)
        mapper = build_mapper(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> RDSNetEvaluator:
        return RDSNetEvaluator.from_config(cfg, dataset_name)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> OrderedDict:
        """Evaluate on ``DATASETS.TEST``. Masks go to COCO's RLE without becoming dense."""
        rdsnet = model.module if hasattr(model, "module") else model
        dense_masks, rdsnet.dense_masks = getattr(rdsnet, "dense_masks", True), False
        try:
            return super().test(cfg, model, evaluators)
        finally:
            rdsnet.dense_masks = dense_masks
