"""Table and plot from finished runs."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from pathlib import Path

from data import DATA_SETS

STARTS = {"nuclei": "the nuclei model", "imagenet": "ImageNet", "scratch": "random weights"}
TASKS = {"segm": "mask AP", "bbox": "box AP"}


def of(results: list[dict], data: str, start: str, images: int, task: str) -> dict[int, float]:
    """{seed: AP} of the finished runs."""
    return {
        r["seed"]: r["metrics"][task]["AP"]
        for r in results
        if (r["data"], r["start"], r["images"]) == (data, start, images)
    }


def mean_and_error(values: list[float], sign: str = "") -> str:
    """ "31.0 ± 0.4": mean and its standard error; without the error of a single value."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):{sign}.1f}"
    return f"{mean} ± {standard_error(values):.1f}" if len(values) > 1 else mean


def standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def gain(results: list[dict], data: str, images: int, task: str) -> str:
    """Of the nuclei model over ImageNet, on the same images by the same seed."""
    model, usual = (of(results, data, start, images, task) for start in ("nuclei", "imagenet"))
    return mean_and_error([model[seed] - usual[seed] for seed in model if seed in usual], "+")


def images_of(results: list[dict], data: str) -> list[int]:
    return sorted({r["images"] for r in results if r["data"] == data})


def tables(results: list[dict]) -> str:
    parts = []
    for data in (name for name in DATA_SETS if images_of(results, name)):
        for task, title in TASKS.items():
            header = ["images", *STARTS.values(), "nuclei over ImageNet"]
            rows = [header, ["---"] * len(header)]
            for images in images_of(results, data):
                cells = [
                    mean_and_error([*of(results, data, start, images, task).values()])
                    for start in STARTS
                ]
                rows.append([str(images), *cells, gain(results, data, images, task)])
            lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
            parts.append(f"**{DATA_SETS[data].title}** ({data}), {title}\n\n{lines}\n")
    return "\n".join(parts)


def write_reports(results: list[dict], out: Path) -> None:
    """results.json, transfer.md, transfer.png."""
    out.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": python_version()}
    document = {**machine, "runs": results}
    (out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    settings = results[0]["settings"]
    seeds = sorted({r["seed"] for r in results})
    (out / "transfer.md").write_text(
        f"`rdsnet train --data` with {settings['iterations']} iterations of {settings['batch']} "
        f"images, {len(seeds)} seed{'s' * (len(seeds) > 1)}, each with other training images; mean "
        "and standard error. The gain is of the same images and seeds.\n\n" + tables(results)
    )
    plot(results, out / "transfer.png")


def python_version() -> str:
    return platform.python_version()


def plot(results: list[dict], path: Path) -> None:
    """AP over the number of training images, a panel per data set and task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    there = [data for data in DATA_SETS if images_of(results, data)]
    figure = Figure(figsize=(4.5 * len(TASKS), 3.5 * len(there)), layout="constrained")
    panels = figure.subplots(len(there), len(TASKS), squeeze=False)
    for row, data in zip(panels, there):
        for axes, (task, title) in zip(row, TASKS.items()):
            for start, label in STARTS.items():
                points = [
                    (images, statistics.mean(values), standard_error(values))
                    for images in images_of(results, data)
                    if (values := [*of(results, data, start, images, task).values()])
                ]
                if points:
                    x, y, error = zip(*points)
                    axes.errorbar(x, y, error, marker="o", capsize=3, label=label)
            axes.set(title=f"{DATA_SETS[data].title}, {title}", xlabel="training images")
            axes.set_ylabel("AP")
            axes.grid(alpha=0.3)
    panels[0][0].legend()
    FigureCanvasAgg(figure).print_png(str(path))
