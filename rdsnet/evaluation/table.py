"""The results of an evaluation as a table for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tabulate import tabulate

from rdsnet.formatting import decimal

ROWS = (("bbox", "box"), ("bbox_regressed", "box without MBRM"), ("segm", "mask"))
METRICS = ("AP", "AP50", "AP75", "AP90", "APs", "APm", "APl")


def what_is_missing(
    results: Mapping[str, Mapping[str, float]],
    dataset_name: str,
    num_objects: int,
    num_detections: int,
    metrics: Sequence[str] = METRICS,
) -> str:
    """Why :func:`results_table` shows a "-", in words; "" where it shows none."""
    shown = [results[task].get(metric, math.nan) for task in results for metric in metrics]
    if not any(map(math.isnan, shown)):
        return ""
    if not num_objects:
        return (
            f"There is no AP: data set '{dataset_name}' has no objects (crowds do not count), so "
            "nothing can be measured on it. Give validation data with objects."
        )
    if not num_detections:
        return (
            f"There is no AP: nothing was detected in data set '{dataset_name}', which has "
            f"{num_objects} objects."
        )
    return f"-: data set '{dataset_name}' has no objects of that size."


def results_table(
    results: Mapping[str, Mapping[str, float]],
    metrics: Sequence[str] = METRICS,
    tablefmt: str = "github",
) -> str:
    """Box AP, box AP without MBRM and mask AP of one data set, one row each.

    Args:
        results: what :meth:`RDSNetEvaluator.evaluate` returns; rows that it lacks are left out.
        metrics: the columns. What could not be computed (NaN) is shown as "-".
        tablefmt: a format of the package tabulate; the default is also valid Markdown.
    """
    rows = []
    for task, title in ROWS:
        if task in results:
            values = (results[task].get(metric, math.nan) for metric in metrics)
            rows.append([title, *(decimal(value, missing="-") for value in values)])
    alignment = ("left", *("right" for _ in metrics))
    return tabulate(
        rows,
        headers=["", *metrics],
        tablefmt=tablefmt,
        colalign=alignment,
        disable_numparse=True,  # "60.0" stays "60.0"
    )
