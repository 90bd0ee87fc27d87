"""What the paper leaves open, answered by trainings: three questions, a table for each.

1. Why does MBRM gain most on large objects? (:func:`sizes_table`)
2. What happens without the expansion of boxes at inference? (:func:`expansion_table`)
3. Does its gain survive a better detector, and finer pixels? (:func:`detectors_table`)
"""

from __future__ import annotations

from collections.abc import Sequence

from rdsnet.formatting import decimal
from rdsnet.paper.tables import (
    NO_DIFFERENCE,
    PaperTable,
    Runs,
    by_seed,
    mean,
    mean_and_error,
    standard_error,
)
from rdsnet.visualization.page import Table

_SIZES = {"small": "APs", "medium": "APm", "large": "APl"}


def beyond_the_paper(runs: Runs) -> list[PaperTable]:
    """The tables of the first two questions for which there are results."""
    made = (sizes_table(runs), expansion_table(runs))
    return [table for table in made if table.table.rows]


# ------------------------------------------------------------- why most on large objects


def sizes_table(runs: Runs) -> PaperTable:
    """Edges' errors by the size of the objects, in pixels and as shares of the object's side.

    AP looks at shares (IoU), a mask's edge is as sharp as its pixels: so the answer is in how the
    two errors grow with the object.
    """
    results = [run for run in runs.get("rdsnet", []) if "errors" in run]
    rows, sizes = [], {}
    for size, metric in _SIZES.items():
        errors = [run["errors"][size] for run in results if run["errors"][size]["objects"]]
        if not errors:
            continue
        sizes[size] = of_size = {
            name: mean([values[name] for values in errors])
            for name in ("objects", "side", "regressed", "direct", "MBRM")
        }
        gains = {
            method: [run["table4"][method][metric] - run["table4"]["none"][metric] for run in shown]
            for method in ("direct", "MBRM")
            if (shown := [run for run in results if "table4" in run])
        }
        pixels = [_pixels(of_size[name], of_size["side"]) for name in _METHODS]
        aps = [mean_and_error(gains.get(method, []), signed=True) for method in ("direct", "MBRM")]
        rows.append([size, f"{of_size['objects']:.0f}", f"{of_size['side']:.0f} px", *pixels, *aps])
    headers = [
        *("objects", "found", "median side", "regressed edge off", "mask's edge off"),
        *("MBRM's edge off", "AP by the mask's box", "AP by MBRM"),
    ]
    title = "Beyond the paper 1: why MBRM gains most on large objects"
    return PaperTable("sizes", title, Table(headers, rows), _on_sizes(sizes))


# Of a size, for a sentence about it.
_FEWEST = 20
_METHODS = ("regressed", "direct", "MBRM")


def _pixels(error: float, side: float) -> str:
    return f"{error:.2f} px ({error / side:.1%})"


def _on_sizes(sizes: dict[str, dict[str, float]]) -> list[str]:
    """What the smallest and the largest objects say, of which there are enough."""
    sizes = {size: of for size, of in sizes.items() if of["objects"] >= _FEWEST}
    if len(sizes) < 2:
        return [f"Not {_FEWEST} objects of two sizes were found: that cannot answer the question."]
    (small, first), *_, (large, last) = sizes.items()
    grown = {name: last[name] / max(first[name], 1e-9) for name in ("side", *_METHODS)}
    sentences = [
        f"From {small} to {large} objects sides grow {grown['side']:.1f}-fold, the error of "
        f"regressed edges {grown['regressed']:.1f}-fold, that of masks' edges "
        f"{grown['direct']:.1f}-fold."
    ]
    ratios = {size: of["direct"] / max(of["regressed"], 1e-9) for size, of in sizes.items()}
    listed = ", ".join(f"{ratio:.2f} on {size}" for size, ratio in ratios.items())
    sentences.append(f"A mask's edge is off by {listed} objects times what the regressed edge is.")
    if ratios[large] < ratios[small]:
        sentences.append(
            f"So of {large} objects a mask knows more beside the box than of {small} ones, and "
            "that is what MBRM can give."
        )
    else:
        sentences.append(
            f"So masks are no better beside boxes on {large} objects than on {small} ones: the "
            "explanation by the resolution of masks does not hold here."
        )
    saved = [f"{of['regressed'] - of['MBRM']:+.2f} px on {size}" for size, of in sizes.items()]
    return [*sentences, f"MBRM takes off {', '.join(saved)} objects."]


# ------------------------------------------------------------- without the expansion


def expansion_table(runs: Runs) -> PaperTable:
    """What happens without the 20 % at inference."""
    results = [run["metrics"] for run in runs.get("rdsnet", []) if "1.0" in run["metrics"]]
    columns = (("segm", "AP"), ("segm", "AP75"), ("bbox_regressed", "AP"), ("bbox", "AP"))
    rows = []
    for expand, title in (("1.0", "none"), ("None", "as configured")):
        of_expand = [metrics[expand] for metrics in results]
        if of_expand:
            shown = [mean_and_error([_ap(m, task, ap) for m in of_expand]) for task, ap in columns]
            gains = [_ap(m, "bbox", "AP") - _ap(m, "bbox_regressed", "AP") for m in of_expand]
            rows.append([title, *shown, mean_and_error(gains, signed=True)])
    sentences = []
    if rows:
        masks, boxes = (
            [_ap(m["None"], task, "AP") - _ap(m["1.0"], task, "AP") for m in results]
            for task in ("segm", "bbox")
        )
        sentences.append(
            f"Without the expansion: {_lost(masks)} mask AP and {_lost(boxes)} box AP. Masks are "
            "then cut off where a box is too small, and MBRM can move an edge only inwards."
        )
    headers = [
        *("boxes expanded at inference", "mask AP", "mask AP75"),
        *("box AP as regressed", "with MBRM", "gain of MBRM"),
    ]
    title = "Beyond the paper 2: without the expansion at inference"
    return PaperTable("expansion", title, Table(headers, rows), sentences)


def _lost(gains: Sequence[float]) -> str:
    return mean_and_error([-gain for gain in gains], signed=True)


# ------------------------------------------------------------- better detectors

_DETECTORS = {
    "corr_te": "YOLACT's detector, correlation, without OHEM",
    "rdsnet_s": "RDSNet_s",
    "rdsnet_600": "RDSNet, smaller scale",
    "rdsnet": "RDSNet",
}
# Trained for this table alone, one thing other than in RDSNet: named by the training's title.
_OTHERS = ("rdsnet_plainer", "rdsnet_better", "rdsnet_coarser", "rdsnet_finer")


def detectors_table(runs: Runs, titles: dict[str, str]) -> PaperTable:
    """Whether MBRM's gain survives a better detector and finer pixels.

    Args:
        titles: {training: title}
    """
    rows, sentences = [], []
    for name in (*_DETECTORS, *_OTHERS):
        metrics = [list(run["metrics"].values())[-1] for run in runs.get(name, [])]
        metrics = [m for m in metrics if "bbox_regressed" in m]
        if metrics:
            before = [_ap(m, "bbox_regressed", "AP") for m in metrics]
            gains = [
                [_ap(m, "bbox", ap) - _ap(m, "bbox_regressed", ap) for m in metrics]
                for ap in ("AP", "AP50", "AP75", "APl")
            ]
            title = titles.get(name) if name in _OTHERS else _DETECTORS[name]
            shown = [mean_and_error(values, signed=True) for values in gains]
            rows.append([title, mean_and_error(before), *shown])
    for name in _OTHERS:
        if sentence := _survives(runs, name, titles.get(name, name)):
            sentences.append(sentence)
    headers = [
        *("model", "box AP as regressed", "gain of MBRM"),
        *("at IoU 0.5", "at IoU 0.75", "on large objects"),
    ]
    title = "Beyond the paper 3: MBRM on better detectors and finer pixels"
    return PaperTable("detectors", title, Table(headers, rows), sentences)


def _survives(runs: Runs, name: str, title: str) -> str | None:
    """RDSNet's gain and that of a variant, paired by seed."""
    pairs = by_seed(runs.get("rdsnet", []), runs.get(name, []))
    if not pairs:
        return None
    (own, other), (own_ap, other_ap) = (
        [[value(run) for run in side] for side in zip(*pairs)] for value in (_gain, _regressed)
    )
    shown = (
        f"{title}: {mean_and_error([b - a for a, b in zip(own_ap, other_ap)], signed=True)} box AP "
        f"as regressed against RDSNet; MBRM then gives {mean_and_error(other, signed=True)} "
        f"instead of {mean_and_error(own, signed=True)}"
    )
    change = [b - a for a, b in zip(own, other)]
    if len(change) > 1 and abs(mean(change)) < 2 * standard_error(change):
        return f"{shown}: no change beyond two standard errors."
    more = "in one seed" if len(change) == 1 else f"over {len(change)} seeds"
    if mean(own) < NO_DIFFERENCE:
        return f"{shown}: RDSNet itself gains nothing, {more}."
    if mean(other) < NO_DIFFERENCE:
        return f"{shown}: no gain is left, {more}."
    return f"{shown}: a change of {decimal(mean(change), signed=True)}, {more}."


def _regressed(run: dict) -> float:
    return _ap(list(run["metrics"].values())[-1], "bbox_regressed", "AP")


def _gain(run: dict) -> float:
    return _ap(list(run["metrics"].values())[-1], "bbox", "AP") - _regressed(run)


def _ap(metrics: dict, task: str, name: str) -> float:
    """NaN where there are no such objects, or nothing was found."""
    return metrics.get(task, {}).get(name, float("nan"))
