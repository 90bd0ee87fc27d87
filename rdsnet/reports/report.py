"""The report of a run: ``OUTPUT_DIR/report.html``, one file to look at, keep or send.

Made at the end of training and after an evaluation, from the files in OUTPUT_DIR (metrics.json,
inference/) and, for the picture of the representations, the model. A report that cannot be made is
a warning in the log: it never ends a run.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

import detectron2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from rdsnet import __version__
from rdsnet.evaluation.breakdown import FILE_NAME as BREAKDOWN_FILE
from rdsnet.evaluation.breakdown import results_folder
from rdsnet.formatting import decimal
from rdsnet.reports import evaluation as parts
from rdsnet.reports.evaluation import Evaluation
from rdsnet.reports.machine import machine
from rdsnet.reports.representations import representations_section
from rdsnet.reports.scores import scores_section
from rdsnet.visualization import figures
from rdsnet.visualization.curves import read_metrics
from rdsnet.visualization.page import Figure, Page, Section

logger = logging.getLogger(__name__)

_FILE_NAME = "report.html"


class ReportHook(HookBase):
    """Writes the report when training has come to its end. Goes behind the hook that writes
    metrics, which it reads; does nothing with ``TEST.REPORT False``.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter or self._ended_early():
            report_run(self.cfg, self.trainer.model)

    def _ended_early(self) -> bool:
        """Whether training has stopped on purpose, which an interruption has not."""
        last = Path(self.cfg.OUTPUT_DIR) / "last_checkpoint"
        return last.is_file() and last.read_text().strip() == "model_final.pth"


def report_run(cfg: CfgNode, model: nn.Module | None = None) -> Path | None:
    """Write the report if ``TEST.REPORT`` says so, in the main process; never raises.

    Returns:
        Its path, or None if there is none.
    """
    if not cfg.TEST.REPORT or not comm.is_main_process():
        return None
    try:
        path = write_report(cfg, model)
    except Exception as error:
        logger.warning(
            f"The report could not be written: {error or type(error).__name__}. All other results "
            f"are in {cfg.OUTPUT_DIR}. TEST.REPORT False switches it off.",
            exc_info=True,
        )
        return None
    logger.info(f"Report: {path}")
    return path


def write_report(cfg: CfgNode, model: nn.Module | None = None) -> Path:
    """Write ``OUTPUT_DIR/report.html``.

    Args:
        cfg: of the run. Evaluations are those of ``DATASETS.TEST``, as far as they have left their
            files in ``OUTPUT_DIR/inference``.
        model: for the picture of the representations; left as it was.

    Returns:
        The file's path. A section that cannot be made says why; the others are there.
    """
    logger.info("Writing the report ...")
    output = Path(cfg.OUTPUT_DIR)
    page = Page(f"{output.resolve().name}: {cfg.MODEL.META_ARCHITECTURE}", _subtitle(cfg))
    curves = read_metrics(output / "metrics.json") if (output / "metrics.json").is_file() else {}
    evaluations: list[Evaluation] = []
    for name in cfg.DATASETS.TEST:
        _add(page, "Evaluation", lambda name=name: _evaluate(cfg, name, evaluations))
    for evaluation in evaluations:
        _add(page, "Average precision", lambda e=evaluation: parts.results_section(e))
    if evaluations:
        page.numbers = _numbers(evaluations[0])
    if curves:
        _add(page, "Training", lambda: _training_section(curves, cfg))
    for evaluation in evaluations:
        first = len(page.sections)
        _add(page, "By overlap and size", lambda e=evaluation: parts.parts_section(e))
        _add(page, "By class", lambda e=evaluation: parts.classes_section(e))
        _add(page, "Which score?", lambda e=evaluation: scores_section(e))
        _add(page, "Errors", lambda e=evaluation: parts.errors_section(e))
        _add(page, "Boundary refinement", lambda e=evaluation: parts.mbrm_section(e))
        _add(page, "Examples", lambda e=evaluation: parts.examples_sections(e))
        if len(evaluations) > 1:
            for section in page.sections[first:]:
                section.title += f" ({evaluation.name})"
    if model is not None:
        quality = evaluations[0].quality if evaluations else None
        _add(page, "Representations", lambda: representations_section(cfg, model, quality))
    page.facts = _facts(cfg, curves)
    path = output / _FILE_NAME
    output.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(page.html(), encoding="utf-8")
    unfinished.replace(path)
    return path


def _add(page: Page, title: str, make: Callable[[], Section | Iterable[Section] | None]) -> None:
    """Append what ``make`` returns; where that fails, the reason instead."""
    try:
        made = make()
        sections = [made] if isinstance(made, Section) else list(made or ())
    except Exception as error:
        logger.warning(f"The report lacks its section '{title}': {error}", exc_info=True)
        sections = [Section(title, f"This could not be made: {error or type(error).__name__}.")]
    page.sections += sections


def _evaluate(cfg: CfgNode, name: str, evaluations: list[Evaluation]) -> None:
    folder = results_folder(cfg, name)
    if (folder / BREAKDOWN_FILE).is_file():
        evaluations.append(Evaluation(name, folder))


def _numbers(evaluation: Evaluation) -> list[tuple[str, str]]:
    shown = [("bbox", "AP", "box AP"), ("segm", "AP", "mask AP"), ("segm", "AP50", "mask AP50")]
    numbers = [
        (decimal(evaluation.ap(task, metric)), name)
        for task, metric, name in shown
        if task in evaluation.results
    ]
    gain = evaluation.ap("bbox") - evaluation.ap("bbox_regressed")
    if np.isfinite(gain):
        numbers.append((decimal(gain, signed=True), "box AP by MBRM"))
    return numbers


def _training_section(curves: dict[str, list[tuple[int, float]]], cfg: CfgNode) -> Section:
    # The last evaluation is logged one iteration later than the last losses.
    losses = [points for name, points in curves.items() if "loss" in name]
    last = max(points[-1][0] for points in losses or curves.values()) + 1
    text = f"{last:,} iterations of {cfg.SOLVER.IMS_PER_BATCH} images."
    seconds = [value for _, value in curves.get("time", ())]
    if seconds:
        text += f" One took {np.median(seconds):.2f} s (median)."
    made = [
        Figure(
            figures.loss_figure(curves),
            "Losses over the iterations, on a logarithmic axis: faint as they were logged, strong "
            "as a running mean.",
        )
    ]
    several = len(cfg.DATASETS.TEST) > 1
    for name in cfg.DATASETS.TEST:
        svg = figures.ap_over_time_figure(curves, name if several else "")
        if svg:
            caption = "AP of every evaluation during training"
            made.append(Figure(svg, caption + (f", on {name}." if several else ".")))
    return Section("Training", text, figures=made)


def _subtitle(cfg: CfgNode) -> str:
    tested = ", ".join(cfg.DATASETS.TEST) or "no data set"
    return f"Evaluated on {tested}. Written on {datetime.now():%d %B %Y, %H:%M}."


def _facts(cfg: CfgNode, curves: dict) -> list[tuple[str, str]]:
    solver = cfg.SOLVER
    facts = [
        ("trained on", ", ".join(cfg.DATASETS.TRAIN) or "–"),
        ("evaluated on", ", ".join(cfg.DATASETS.TEST) or "–"),
        ("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS or "none: from random weights"),
        (
            "model",
            f"{cfg.MODEL.META_ARCHITECTURE}, {cfg.MODEL.RDSNET.OBJECT_STREAM}, "
            f"{cfg.MODEL.BACKBONE.NAME}, {cfg.MODEL.RDSNET.REPRESENTATION_DIM} dimensions",
        ),
        (
            "schedule",
            f"{solver.OPTIMIZER}, learning rate {solver.BASE_LR:g}, {solver.MAX_ITER:,} "
            f"iterations of {solver.IMS_PER_BATCH} images, seed {cfg.SEED}",
        ),
        ("machine", machine(cfg)),
        (
            "versions",
            f"rdsnet {__version__}, Python {platform.python_version()}, torch "
            f"{torch.__version__}, Detectron2 {detectron2.__version__}",
        ),
        ("files", str(Path(cfg.OUTPUT_DIR).resolve())),
    ]
    return facts
