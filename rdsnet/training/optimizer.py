"""The optimizer that a config asks for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn
from torch.nn.utils import clip_grad_norm_

from rdsnet.config import backbone_lr_factor, flat


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that ``SOLVER.OPTIMIZER`` names, with Detectron2's parameter groups.

    Where ``SOLVER.BACKBONE_LR_FACTOR`` counts (:func:`rdsnet.config.backbone_lr_factor`), each of
    these groups becomes two, since the backbone's parameters learn at a rate of their own.

    Adds the clip type "full_model" to Detectron2's "value" and "norm": all gradients are scaled
    together so that their total norm is at most ``SOLVER.CLIP_GRADIENTS.CLIP_VALUE``.

    Raises:
        ValueError: for a name other than "SGD" and "AdamW"; for a factor that is negative, or where
            the model has no backbone.
    """
    solver = cfg.SOLVER
    clip_all = solver.CLIP_GRADIENTS.ENABLED and solver.CLIP_GRADIENTS.CLIP_TYPE == "full_model"
    if solver.OPTIMIZER == "SGD":
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = solver.CLIP_GRADIENTS.ENABLED and not clip_all
        optimizer = build_sgd(cfg, model)
    elif solver.OPTIMIZER == "AdamW":
        groups = get_default_optimizer_params(model, weight_decay_norm=solver.WEIGHT_DECAY_NORM)
        # On a CPU one pass over each parameter takes a third of the time of several.
        optimizer = torch.optim.AdamW(
            groups,
            lr=solver.BASE_LR,
            weight_decay=solver.WEIGHT_DECAY,
            fused=torch.device(cfg.MODEL.DEVICE).type == "cpu" or None,
        )
        optimizer = maybe_add_gradient_clipping(cfg, optimizer) if not clip_all else optimizer
    else:
        raise ValueError(f"SOLVER.OPTIMIZER must be SGD or AdamW, got '{solver.OPTIMIZER}'")
    _scale_backbone_rate(optimizer, model, backbone_lr_factor(flat(cfg)))
    if clip_all:
        optimizer.register_step_pre_hook(_clip_total_norm(solver.CLIP_GRADIENTS))
    return optimizer


def _scale_backbone_rate(optimizer: torch.optim.Optimizer, model: nn.Module, factor: float) -> None:
    if factor == 1:
        return
    if not hasattr(model, "backbone"):
        raise ValueError(
            f"SOLVER.BACKBONE_LR_FACTOR {factor:g} needs a model with a backbone, and "
            f"{type(model).__name__} has none: set it to 1"
        )
    # Without a pyramid all of the backbone.
    slow = set(getattr(model.backbone, "bottom_up", model.backbone).parameters())
    for group in list(optimizer.param_groups):
        moved = [p for p in group["params"] if p in slow]
        if moved:
            group["params"] = [p for p in group["params"] if p not in slow]
            optimizer.add_param_group({**group, "params": moved, "lr": factor * group["lr"]})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]


def _clip_total_norm(clip: CfgNode) -> Callable[..., None]:
    """Hook that scales all gradients of an optimizer to a total norm of at most CLIP_VALUE."""

    def hook(optimizer: torch.optim.Optimizer, *_) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)

    return hook
