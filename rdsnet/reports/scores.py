"""The section of a report on scores: from which on to show objects, and what is confused."""

from __future__ import annotations

import numpy as np

from rdsnet.evaluation.thresholds import ScoreCurve, Thresholds, read_thresholds
from rdsnet.formatting import decimal
from rdsnet.reports.evaluation import Evaluation
from rdsnet.visualization import figures
from rdsnet.visualization.page import Figure, Section, Table

_SCORES = np.arange(0, 101) / 100
_MOST_CURVES = 6  # as many as there are colours
_MOST_NAMED = 12  # classes of a confusion matrix that is drawn
_MOST_CONFUSIONS = 15


def scores_section(evaluation: Evaluation) -> Section | None:
    """Precision, recall and F1 over scores, and confusions; None: nothing is known."""
    thresholds = read_thresholds(evaluation.folder)
    if thresholds is None or thresholds.best_scores is None:
        return None
    what = "mask" if thresholds.task == "segm" else "box"
    text = (
        "Precision is the share of what is shown that is right, recall the share of the objects "
        f"that are found, F1 their harmonic mean. A detection is right when its {what} has an IoU "
        "of at least 0.5 with an object of its class that no detection of a higher score has; "
        "those inside a crowd do not count. The score of the best F1 is what rdsnet predict takes "
        "as --score-threshold auto if the model was completed by this evaluation at the end of its "
        "training. AP counts detections of all scores."
    )
    made = [_curves(thresholds)]
    tables = [_best(thresholds)]
    if len(thresholds.classes) <= _MOST_NAMED:
        svg = figures.confusion_figure(thresholds.confusion, thresholds.class_names)
        made.append(Figure(svg, f"{_WHAT_IS_CONFUSED} Colour: share of a row."))
    elif (confusions := _confusions(thresholds)).rows:
        tables.append(confusions)
    return Section("Which score?", text, figures=made, tables=tables)


_WHAT_IS_CONFUSED = (
    "What objects were found as, from the best score of every class on. Found as nothing: missed. "
    "Annotated as nothing: a detection without an object. A detection that has no object of its "
    "own class takes a free one of another with an IoU of at least 0.5."
)


def _curves(thresholds: Thresholds) -> Figure:
    named = sorted(
        zip(thresholds.class_names, thresholds.classes, strict=True), key=lambda c: -c[1].objects
    )
    shown = {name: curve.at(_SCORES)["F1"] for name, curve in named[:_MOST_CURVES]}
    together = thresholds.together
    svg = figures.score_figure(
        _SCORES, together.at(_SCORES), together.best_score, shown if len(named) > 1 else {}
    )
    caption = f"When objects are shown from a score on; dashed: {together.best_score:g}."
    if len(named) > len(shown):
        caption += f" Classes: the {len(shown)} with most objects."
    return Figure(svg, caption)


def _best(thresholds: Thresholds) -> Table:
    rows = [
        _row(name, curve)
        for name, curve in zip(thresholds.class_names, thresholds.classes, strict=True)
    ]
    caption = "At the score of the best F1."
    if len(rows) > 1:
        rows.insert(0, _row("all, with one score", thresholds.together))
    if any(curve.best is None for curve in thresholds.classes):
        caption += " –: nothing of the class is found; the score of all classes serves for it."
    headers = ("class", "objects", "score", "precision", "recall", "F1")
    return Table(headers, rows, caption)


def _row(name: str, curve: ScoreCurve) -> tuple[str, ...]:
    if curve.best is None:
        return (name, f"{curve.objects:,}", *[decimal(None)] * 4)
    values = (curve.best_score, *(v[curve.best] for v in (curve.precision, curve.recall, curve.f1)))
    return (name, f"{curve.objects:,}", *(decimal(value, 3) for value in values))


def _confusions(thresholds: Thresholds) -> Table:
    """The most frequent ones between classes, where the matrix is too large to be drawn."""
    between = thresholds.confusion[:-1, :-1].copy()
    np.fill_diagonal(between, 0)
    order = np.argsort(-between, axis=None, kind="stable")[:_MOST_CONFUSIONS]
    pairs = zip(*np.unravel_index(order, between.shape))
    names = thresholds.class_names
    rows = [
        (f"{names[a]}, found as {names[b]}", f"{between[a, b]:,}")
        for a, b in pairs
        if between[a, b]
    ]
    caption = f"The most frequent confusions. {_WHAT_IS_CONFUSED}"
    return Table(("objects", "how many"), rows, caption)
