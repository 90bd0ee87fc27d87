"""After training: ``OUTPUT_DIR/model_best.pth``, the model to use.

The best one by ``TEST.BEST_METRIC`` (the last one, and that is said, where nothing was compared),
averaged with ``SOLVER.EMA``, with a mask threshold chosen for it
(``MODEL.RDSNET.FIT_MASK_THRESHOLD``) and with MBRM fitted to it
(``MODEL.RDSNET.MBRM.FIT.AFTER_TRAINING``).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import Tensor

from rdsnet.checkpoint.description import save_model
from rdsnet.evaluation import results_table
from rdsnet.evaluation.truth import without_objects
from rdsnet.fitting.fit import fit_mbrm, load_unrefined_model, with_kernel, with_refinement
from rdsnet.fitting.threshold import fit_threshold
from rdsnet.reports.report import report_run
from rdsnet.training.hooks import BEST_MODEL
from rdsnet.training.trainer import Trainer

logger = logging.getLogger(__name__)

# How much lower box AP may be with the fitted kernel than with the one before.
_TOLERATED_LOSS = 0.05


def finish(cfg: CfgNode, results: OrderedDict | None) -> OrderedDict | None:
    """Complete ``model_best.pth`` of a finished training run.

    Does nothing when the config asks for nothing of it, or the run has not come to its end.

    Args:
        cfg: of the run.
        results: of its last evaluation.

    Returns:
        The evaluation of ``model_best.pth``, or ``results`` where it was not evaluated again.
    """
    rdsnet = cfg.MODEL.RDSNET
    fit_wanted = rdsnet.MBRM.FIT.AFTER_TRAINING or rdsnet.FIT_MASK_THRESHOLD
    if not (fit_wanted or cfg.TEST.BEST_METRIC or cfg.SOLVER.EMA.ENABLED):
        return results
    folder = Path(cfg.OUTPUT_DIR)
    last = folder / "last_checkpoint"
    if not last.is_file() or last.read_text().strip() != "model_final.pth":
        return results
    best = folder / BEST_MODEL
    compared = bool(cfg.TEST.BEST_METRIC and cfg.DATASETS.TEST) and best.is_file()
    if not compared:
        save_model(best, _final_weights(folder / "model_final.pth"), cfg)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(best)
    if rdsnet.FIT_MASK_THRESHOLD:
        results = _fit_threshold(cfg, best) or results
    if rdsnet.MBRM.FIT.AFTER_TRAINING:
        results = _fit_mbrm(cfg, best) or results
    if not compared:
        logger.info(
            f"{best} is the model after the last iteration: nothing was compared, since "
            f"{_why_not_compared(cfg)}"
        )
    logger.info(
        f"The model to use is {best}. Try it: "
        f"rdsnet predict --weights {best} --input PHOTOS --output {folder / 'predictions'}"
    )
    return results


def _why_not_compared(cfg: CfgNode) -> str:
    if not cfg.DATASETS.TEST:
        return "there is no validation data"
    if not cfg.TEST.BEST_METRIC:
        return "TEST.BEST_METRIC is empty"
    empty = ", ".join(f"'{name}'" for name in without_objects(cfg.DATASETS.TEST))
    reason = f"data set {empty} has no objects" if empty else "nothing was detected"
    return f"{cfg.TEST.BEST_METRIC} did not exist in any evaluation: {reason}"


def _final_weights(path: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint where it has some, else its own."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    if "ema" not in content:
        return content["model"]
    prefix = "module."
    averaged = content["ema"].items()
    return {name.removeprefix(prefix): v for name, v in averaged if name.startswith(prefix)}


def _fit_threshold(cfg: CfgNode, best: Path) -> OrderedDict | None:
    """Choose the threshold and put it into ``cfg`` and the checkpoint's config."""
    try:
        fit = fit_threshold(cfg, load_unrefined_model(cfg))
    except ValueError as error:
        logger.warning(f"The mask threshold stays {cfg.MODEL.RDSNET.MASK_THRESHOLD}: {error}")
        return None
    logger.info(fit.text())
    if fit.threshold == cfg.MODEL.RDSNET.MASK_THRESHOLD:
        return None
    cfg.MODEL.RDSNET.MASK_THRESHOLD = fit.threshold
    content = torch.load(best, map_location="cpu", weights_only=True)
    more = {"best": content["best"]} if "best" in content else {}
    save_model(best, content["model"], cfg, **more)
    if cfg.MODEL.RDSNET.MBRM.FIT.AFTER_TRAINING:
        return None  # evaluated with the new kernel
    return evaluate(cfg, content["model"])


def _fit_mbrm(cfg: CfgNode, best: Path) -> OrderedDict | None:
    """Fit MBRM and put the kernel into the checkpoint, unless box AP falls by it."""
    content = torch.load(best, map_location="cpu", weights_only=True)
    record = content.get("best", {})
    try:
        mbrm, fit = fit_mbrm(cfg)
    except ValueError as error:
        logger.warning(f"MBRM keeps the kernel that it had: {error}")
        return None
    weights = with_kernel(content["model"], mbrm, fit.choice)
    fitted_cfg = with_refinement(cfg, fit.choice)
    logger.info(
        f"MBRM fitted to {fit.objects} objects: loss {fit.loss_initial:.4f} before, "
        f"{fit.loss:.4f} after"
    )
    more = {"best": record} if record else {}
    if not cfg.DATASETS.TEST:
        save_model(best, weights, fitted_cfg, **more)
        return None
    results = evaluate(fitted_cfg, weights)
    before, after = record.get("box_ap"), results["bbox"]["AP"]
    if before is not None and not after >= before - _TOLERATED_LOSS:
        logger.warning(
            f"MBRM keeps the kernel that it had: box AP is {before:.2f} with it, {after:.2f} with "
            "the fitted one"
        )
        return evaluate(cfg, content["model"])
    save_model(best, weights, fitted_cfg, **more)
    logger.info(f"{best.name}:\n{results_table(results)}")
    return results


def evaluate(cfg: CfgNode, weights: dict[str, Tensor]) -> OrderedDict:
    """Evaluate weights on ``DATASETS.TEST``."""
    model = Trainer.build_model(cfg).eval()
    model.load_state_dict(weights)
    results = Trainer.test(cfg, model)
    report_run(cfg, model)
    return results
