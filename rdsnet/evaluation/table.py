"""The results of an evaluation as a table for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tabulate import tabulate

from rdsnet.formatting import decimal

ROWS = (("bbox", "box"), ("bbox_regressed", "box without MBRM"), ("segm", "mask"))
METRICS = ("AP", "AP50", "AP75", "AP90", "APs", "APm", "APl")


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
