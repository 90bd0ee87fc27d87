"""Tables 1 to 4 with our figures beside the paper's, and a sentence on what they say."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rdsnet.formatting import decimal
from rdsnet.paper import published
from rdsnet.paper.published import METRICS, APs
from rdsnet.visualization.page import Table

Runs = dict[str, list[dict]]
"""{training: results, one per seed, in the order of the seeds}"""

_IN_FIGURE = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")


# Points of AP that are not shown.
NO_DIFFERENCE = 0.05


@dataclass
class PaperTable:
    """A table and what it says.

    Attributes:
        key: "table1" to "table4".
        sentences: differences and whether the paper's direction shows.
    """

    key: str
    title: str
    table: Table
    sentences: list[str] = field(default_factory=list)


def table_1(runs: Runs, fps: dict[str, float]) -> PaperTable:
    """Mask AP of RDSNet and its peers."""
    titles = {
        "mask_rcnn": "Mask R-CNN",
        "cascade_mask_rcnn": "Cascade Mask R-CNN",
        "yolact": "YOLACT",
        "rdsnet_s": "RDSNet_s",
        "rdsnet_600": "RDSNet, smaller scale",
        "rdsnet": "RDSNet",
    }
    rows = []
    for name, title in titles.items():
        if name in runs:
            speed = decimal(fps.get(name), missing="-")
            rows.append([title, speed, *_aps(runs[name], _of("segm"))])
            rows += _paper_row(published.TABLE_1.get(name), 1)
    if rows:
        rows.append(["TensorMask, not trained", *["-"] * (1 + len(METRICS))])
        rows += _paper_row(published.TABLE_1["tensormask"], 1)
    sentences = [
        difference(runs, "RDSNet over Mask R-CNN", "rdsnet", "mask_rcnn", "segm", -1.6),
        difference(runs, "RDSNet_s over YOLACT", "rdsnet_s", "yolact", "segm", 2.3),
    ]
    table = Table(["mask AP", "images/s", *_IN_FIGURE], rows)
    return PaperTable("table1", "Table 1: instance segmentation", table, _there(sentences))


def table_2(runs: Runs, fps: dict[str, float]) -> PaperTable:
    """Box AP of the detector alone, trained with masks, and refined."""
    rows = []
    for name in ("mask_rcnn", "cascade_mask_rcnn"):
        if name in runs:
            title = "Mask R-CNN" if name == "mask_rcnn" else "Cascade Mask R-CNN"
            speed = decimal(fps.get(name), missing="-")
            rows.append([title, speed, *_aps(runs[name], _of("bbox"))])
            rows += _paper_row(published.TABLE_2.get(name), 1)
    for ending, scale in (("_600", ", smaller scale"), ("", "")):
        parts = (
            (f"retinanet{ending}", "bbox_regressed", f"RetinaNet{scale}", f"retinanet{ending}"),
            (f"rdsnet{ending}", "bbox_regressed", "+ mask", f"rdsnet{ending}, + mask"),
            (f"rdsnet{ending}", "bbox", "+ MBRM", f"rdsnet{ending}, + MBRM"),
        )
        for name, task, title, of_paper in parts:
            if name in runs:
                speed = decimal(fps.get(name), missing="-") if title != "+ mask" else ""
                rows.append([title, speed, *_aps(runs[name], _of(task))])
                rows += _paper_row(published.TABLE_2.get(of_paper), 1)
    regressed = ("rdsnet", "bbox_regressed")
    sentences = [
        difference(runs, "Masks beside boxes", regressed, "retinanet", "bbox_regressed", 1.3),
        difference(runs, "MBRM", "rdsnet", regressed, "bbox", 0.9),
    ]
    table = Table(["box AP", "images/s", *_IN_FIGURE], rows)
    return PaperTable("table2", "Table 2: object detection", table, _there(sentences))


@dataclass(frozen=True)
class _Row3:
    training: str
    expand: str
    marks: str  # of: correlation, TE, OHEM, IE


# The check marks of rows 2 to 6 as the text of Sec. 4.2 explains them.
_TABLE_3 = (
    _Row3("yolact", "1.0", ""),
    _Row3("corr", "1.0", "C"),
    _Row3("corr", "1.2", "CI"),
    _Row3("corr_te", "1.0", "CT"),
    _Row3("corr_te", "1.2", "CTI"),
    _Row3("rdsnet_s", "1.0", "CTO"),
    _Row3("rdsnet_s", "1.2", "CTOI"),
)


def table_3(runs: Runs) -> PaperTable:
    """Correlation, expanded cropping and hard example mining, one after the other."""
    values: list[dict[int, float]] = []  # by seed
    rows = []
    for number, row in enumerate(_TABLE_3):
        results = runs.get(row.training, [])
        aps = {run["seed"]: _value(run["metrics"][row.expand], "segm") for run in results}
        values.append(aps)
        gains = _differences(aps, values[0])
        paper = published.TABLE_3[number]
        rows.append(
            [
                str(number + 1),
                "correlation" if "C" in row.marks else "linear combination",
                *("x" if mark in row.marks else "" for mark in "TOI"),
                mean_and_error(list(aps.values())),
                mean_and_error(gains, signed=True) if number else "",
                f"{paper:.1f}",
                decimal(paper - published.TABLE_3[0], signed=True) if number else "",
            ]
        )
    steps = (
        ("Correlation instead of linear combination (row 1 to 2)", 1, 0),
        ("Expansion at inference alone (row 2 to 3)", 2, 1),
        ("Expansion in training and at inference (row 3 to 5)", 4, 2),
        ("OHEM on top of it (row 5 to 7)", 6, 4),
        ("RDSNet_s over YOLACT (row 1 to 7)", 6, 0),
    )
    sentences = [
        verdict(
            what,
            _differences(values[to], values[start]),
            published.TABLE_3[to] - published.TABLE_3[start],
            "mask AP",
        )
        for what, to, start in steps
        if _differences(values[to], values[start])
    ]
    headers = ["row", "masks", "TE", "OHEM", "IE", "mask AP", "gain", "paper", "gain of the paper"]
    return PaperTable("table3", "Table 3: the cropping module", Table(headers, rows), sentences)


_MEANING = {
    "AP": "box AP",
    "APs": "box AP of small objects",
    "APl": "box AP of large objects",
}


def table_4(runs: Runs) -> PaperTable:
    """Boxes as regressed, rectangles around masks, and MBRM."""
    results = [run["table4"] for run in runs.get("rdsnet", []) if "table4" in run]
    titles = {
        "none": "as regressed",
        "direct": "direct (rectangle around the mask)",
        "MBRM": "MBRM",
        "MBRM, sub-pixel": "MBRM, sub-pixel",
        "MBRM, published kernel": "MBRM with the published kernel",
    }
    rows = []
    for method, title in titles.items():
        of_method = [result[method] for result in results if method in result]
        if of_method:
            rows.append([title, *_aps(of_method, lambda metrics: metrics)])
            rows += _paper_row(published.TABLE_4.get(method), 0)
    baseline = published.TABLE_4["none"]
    sentences = []
    for method in ("direct", "MBRM"):
        for metric in _MEANING:
            gains = [_gain(result, method, metric) for result in results]
            gains = [gain for gain in gains if gain is not None]
            paper = getattr(published.TABLE_4[method], metric) - getattr(baseline, metric)
            if gains:
                sentences.append(verdict(titles[method], gains, paper, _MEANING[metric]))
    table = Table(["box AP", *_IN_FIGURE], rows)
    return PaperTable("table4", "Table 4: MBRM", table, sentences)


def _gain(result: dict, method: str, metric: str) -> float | None:
    pair = result[method][metric], result["none"][metric]
    return pair[0] - pair[1] if all(value == value for value in pair) else None


# ------------------------------------------------------------------------- sentences


def difference(
    runs: Runs, what: str, one: str | tuple, other: str | tuple, task: str, paper: float
) -> str | None:
    """:func:`verdict` on two trainings, paired by seed; None where one is missing.

    Args:
        one, other: names of trainings, or (name, task).
        task: of those that name none.
    """
    values = []
    for model in (one, other):
        name, own_task = model if isinstance(model, tuple) else (model, task)
        values.append({run["seed"]: _value(_metrics(run), own_task) for run in runs.get(name, [])})
    differences = _differences(*values)
    kind = "mask AP" if task == "segm" else "box AP"
    return verdict(what, differences, paper, kind) if differences else None


def by_seed(one: Sequence[dict], other: Sequence[dict]) -> list[tuple[dict, dict]]:
    """Pairs of results of the same seed; a seed that one of them lacks is left out."""
    others = {run["seed"]: run for run in other}
    return [(run, others[run["seed"]]) for run in one if run["seed"] in others]


def _differences(one: dict[int, float], other: dict[int, float]) -> list[float]:
    """One minus other of every seed that both have, without NaN."""
    differences = [one[seed] - other[seed] for seed in one if seed in other]
    return [value for value in differences if value == value]


def _value(metrics: dict[str, dict], task: str) -> float:
    """AP; NaN where a model has found nothing."""
    return metrics.get(task, {}).get("AP", float("nan"))


def verdict(what: str, differences: Sequence[float], paper: float, metric: str) -> str:
    """A difference over seeds beside the paper's, and whether it has the same sign."""
    average = mean(differences)
    several = len(differences) > 1
    shown = f"{what}: {mean_and_error(differences, signed=True)} {metric}"
    shown += f" over {len(differences)} seeds" if several else ""
    shown += f"; the paper: {decimal(paper, signed=True)}. "
    if abs(average) < NO_DIFFERENCE:
        return shown + "No difference here."
    if several and abs(average) < 2 * standard_error(differences):
        return shown + "Less than two standard errors: not decided here."
    direction = (
        "The paper's direction" if (average > 0) == (paper > 0) else "The opposite direction"
    )
    return shown + direction + (" shows." if several else ", in one seed.")


def mean(values: Sequence[float]) -> float:
    """NaN of nothing."""
    return statistics.mean(values) if values else float("nan")


def standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5


def mean_and_error(values: Sequence[float], *, signed: bool = False) -> str:
    """ "31.0 ± 0.4": mean and standard error over seeds."""
    values = [value for value in values if value == value]
    if not values:
        return "-"
    error = f" ± {standard_error(values):.1f}" if len(values) > 1 else ""
    return decimal(statistics.mean(values), signed=signed) + error


def _metrics(run: dict) -> dict[str, dict]:
    """Of the expansion that the model is used with: the last one."""
    return list(run["metrics"].values())[-1]


def _of(task: str) -> Callable[[dict], dict]:
    return lambda run: _metrics(run).get(task, {})


def _aps(runs: Sequence[dict], metrics: Callable[[dict], dict]) -> list[str]:
    nan = float("nan")
    return [mean_and_error([metrics(run).get(name, nan) for run in runs]) for name in METRICS]


def _paper_row(aps: APs | None, more: int) -> list[list[str]]:
    """The paper's figures below ours."""
    if aps is None:
        return []
    return [["… the paper", *[""] * more, *(decimal(value, missing="-") for value in aps)]]


def _there(sentences: Sequence[str | None]) -> list[str]:
    return [sentence for sentence in sentences if sentence]
