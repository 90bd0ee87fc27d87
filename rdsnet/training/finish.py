"""After training: ``OUTPUT_DIR/model_best.pth``, the model to use.

The best one by ``TEST.BEST_METRIC`` (the last one, and that is said, where nothing was compared),
averaged with ``SOLVER.EMA``, with a mask threshold chosen for it
(``MODEL.RDSNET.FIT_MASK_THRESHOLD``), with MBRM fitted to it
(``MODEL.RDSNET.MBRM.FIT.AFTER_TRAINING``), and with the lowest scores that are worth showing
(``MODEL.RDSNET.FIT_SCORE_THRESHOLDS``). It also says how large the objects are that it has learnt
(``DATASETS.OBJECT_SIZES``).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import Tensor

from rdsnet.checkpoint.description import save_model
from rdsnet.data.object_sizes import measured_object_sizes
from rdsnet.evaluation import results_table
from rdsnet.evaluation.thresholds import DEFAULT_SCORE
from rdsnet.evaluation.truth import without_objects
from rdsnet.fitting.fit import fit_mbrm, load_unrefined_model, with_kernel, with_refinement
from rdsnet.fitting.scores import fit_score_thresholds
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
    fit_wanted = fit_wanted or rdsnet.FIT_SCORE_THRESHOLDS
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
    _keep_object_sizes(cfg, best)
    of_best = None  # the evaluation of what is in the file
    if rdsnet.FIT_MASK_THRESHOLD:
        of_best = _fit_threshold(cfg, best)
    if rdsnet.MBRM.FIT.AFTER_TRAINING:
        of_best = _fit_mbrm(cfg, best) or of_best
    if rdsnet.FIT_SCORE_THRESHOLDS:
        of_best = _fit_score_thresholds(cfg, best, of_best)
    results = of_best or results
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


def _keep_object_sizes(cfg: CfgNode, best: Path) -> None:
    """Put the sizes of the training's objects into ``cfg`` and the checkpoint's config."""
    if cfg.MODEL.META_ARCHITECTURE != "RDSNet":  # may resize by itself, as YOLACT does
        return
    try:
        sizes = measured_object_sizes(cfg)
    except (KeyError, OSError, ValueError) as error:
        logger.warning(f"How large the training's objects are is not kept with the model: {error}")
        return
    if sizes is None:
        return
    known = cfg.DATASETS.OBJECT_SIZES
    known.IN_IMAGES, known.IN_INPUT = list(sizes.in_images), list(sizes.in_input)
    content = torch.load(best, map_location="cpu", weights_only=True)
    more = {"best": content["best"]} if "best" in content else {}
    save_model(best, content["model"], cfg, **more)
    (low, _, high), (seen_low, _, seen_high) = sizes.in_images, sizes.in_input
    logger.info(
        f"The training's objects are of {low:.3g} to {high:.3g} px (percentiles 5 and 95), in the "
        f"network's input of {seen_low:.3g} to {seen_high:.3g} px"
    )


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
    results, more = evaluate(cfg, content["model"]), {}
    if "best" in content:  # boxes and scores depend on the threshold: what MBRM is compared with
        more["best"] = {**content["best"], "box_ap": results["bbox"]["AP"]}
    save_model(best, content["model"], cfg, **more)
    return results


def _fit_mbrm(cfg: CfgNode, best: Path) -> OrderedDict | None:
    """Fit MBRM; what comes of it goes into ``cfg`` and the checkpoint, unless box AP falls."""
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
        _keep(cfg, best, weights, fitted_cfg, more)
        return None
    results = evaluate(fitted_cfg, weights)
    before, after = record.get("box_ap"), results["bbox"]["AP"]
    if before is not None and not after >= before - _TOLERATED_LOSS:
        logger.warning(
            f"MBRM keeps the kernel that it had: box AP is {before:.2f} with it, {after:.2f} with "
            "the fitted one"
        )
        return evaluate(cfg, content["model"])
    _keep(cfg, best, weights, fitted_cfg, more)
    logger.info(f"{best.name}:\n{results_table(results)}")
    return results


def _keep(
    cfg: CfgNode, best: Path, weights: dict[str, Tensor], fitted: CfgNode, more: dict
) -> None:
    cfg.MODEL.RDSNET.MBRM = fitted.MODEL.RDSNET.MBRM
    save_model(best, weights, cfg, **more)


def _fit_score_thresholds(
    cfg: CfgNode, best: Path, results: OrderedDict | None
) -> OrderedDict | None:
    """Choose the lowest scores to show and put them into ``cfg`` and the checkpoint's config.

    Args:
        results: of the checkpoint, where it was evaluated already.
    """
    content = torch.load(best, map_location="cpu", weights_only=True)
    if results is None and cfg.DATASETS.TEST:
        results = evaluate(cfg, content["model"])
    try:
        fit = fit_score_thresholds(cfg)
    except (ValueError, FileNotFoundError) as error:
        logger.warning(f"Objects are shown from score {DEFAULT_SCORE:g} on: {error}")
        return results
    logger.info(fit.text())
    cfg.MODEL.RDSNET.SCORE_THRESHOLDS = fit.best_scores
    more = {"best": content["best"]} if "best" in content else {}
    save_model(best, content["model"], cfg, **more)
    return results


def evaluate(cfg: CfgNode, weights: dict[str, Tensor]) -> OrderedDict:
    """Evaluate weights on ``DATASETS.TEST``."""
    model = Trainer.build_model(cfg).eval()
    model.load_state_dict(weights)
    results = Trainer.test(cfg, model)
    report_run(cfg, model)
    return results
