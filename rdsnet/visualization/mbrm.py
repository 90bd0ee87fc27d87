"""Figures about MBRM: sensitivity to its hyper-parameters, and kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot_sweep(results: Mapping[int, Mapping[float, float]], output: str | Path) -> None:
    """Box AP over gamma, a line per radius s (Fig. 5).

    Args:
        results: {s: {gamma: AP}}; gamma 0 stands for the boxes as regressed.
        output: the picture to write; its ending (.png, .svg, .pdf) is the format.
    """
    figure, axis = _figure()
    for radius, aps in results.items():
        # Gammas are spaced evenly: 0.01 and 0.2 would not fit on one linear axis.
        axis.plot(range(len(aps)), list(aps.values()), marker="o", label=f"s = {radius}")
    gammas = list(next(iter(results.values())))
    axis.set_xticks(range(len(gammas)), [f"{gamma:g}" for gamma in gammas])
    axis.set_xlabel("gamma (0: boxes as regressed)")
    axis.set_ylabel("box AP")
    axis.legend(frameon=False)
    figure.savefig(output, dpi=130)


def plot_kernels(kernels: Mapping[str, Sequence[float]], output: str | Path) -> None:
    """Kernels of 2 s + 1 weights over the distance from the edge.

    Args:
        kernels: {name: weights}.
        output: as in :func:`plot_sweep`.
    """
    figure, axis = _figure()
    for name, weights in kernels.items():
        radius = len(weights) // 2
        axis.plot(range(-radius, radius + 1), weights, marker="o", label=name)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.axvline(-0.5, color="gray", linestyle=":")
    axis.set_xlabel("pixels from the first pixel inside (dotted: the edge)")
    axis.set_ylabel("weight")
    axis.legend(frameon=False)
    figure.savefig(output, dpi=130)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis
