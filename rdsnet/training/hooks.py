"""What a training run keeps besides Detectron2's checkpoints: the best model, averaged weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.utils import comm
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rdsnet.checkpoint.checkpointer import is_intact
from rdsnet.checkpoint.description import KEY, ModelDescription, save_model
from rdsnet.evaluation.truth import without_objects

logger = logging.getLogger(__name__)

BEST_MODEL = "model_best.pth"


class StopTraining(BaseException):
    """Ends the training loop on purpose. Not an Exception: Detectron2 would log it as an error."""


class LRScheduler(hooks.LRScheduler):
    """Detectron2's, which logs the rate of most parameters; here that of ``SOLVER.BASE_LR``.

    They differ where the backbone has more parameters, and a rate of its own
    (``SOLVER.BACKBONE_LR_FACTOR``).
    """

    def before_train(self) -> None:
        super().before_train()
        groups, base_rate = self._optimizer.param_groups, self._optimizer.defaults["lr"]
        usual = [n for n, group in enumerate(groups) if group["initial_lr"] == base_rate]
        if usual:
            self._best_param_group_id = max(usual, key=lambda n: len(groups[n]["params"]))


class WeightAverage(HookBase):
    """Exponential moving average of a model's parameters (``SOLVER.EMA``).

    PyTorch's AveragedModel, whose state belongs into checkpoints. Buffers are copied, not averaged.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"SOLVER.EMA.DECAY must be at least 0 and below 1, got {decay}")
        self._model = _unwrapped(model)

        @torch.no_grad()
        def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
            n = float(count)
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

        self.average = AveragedModel(self._model, multi_avg_fn=update)

    def after_step(self) -> None:
        self.average.update_parameters(self._model)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged parameters (once there are any)."""
        if self.average.n_averaged == 0:
            yield
            return
        pairs = list(zip(self._model.parameters(), self.average.module.parameters(), strict=True))
        own = [parameter.detach().clone() for parameter, _ in pairs]
        with torch.no_grad():
            for parameter, averaged in pairs:
                parameter.copy_(averaged)
        try:
            yield
        finally:
            with torch.no_grad():
                for (parameter, _), value in zip(pairs, own, strict=True):
                    parameter.copy_(value)


class BestModelHook(hooks.EvalHook):
    """Evaluates, and keeps the best model as ``OUTPUT_DIR/model_best.pth``.

    Where the run stands (best value, its iteration) is kept in that file itself, so that a resumed
    run goes on from there whichever checkpoint it resumes from. Where the file is damaged, it goes
    on without it, with a warning.

    Args:
        evaluate: what Detectron2's EvalHook calls.
        cfg: ``TEST.EVAL_PERIOD``, ``TEST.BEST_METRIC`` ("": only evaluate), ``TEST.PATIENCE``
            (evaluations without a better value after which training stops; 0: never) and
            ``OUTPUT_DIR``.
        model: what is evaluated.
        average: where there is one, its weights are evaluated and kept in place of the model's.
    """

    def __init__(
        self,
        evaluate: Callable[[], dict],
        cfg: CfgNode,
        model: nn.Module,
        average: WeightAverage | None,
    ) -> None:
        super().__init__(cfg.TEST.EVAL_PERIOD, evaluate)
        if cfg.TEST.PATIENCE and not (cfg.TEST.EVAL_PERIOD and cfg.TEST.BEST_METRIC):
            raise ValueError(
                "TEST.PATIENCE counts evaluations that are not better: set TEST.EVAL_PERIOD above "
                "0 and TEST.BEST_METRIC, for example to 'segm/AP'"
            )
        self._cfg, self._model, self._average = cfg, _unwrapped(model), average
        self._path = Path(cfg.OUTPUT_DIR) / BEST_MODEL
        self._best, self._best_iteration = -math.inf, -1

    def before_train(self) -> None:
        if comm.is_main_process():
            for name in without_objects(self._cfg.DATASETS.TEST):
                logger.warning(
                    f"Data set '{name}' has no objects (crowds do not count): evaluations on it "
                    "give no AP, and no model can be the best. Give validation data with objects."
                )
        if not self._cfg.TEST.BEST_METRIC:
            return
        resumed = self.trainer.start_iter > 0 and self._path.is_file()
        if resumed and not is_intact(self._path):
            logger.warning(
                f"{self._path} is damaged: the best model will be that of the evaluations to come"
            )
        elif resumed:
            best = torch.load(self._path, map_location="cpu", weights_only=True).get("best", {})
            if best.get("metric") == self._cfg.TEST.BEST_METRIC:
                self._best, self._best_iteration = best["value"], best["iteration"]
        elif comm.is_main_process():
            self._path.unlink(missing_ok=True)  # of another run

    def _do_eval(self) -> None:
        with self._average.applied() if self._average else nullcontext():
            super()._do_eval()
        if self._cfg.TEST.BEST_METRIC and self._cfg.DATASETS.TEST:
            self._compare()
            self._stop_if_hopeless()

    def _compare(self) -> None:
        # Results exist in the main process; all have to agree on when to stop.
        results = self.trainer.storage.latest() if comm.is_main_process() else {}
        metric = self._cfg.TEST.BEST_METRIC
        if comm.is_main_process() and metric not in results:
            raise ValueError(
                f"TEST.BEST_METRIC '{metric}' is not among the results of the evaluation: "
                f"{', '.join(name for name in results if '/' in name)}"
            )
        value = comm.all_gather(results[metric][0] if results else None)[0]
        if math.isnan(value):
            logger.warning(f"{metric} does not exist in this evaluation: nothing was compared")
            return
        if not value > self._best:
            logger.info(f"{metric} {value:.3f} is not better than {self._best:.3f}")
            return
        # After the last iteration, Detectron2 has already counted on.
        iteration = min(self.trainer.iter, self.trainer.max_iter - 1)
        self._best, self._best_iteration = value, iteration
        if comm.is_main_process():
            best = {"metric": metric, "value": value, "iteration": iteration}
            if "bbox/AP" in results:
                best["box_ap"] = results["bbox/AP"][0]
            save_model(self._path, self._weights(), self._cfg, best=best)
            logger.info(f"{metric} {value:.3f} is the best so far: saved {self._path}")

    def _weights(self) -> dict[str, Tensor]:
        return (self._average.average.module if self._average else self._model).state_dict()

    def _stop_if_hopeless(self) -> None:
        patience, period = self._cfg.TEST.PATIENCE, self._cfg.TEST.EVAL_PERIOD
        iteration = self.trainer.iter
        if not patience or self._best_iteration < 0 or iteration + 1 >= self.trainer.max_iter:
            return
        evaluations = (iteration + 1) // period - (self._best_iteration + 1) // period
        if evaluations >= patience:
            logger.info(
                f"Training stops after iteration {iteration}: {self._cfg.TEST.BEST_METRIC} has not "
                f"improved in {evaluations} evaluations (TEST.PATIENCE)"
            )
            self.trainer.checkpointer.save("model_final", iteration=iteration)
            raise StopTraining


def with_own_hooks(trainer: DefaultTrainer, found: list[HookBase | None]) -> list[HookBase | None]:
    """Detectron2's hooks with those of this module, and their state in the checkpoints."""
    cfg, average = trainer.cfg, None
    trainer.checkpointer.add_checkpointable(KEY, ModelDescription(cfg))
    if cfg.SOLVER.EMA.ENABLED:
        average = WeightAverage(trainer.model, cfg.SOLVER.EMA.DECAY)
        trainer.checkpointer.add_checkpointable("ema", average.average)
    evaluating = [
        BestModelHook(hook._func, cfg, trainer.model, average)
        if isinstance(hook, hooks.EvalHook)
        else hook
        for hook in found
    ]
    return [average, *evaluating]  # the average of an iteration is part of its checkpoint


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, or itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
