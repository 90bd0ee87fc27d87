"""A training that ends when its CPU time is spent, with a learning rate that follows that time."""

from __future__ import annotations

import math
import resource

from detectron2.engine import HookBase

from rdsnet.training.hooks import StopTraining

WARM_UP = 0.1  # share of the training


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Budget(HookBase):
    """Sets the learning rate by the share of the budget that is spent, in place of the iterations.

    Args:
        seconds: of CPU time, in this process.
        in_steps: a tenth of the learning rate after 80 % and again after 95 %; else a cosine.
        iterations: end after so many instead, for a test.
    """

    def __init__(self, seconds: float, in_steps: bool, iterations: int | None = None) -> None:
        self._seconds, self._in_steps, self._iterations = seconds, in_steps, iterations
        self.spent = 0.0

    def before_train(self) -> None:
        self._start = cpu_seconds()

    def before_step(self) -> None:
        factor = learning_rate_factor(self._share(self.trainer.iter), self._in_steps)
        for group in self.trainer.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def after_step(self) -> None:
        self.spent = cpu_seconds() - self._start
        if self._share(self.trainer.iter + 1) >= 1:
            raise StopTraining

    def _share(self, iterations: int) -> float:
        if self._iterations:
            return iterations / self._iterations
        return self.spent / self._seconds


def learning_rate_factor(share: float, in_steps: bool) -> float:
    """Of the full learning rate, when a share of the training is over."""
    warm_up = min(1.0, 0.001 + share / WARM_UP)
    if in_steps:
        return warm_up * (1 if share < 0.8 else 0.1 if share < 0.95 else 0.01)
    return warm_up * 0.5 * (1 + math.cos(math.pi * min(share, 1)))
