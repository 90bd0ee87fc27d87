"""Training and evaluation with Detectron2's trainer."""

from __future__ import annotations

from collections import OrderedDict

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.solver import build_optimizer
from torch import nn
from torch.nn.utils import clip_grad_norm_

from rdsnet.data.mapper import RDSNetDatasetMapper
from rdsnet.evaluation import RDSNetEvaluator


class Trainer(DefaultTrainer):
    """Detectron2's trainer with RDSNet's data mapper, evaluator and gradient clipping."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return build_detection_train_loader(cfg, mapper=RDSNetDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        mapper = RDSNetDatasetMapper(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> RDSNetEvaluator:
        return RDSNetEvaluator.from_config(cfg, dataset_name)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Detectron2's optimizer; adds the clip type "full_model" to its "value" and "norm".

        "full_model" scales all gradients together so that their total norm is at most
        ``SOLVER.CLIP_GRADIENTS.CLIP_VALUE``.
        """
        clip = cfg.SOLVER.CLIP_GRADIENTS
        if not (clip.ENABLED and clip.CLIP_TYPE == "full_model"):
            return build_optimizer(cfg, model)
        unclipped = cfg.clone()
        unclipped.defrost()
        unclipped.SOLVER.CLIP_GRADIENTS.ENABLED = False
        optimizer = build_optimizer(unclipped, model)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.register_step_pre_hook(
            lambda *_: clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE) and None
        )
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
