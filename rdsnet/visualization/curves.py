"""Training curves from the metrics.json that Detectron2 writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

LOSSES = {
    "total_loss": ("total", "black"),
    "loss_cls": ("classification", "tab:blue"),
    "loss_box_reg": ("box regression", "tab:orange"),
    "loss_mask": ("mask", "tab:green"),
}
_AP_CURVES = {
    "bbox/AP": ("box AP", "tab:blue", "-"),
    "bbox_regressed/AP": ("box AP without MBRM", "tab:blue", ":"),
    "segm/AP": ("mask AP", "tab:green", "-"),
}


def read_metrics(metrics_json: str | Path) -> dict[str, list[tuple[int, float]]]:
    """(iteration, value) of every metric, in order of iterations.

    What was written twice, before and after a run was resumed, counts as written last.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if there are no metrics in it.
    """
    path = Path(metrics_json)
    if not path.is_file():
        raise FileNotFoundError(
            f"'{path}' does not exist. Detectron2 writes metrics.json into OUTPUT_DIR while "
            "training."
        )
    curves: dict[str, dict[int, float]] = {}
    for line in path.read_text().splitlines():
        try:
            metrics = json.loads(line)
        except json.JSONDecodeError:
            continue  # a line that an interrupted run left unfinished
        iteration = metrics.pop("iteration", None)
        if iteration is not None:
            for name, value in metrics.items():
                curves.setdefault(name, {})[iteration] = value
    if not curves:
        raise ValueError(f"'{path}' holds no metrics: the run ended before the first were written")
    return {name: sorted(values.items()) for name, values in curves.items()}


def plot_training_curves(metrics_json: str | Path, output: str | Path) -> None:
    """Draw the losses over the iterations and, where a run was evaluated, its APs.

    Args:
        metrics_json: the file in the run's OUTPUT_DIR.
        output: the picture to write; its ending (.png, .svg, .pdf) is the format.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_metrics`.
    """
    curves = read_metrics(metrics_json)
    aps = {name: style for name, style in _AP_CURVES.items() if len(curves.get(name, ())) > 1}
    figure = Figure(figsize=(12 if aps else 7.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if aps else 1, squeeze=False)[0]
    for name, (label, color) in LOSSES.items():
        if name in curves:
            _plot_loss(axes[0], curves[name], label, color)
    axes[0].set_ylabel("loss")
    axes[0].set_ylim(bottom=0)
    for name, (label, color, style) in aps.items():
        iterations, values = zip(*curves[name], strict=True)
        axes[1].plot(iterations, values, style, color=color, label=label, marker=".")
    if aps:
        axes[1].set_ylabel("AP on held-out images")
    for axis in axes:
        axis.set_xlabel("iteration")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.savefig(output, dpi=130)


def _plot_loss(axis: Axes, points: list[tuple[int, float]], label: str, color: str) -> None:
    """Values as written (medians over 20 iterations), and a running mean over 5 of them."""
    iterations, values = np.array(points, dtype=float).T
    marker = "o" if len(points) < 5 else None
    if len(points) < 10:
        axis.plot(iterations, values, color=color, label=label, marker=marker)
        return
    axis.plot(iterations, values, color=color, alpha=0.25, linewidth=1)
    padded = np.pad(values, 2, mode="edge")
    smooth = np.convolve(padded, np.full(5, 0.2), mode="valid")
    axis.plot(iterations, smooth, color=color, label=label, linewidth=2)
