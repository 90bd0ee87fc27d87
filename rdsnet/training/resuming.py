"""Going on with a checkpoint: what it has to hold, and what the config changes in it.

By then :func:`rdsnet.checkpoint.changes.refuse_other_run` has compared configs. What is here also
looks at checkpoints that hold none.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from rdsnet.modeling.loading import OPTIONAL

_MOST_SHOWN = 5
_REMEDY = (
    "Go on with the config that the run began with, or choose another OUTPUT_DIR; MODEL.WEIGHTS "
    "FILE starts a new run from its weights, other classes included, if they are of the same model."
)


def require_fitting_weights(model: nn.Module, weights: Mapping[str, Tensor], path: str) -> None:
    """Raise ValueError unless a checkpoint's weights are those of this model, every one of them."""
    misfits = []
    for name, own in model.state_dict().items():
        if name not in weights:
            misfits += [] if name in OPTIONAL else [f"{name} is missing"]
        elif weights[name].shape != own.shape:
            shapes = tuple(weights[name].shape), tuple(own.shape)
            misfits.append(f"{name} has the shape {shapes[0]} instead of {shapes[1]}")
    if misfits:
        raise ValueError(f"{path} is of another model: {_listed(misfits)}. {_REMEDY}")


def require_fitting_state(optimizer: torch.optim.Optimizer, state: Mapping, path: str) -> None:
    """Raise ValueError unless a checkpoint's optimizer is of the same kind, for as many weights.

    Args:
        state: what ``optimizer.state_dict()`` was then.
    """
    own = optimizer.state_dict()
    sizes, own_sizes = ([len(g["params"]) for g in s["param_groups"]] for s in (state, own))
    if sizes != own_sizes:
        raise ValueError(
            f"{path} has an optimizer for other weights: groups of {sizes} parameters, not of "
            f"{own_sizes}. {_REMEDY}"
        )
    # Adam's decay rates of the moments, SGD's momentum.
    kinds = {name for name in ("betas", "momentum") if name in own["param_groups"][0]}
    if not kinds <= state["param_groups"][0].keys():
        raise ValueError(
            f"{path} has the state of another optimizer than SOLVER.OPTIMIZER's "
            f"{type(optimizer).__name__}. {_REMEDY}"
        )


class ConfiguredRates:
    """Learning rate, momentum and weight decay as the config has them.

    A checkpoint brings those that it was written with. Made before it is loaded, restored after.

    Args:
        optimizer, scheduler: as built from the config.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: LRScheduler) -> None:
        self._optimizer, self._scheduler = optimizer, scheduler
        self._groups = [
            {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        self._base_rates = list(scheduler.base_lrs)

    def restore(self) -> None:
        """The rate is the schedule's at the place where the scheduler is now."""
        self._scheduler.base_lrs = self._base_rates
        rates = self._scheduler.get_lr()
        for group, own, rate in zip(self._optimizer.param_groups, self._groups, rates, strict=True):
            group.update(own, lr=rate)


def _listed(texts: list[str]) -> str:
    return ", ".join(texts[:_MOST_SHOWN]) + (", ..." if len(texts) > _MOST_SHOWN else "")
