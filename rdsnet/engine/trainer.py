"""Training and evaluation with Detectron2's trainer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.solver import build_optimizer, get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn
from torch.nn.utils import clip_grad_norm_

from rdsnet.data.mapper import build_mapper
from rdsnet.engine.hooks import StopTraining, with_own_hooks
from rdsnet.engine.report import ReportHook
from rdsnet.evaluation import RDSNetEvaluator


def clip_total_norm(clip: CfgNode) -> Callable[..., None]:
    """Hook that scales all gradients of an optimizer to a total norm of at most CLIP_VALUE."""

    def hook(optimizer: torch.optim.Optimizer, *_) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)

    return hook


class Trainer(DefaultTrainer):
    """Detectron2's trainer with RDSNet's data mapper, evaluator and gradient clipping."""

    def train(self) -> OrderedDict | None:
        """Train to the end and return the results of the last evaluation."""
        with suppress(StopTraining):
            super().train()
        return getattr(self, "_last_eval_results", None)

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's hooks, those for the best model and averaged weights, and the report."""
        return [*with_own_hooks(self, super().build_hooks()), ReportHook(self.cfg)]

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return build_detection_train_loader(cfg, mapper=build_mapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        mapper = build_mapper(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> RDSNetEvaluator:
        return RDSNetEvaluator.from_config(cfg, dataset_name)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer that ``SOLVER.OPTIMIZER`` names, with Detectron2's parameter groups.

        Adds the clip type "full_model" to Detectron2's "value" and "norm": all gradients are scaled
        together so that their total norm is at most ``SOLVER.CLIP_GRADIENTS.CLIP_VALUE``.

        Raises:
            ValueError: for a name other than "SGD" and "AdamW".
        """
        solver = cfg.SOLVER
        clip_all = solver.CLIP_GRADIENTS.ENABLED and solver.CLIP_GRADIENTS.CLIP_TYPE == "full_model"
        if solver.OPTIMIZER == "SGD":
            cfg = cfg.clone()
            cfg.defrost()
            cfg.SOLVER.CLIP_GRADIENTS.ENABLED = solver.CLIP_GRADIENTS.ENABLED and not clip_all
            optimizer = build_optimizer(cfg, model)
        elif solver.OPTIMIZER == "AdamW":
            groups = get_default_optimizer_params(model, weight_decay_norm=solver.WEIGHT_DECAY_NORM)
            optimizer = torch.optim.AdamW(
                groups, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY
            )
            optimizer = maybe_add_gradient_clipping(cfg, optimizer) if not clip_all else optimizer
        else:
            raise ValueError(f"SOLVER.OPTIMIZER must be SGD or AdamW, got '{solver.OPTIMIZER}'")
        if clip_all:
            optimizer.register_step_pre_hook(clip_total_norm(solver.CLIP_GRADIENTS))
        return optimizer

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> OrderedDict:
        """Evaluate on ``DATASETS.TEST``. Masks go to COCO's RLE without becoming dense."""
        rdsnet = model.module if hasattr(model, "module") else model
        dense_masks, rdsnet.dense_masks = getattr(rdsnet, "dense_masks", True), False
        try:
            return super().test(cfg, model, evaluators)
        finally:
            rdsnet.dense_masks = dense_masks
