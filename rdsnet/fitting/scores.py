"""The lowest scores to show, fitted after everything else has converged.

How sure a detector is of what it finds depends on its loss, its data and its training: the score
from which on most of what is shown is right differs from model to model, and between the classes of
one. For every class it is where F1 on validation images is best
(:mod:`rdsnet.evaluation.thresholds`). Nothing is run for it: the detections are those that an
evaluation has left.
"""

from __future__ import annotations

from itertools import chain

from detectron2.config import CfgNode

from rdsnet.evaluation.breakdown import results_folder
from rdsnet.evaluation.detections import Detections
from rdsnet.evaluation.thresholds import Thresholds, measure_thresholds


def fit_score_thresholds(cfg: CfgNode) -> Thresholds:
    """Of the model that was evaluated last, over all data sets of ``DATASETS.TEST`` together.

    Returns:
        The curves, with a best score for every class.

    Raises:
        ValueError: there is no validation set, or no object of it was found.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError(
            "DATASETS.TEST is empty. The lowest scores to show are fitted to validation images."
        )
    found = [Detections(name, results_folder(cfg, name)) for name in cfg.DATASETS.TEST]
    task = "segm" if any(detections.main_task == "segm" for detections in found) else "bbox"
    images = chain.from_iterable(detections.images(task) for detections in found)
    thresholds = measure_thresholds(images, found[0].class_names, task)
    if thresholds.best_scores is None:
        raise ValueError(f"the model finds no object in {', '.join(cfg.DATASETS.TEST)}")
    return thresholds
