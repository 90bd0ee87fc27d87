"""Average precision split up: by IoU threshold, by size of the objects, by class.

Kept in ``breakdown.json`` beside the detections of an evaluation, for the report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from pycocotools.cocoeval import COCOeval

FILE_NAME = "breakdown.json"
_SIZES = (
    "all",
    "small",
    "medium",
    "large",
)  # COCO's: below 32^2, below 96^2, from there on, pixels


def ap_breakdown(evaluation: COCOeval, class_names: Sequence[str]) -> dict[str, Any]:
    """APs in 0..100, None where there are no objects.

    Args:
        evaluation: of one task, accumulated, with COCO's four area ranges.
        class_names: in the order of COCO's category ids.

    Returns:
        ``thresholds`` (T IoUs), ``sizes`` {size: T APs}, ``classes`` (per class its ``name``,
        ``AP`` and ``AP50``).
    """
    # (T, recall, class, area range, max. detections); -1: no objects
    precision = evaluation.eval["precision"][..., -1]
    iou_50 = int(np.argmin(np.abs(evaluation.params.iouThrs - 0.5)))
    return {
        "thresholds": [round(float(t), 2) for t in evaluation.params.iouThrs],
        "sizes": {
            name: [_mean(at_threshold[..., area]) for at_threshold in precision]
            for area, name in enumerate(_SIZES)
        },
        "classes": [
            {
                "name": name,
                "AP": _mean(precision[:, :, k, 0]),
                "AP50": _mean(precision[iou_50, :, k, 0]),
            }
            for k, name in enumerate(class_names)
        ],
    }


def results_folder(cfg: CfgNode, dataset_name: str) -> Path:
    """Where an evaluation writes: ``OUTPUT_DIR/inference``, or a folder of the data set's name
    inside it when ``DATASETS.TEST`` names several.
    """
    folder = Path(cfg.OUTPUT_DIR) / "inference"
    return folder / dataset_name if len(cfg.DATASETS.TEST) > 1 else folder


def write_breakdown(
    folder: str | Path,
    results: Mapping[str, Mapping[str, float]],
    breakdown: Mapping[str, Mapping[str, Any]],
) -> None:
    """Keep the results of :class:`RDSNetEvaluator` and the breakdown of every task."""
    summary = {
        task: {name: None if math.isnan(value) else value for name, value in metrics.items()}
        for task, metrics in results.items()
    }
    content = {"results": summary, "breakdown": breakdown}
    path = Path(folder) / FILE_NAME
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_breakdown(folder: str | Path) -> dict[str, Any]:
    """``results`` {task: {metric: value or None}} and ``breakdown`` {task: see above}.

    Raises:
        FileNotFoundError: if no evaluation has written it.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' does not exist: no evaluation has written it")
    return json.loads(path.read_text(encoding="utf-8"))


def _mean(precision: np.ndarray) -> float | None:
    precision = precision[precision > -1]
    return float(precision.mean() * 100) if precision.size else None
