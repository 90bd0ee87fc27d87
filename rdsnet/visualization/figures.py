"""The figures of a report, as SVG that takes its text colour from the page it stands on.

Every function returns an ``<svg>`` element: text and axes have the colour of the surrounding text
(``currentColor``), so that a figure can be read on a light and on a dark page.
"""

from __future__ import annotations

import functools
import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from rdsnet.formatting import decimal
from rdsnet.visualization.curves import LOSSES

# Colours, of this module alone: legible on white and on near black.
BLUE, ORANGE, GREEN, RED, VIOLET, GRAY = "#3b82d6 #e08a2e #2fa36b #d9534f #8f72d8 #868e99".split()
_COLORS = (BLUE, ORANGE, GREEN, RED, VIOLET, GRAY)
# Stands for the colour of the page's text until the SVG is written.
INK = "#0a0b0c"
_TASKS = {
    "bbox": ("box", BLUE, "-"),
    "bbox_regressed": ("box without MBRM", BLUE, ":"),
    "segm": ("mask", GREEN, "-"),
}
_LOSS_COLORS = {"total_loss": INK, "loss_cls": BLUE, "loss_box_reg": ORANGE, "loss_mask": GREEN}

_P, _T = ParamSpec("P"), TypeVar("T")
_Curve = Sequence[tuple[int, float]]


_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRAY,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def _styled(draw: Callable[_P, _T]) -> Callable[_P, _T]:
    """Draw in the style of the report, whatever matplotlib's settings are."""

    @functools.wraps(draw)
    def styled(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return styled


class _SVG:
    """One figure with a row of axes; ``text()`` is its ``<svg>`` element.

    Args:
        width, height: inches; on a page the figure is as wide as there is room.
        columns: axes.
        subplots: further arguments of matplotlib's ``Figure.subplots``.
    """

    numbers = itertools.count(1)

    def __init__(self, width: float, height: float, columns: int = 1, **subplots) -> None:
        self.figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(self.figure)
        self.axes = self.figure.subplots(1, columns, squeeze=False, **subplots)[0]

    def text(self) -> str:
        stream = io.StringIO()
        self.figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
        text = stream.getvalue()
        text = text[text.index("<svg") :].replace(INK, "currentColor")
        # Several figures stand on one page: what they refer to inside gets a name of its own.
        text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>f{next(self.numbers)}-", text)
        # The page decides how large it is; the viewBox keeps its proportions.
        return re.sub(r'(<svg [^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)


@_styled
def loss_figure(curves: Mapping[str, _Curve]) -> str:
    """Losses over the iterations, on a logarithmic axis.

    Args:
        curves: what :func:`~rdsnet.visualization.curves.read_metrics` returns; every metric whose
            name has "loss" in it is drawn.
    """
    svg = _SVG(7.2, 3.4)
    (axis,) = svg.axes
    names = [name for name in curves if "loss" in name and "/" not in name]
    names.sort(
        key=lambda name: (name not in LOSSES, list(LOSSES).index(name) if name in LOSSES else name)
    )
    spare = iter((RED, VIOLET, GRAY) * len(names))
    for name in names:
        label = LOSSES[name][0] if name in LOSSES else name.removeprefix("loss_").replace("_", " ")
        color = _LOSS_COLORS.get(name) or next(spare)
        _smooth_line(axis, curves[name], color, label)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.set_ylabel("loss")
    _iterations(axis)
    _legend_beside(axis)
    return svg.text()


@_styled
def ap_over_time_figure(curves: Mapping[str, _Curve], dataset: str = "") -> str | None:
    """AP of every evaluation during training; None where there was none.

    Args:
        curves: as in :func:`loss_figure`.
        dataset: the prefix of its metrics where several were evaluated.
    """
    prefix = f"{dataset}/" if dataset else ""
    svg = _SVG(7.2, 3.2)
    (axis,) = svg.axes
    drawn = False
    for task, (label, color, style) in _TASKS.items():
        points = [(i, v) for i, v in curves.get(f"{prefix}{task}/AP", ()) if np.isfinite(v)]
        if points:
            iterations, values = zip(*points, strict=True)
            axis.plot(iterations, values, style, color=color, label=label, marker="o", ms=4)
            drawn = True
    if not drawn:
        return None
    axis.set_ylim(bottom=0)
    axis.set_ylabel("AP")
    _iterations(axis)
    _legend_beside(axis)
    return svg.text()


@_styled
def iou_and_size_figure(breakdown: Mapping[str, Mapping]) -> str:
    """AP over the IoU that a detection must reach, and AP by the size of the objects.

    Args:
        breakdown: {task: what :func:`rdsnet.evaluation.breakdown.ap_breakdown` returns}.
    """
    svg = _SVG(7.2, 3.2, 2, gridspec_kw={"width_ratios": [3, 2]})
    left, right = svg.axes
    tasks = [task for task in _TASKS if task in breakdown]
    for k, task in enumerate(tasks):
        label, color, style = _TASKS[task]
        parts = breakdown[task]
        values = [np.nan if v is None else v for v in parts["sizes"]["all"]]
        left.plot(parts["thresholds"], values, style, color=color, label=label, marker="o", ms=3.5)
        sizes = [name for name in parts["sizes"] if name != "all"]
        means = [_mean(parts["sizes"][name]) for name in sizes]
        width = 0.8 / len(tasks)
        place = np.arange(len(sizes)) + (k - (len(tasks) - 1) / 2) * width
        bars = right.bar(place, np.nan_to_num(means), width * 0.9, color=color)
        if style == ":":
            for bar in bars:
                bar.set(alpha=0.45)
        for x, mean in zip(place, means):
            note = decimal(mean, 0)
            top = (0 if np.isnan(mean) else mean) + 1
            right.text(x, top, note, ha="center", va="bottom", fontsize=8)
        right.set_xticks(np.arange(len(sizes)), sizes)
    left.set_ylim(0, 100)
    right.set_ylim(0, 100)
    right.grid(axis="x", visible=False)
    left.set_xlabel("IoU that a detection must reach")
    left.set_ylabel("AP")
    right.set_xlabel("size of the object")
    left.legend()
    return svg.text()


@_styled
def error_figure(errors: Mapping[str, Mapping[str, float]]) -> str:
    """What each kind of error costs.

    Args:
        errors: {task: {kind: points of AP50}}; one panel per task.
    """
    svg = _SVG(7.2, 2.6, len(errors), sharex=True, sharey=True)
    for axis, (task, costs) in zip(svg.axes, errors.items()):
        kinds = list(costs)[::-1]
        values = [costs[kind] for kind in kinds]
        axis.barh(kinds, values, color=[_error_color(kind) for kind in kinds], height=0.72)
        longest = max(max(max(c.values()) for c in errors.values()), 1.0)
        for y, value in enumerate(values):
            axis.text(value + 0.015 * longest, y, decimal(value), va="center", fontsize=8.5)
        axis.set_xlim(0, 1.15 * longest)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set_xlabel(f"points of {_TASKS[task][0]} AP50 lost")
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
    return svg.text()


@_styled
def score_figure(
    scores: np.ndarray,
    together: Mapping[str, np.ndarray],
    best: float | None,
    classes: Mapping[str, np.ndarray],
) -> str:
    """Precision, recall and F1 over the lowest score that is shown, and F1 of classes.

    Args:
        scores: (T,) thresholds.
        together: {"precision", "recall", "F1": (T,)} of all classes.
        best: the threshold of the best F1, marked.
        classes: {name: F1 (T,)}; a second panel, unless empty.
    """
    svg = _SVG(7.2, 3.2, 2 if classes else 1, sharey=True)
    for (name, values), color in zip(together.items(), (BLUE, ORANGE, INK)):
        svg.axes[0].plot(scores, values, color=color, label=name)
    if best is not None:
        svg.axes[0].axvline(best, color=GRAY, linestyle="--", linewidth=1)
    svg.axes[0].set_title("all classes together" if classes else "", fontsize=9.5)
    for (name, values), color in zip(classes.items(), itertools.cycle(_COLORS)):
        svg.axes[1].plot(scores, values, color=color, label=name)
    if classes:
        svg.axes[1].set_title("F1 of every class", fontsize=9.5)
    for axis in svg.axes:
        axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="lowest score shown")
        axis.legend(fontsize=8.5)
    return svg.text()


@_styled
def confusion_figure(table: np.ndarray, names: Sequence[str]) -> str:
    """What objects were found as.

    Args:
        table: (K + 1, K + 1) counts, objects in rows; last row and column: none.
        names: of the K classes.
    """
    svg = _SVG(7.2, 1.2 + 0.36 * len(table))
    (axis,) = svg.axes
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    color = [int(BLUE[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    cells = np.concatenate([np.broadcast_to(color, (*table.shape, 3)), share[..., None]], 2)
    axis.imshow(cells, aspect="auto", interpolation="nearest")
    for (row, column), count in np.ndenumerate(table):
        if count:
            axis.text(column, row, f"{count:,}", ha="center", va="center", fontsize=8)
    place = np.arange(len(table))
    axis.set_xticks(place, [*names, "nothing"], rotation=35, ha="right")
    axis.set_yticks(place, [*names, "nothing"])
    axis.set(xlabel="found as", ylabel="annotated as")
    axis.grid(visible=False)
    return svg.text()


@_styled
def edge_figure(shifts: np.ndarray, before: np.ndarray, after: np.ndarray) -> str:
    """Moves of box edges made by MBRM, and their distance from the true edges before and after.

    Args:
        shifts, before, after: (E,) and (F,), pixels, see
            :class:`rdsnet.evaluation.detections.EdgeShifts`.
    """
    svg = _SVG(7.2, 3.0, 2)
    left, right = svg.axes
    limit = float(np.clip(np.ceil(np.percentile(np.abs(shifts), 98)), 3, 40)) + 0.5
    bins = np.arange(-limit, limit + 1e-6, 1.0 if limit > 6 else 0.5)
    left.hist(shifts.clip(bins[0], bins[-1]), bins, color=BLUE, weights=_share(shifts))
    left.set_xlabel("move of an edge, pixels (outwards +)")
    left.set_ylabel("share of edges, %")
    if len(before):
        errors = np.abs(np.concatenate([before, after]))
        limit = float(np.clip(np.ceil(np.percentile(errors, 95)), 3, 40)) + 0.5
        bins = np.arange(-limit, limit + 1e-6, 1.0 if limit > 6 else 0.5)
        for values, label, color, style in (
            (before, "as regressed", GRAY, "stepfilled"),
            (after, "after MBRM", BLUE, "step"),
        ):
            alpha = 0.45 if style == "stepfilled" else 1
            right.hist(
                values.clip(bins[0], bins[-1]),
                bins,
                histtype=style,
                weights=_share(values),
                color=color,
                alpha=alpha,
                linewidth=1.8,
                label=label,
            )
        right.margins(y=0.25)
        right.legend(loc="upper right", fontsize=8.5)
    right.set_xlabel("distance from the true edge, pixels (outside +)")
    return svg.text()


@_styled
def points_figure(
    pixels: np.ndarray, pixel_colors: np.ndarray, objects: np.ndarray, object_colors: np.ndarray
) -> str:
    """Representations on the unit sphere: pixels as dots, objects as large circles.

    Args:
        pixels (P, 3), objects (N, 3): unit vectors.
        pixel_colors (P, 3), object_colors (N, 3): RGB, 0..1.
    """
    svg = _SVG(3.3, 3.1, subplot_kw={"projection": "3d"})
    (axis,) = svg.axes
    angle = np.linspace(0, 2 * np.pi, 60)
    zero = 0 * angle
    for ring in ((np.cos(angle), np.sin(angle), zero), (np.cos(angle), zero, np.sin(angle))):
        axis.plot(*ring, color=GRAY, alpha=0.35, linewidth=0.8)
    axis.scatter(*pixels.T, c=pixel_colors, s=5, alpha=0.6, linewidths=0, rasterized=True)
    axis.scatter(*objects.T, c=object_colors, s=46, edgecolors=INK, linewidths=1, depthshade=False)
    axis.set(xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), zlim=(-0.8, 0.8))
    axis.set_box_aspect((1, 1, 1), zoom=1.25)
    axis.view_init(elev=22, azim=38)
    axis.set_axis_off()
    return svg.text()


def _smooth_line(axis: Axes, points: _Curve, color: str, label: str) -> None:
    """Values as written, faint, and their running mean over about a twentieth of the run."""
    iterations, values = np.array(points, dtype=float).T
    shown = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    marker = "o" if len(points) < 5 else None
    if len(points) < 20:
        axis.plot(iterations, shown, color=color, label=label, marker=marker, ms=4)
        return
    axis.plot(iterations, shown, color=color, alpha=0.25, linewidth=0.8)
    window = 2 * (len(points) // 40) + 1
    padded = np.pad(values, window // 2, mode="edge")
    smooth = np.convolve(padded, np.full(window, 1 / window), mode="valid")
    axis.plot(iterations, smooth, color=color, label=label, linewidth=1.8)


def _iterations(axis: Axes) -> None:
    axis.set_xlabel("iteration")
    axis.xaxis.set_major_locator(MaxNLocator(7, integer=True))


def _legend_beside(axis: Axes) -> None:
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), borderaxespad=0)


def _error_color(kind: str) -> str:
    order = ("classification", "location", "both", "duplicate", "background", "missed")
    return _COLORS[order.index(kind)]


def _mean(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else float("nan")


def _share(values: np.ndarray) -> np.ndarray:
    return np.full(len(values), 100 / max(len(values), 1))
