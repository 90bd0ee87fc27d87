"""Tables and plot from finished runs."""

from __future__ import annotations

import json
import os
import platform
import statistics
from pathlib import Path

from data import DATA_SETS

TASKS = {"bbox": "box AP", "segm": "mask AP"}
Results = list[dict]


def of(results: Results, **fields: object) -> Results:
    """Those with these values."""
    return [r for r in results if all(r[name] == value for name, value in fields.items())]


def aps(results: Results, task: str) -> list[float]:
    return [r["AP"][task]["AP"] for r in results if task in r["AP"]]


def mean_and_error(values: list[float]) -> str:
    """ "31.0 ± 0.4": mean and standard error."""
    if not values:
        return "-"
    error = f" ± {standard_error(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{error}"


def standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5


def table(results: Results, times: dict[str, float], titles: dict[str, str]) -> str:
    """A data set's runs: a row for every budget and model."""
    rows = [
        "| budget, CPU s | model | iterations | CPU s | box AP without MBRM | box AP | mask AP | "
        "ms per image |",
        "| --- " * 8 + "|",
    ]
    for budget in sorted({r["budget"] for r in results}):
        for model, title in titles.items():
            runs = of(results, budget=budget, model=model)
            if runs:
                cells = [
                    str(budget),
                    title,
                    f"{statistics.mean(r['iterations'] for r in runs):.0f}",
                    f"{statistics.mean(r['cpu_seconds'] for r in runs):.0f}",
                    *(
                        mean_and_error(aps(runs, task))
                        for task in ("bbox_regressed", "bbox", "segm")
                    ),
                    str(times.get(model, "-")),
                ]
                rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def differences(results: Results, ours: str, theirs: str) -> list[str]:
    """A sentence for every budget: how far ours are ahead, paired by seed."""
    lines = []
    for budget in sorted({r["budget"] for r in results}):
        parts = []
        for task, name in TASKS.items():
            pairs = []
            for a in of(results, budget=budget, model=ours):
                pairs += [
                    a["AP"][task]["AP"] - b["AP"][task]["AP"]
                    for b in of(results, budget=budget, model=theirs, seed=a["seed"])
                ]
            if pairs:
                error = f" ± {standard_error(pairs):.1f}" if len(pairs) > 1 else ", one seed"
                parts.append(f"{name} {statistics.mean(pairs):+.1f}{error}")
        if parts:
            lines.append(f"- RDSNet-lite minus Mask R-CNN at {budget} s: {'; '.join(parts)}.")
    return lines


def write_reports(
    results: Results, times: dict[str, dict[str, float]], titles: dict[str, str], out: Path
) -> None:
    """results.json, peers.md and peers.png in ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    document = {"machine": machine, "milliseconds_per_image": times, "runs": results}
    (out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    dates = sorted({r["date"] for r in results})
    days = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    seeds = ", ".join(str(seed) for seed in sorted({r["seed"] for r in results}))
    parts = [
        "# RDSNet-lite against Mask R-CNN, same CPU time",
        "The same EfficientNet-Lite0 from ImageNet weights, pyramid of 96 channels, images, crops, "
        "batches of 4, AdamW and schedule; one thread on a CPU. Every budget is a training of its "
        f"own. AP is COCO's, in percent: mean ± standard error over seeds {seeds}. MBRM has the "
        f"published kernel, the mask threshold is the paper's. {days}, torch "
        f"{results[0]['torch']}. Made by `benchmarks/peers/run.py`.",
    ]
    for name in DATA_SETS:
        own = of(results, data=name)
        if own:
            parts += [f"## {DATA_SETS[name].title}", table(own, times.get(name, {}), titles)]
            parts += ["\n".join(differences(own, "lite", "mask_rcnn"))]
    parts += [
        "ms per image: one thread, the models taking turns on the same images, to masks of the "
        "image's size.\n\n![AP over CPU seconds](peers.png)\n"
    ]
    (out / "peers.md").write_text("\n\n".join(part for part in parts if part))
    plot(results, titles, out / "peers.png")


def plot(results: Results, titles: dict[str, str], path: Path) -> None:
    """AP over the CPU seconds of the training: a column for every data set."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in DATA_SETS if of(results, data=name)]
    figure = Figure(figsize=(4 * len(names), 6), layout="constrained")
    grid = figure.subplots(len(TASKS), len(names), squeeze=False, sharex="col")
    for column, name in enumerate(names):
        for row, (task, label) in enumerate(TASKS.items()):
            axes = grid[row][column]
            for number, (model, title) in enumerate(titles.items()):
                runs = of(results, data=name, model=model)
                budgets = sorted({r["budget"] for r in runs})
                groups = [of(runs, budget=budget) for budget in budgets]
                x = [statistics.mean(r["cpu_seconds"] for r in group) for group in groups]
                y = [statistics.mean(aps(group, task)) for group in groups]
                axes.plot(x, y, "o-", color=f"C{number}", label=title)
                dots = [(r["cpu_seconds"], r["AP"][task]["AP"]) for r in runs]
                if dots:
                    axes.plot(*zip(*dots), ".", color=f"C{number}", alpha=0.4)
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
        grid[0][column].set_title(DATA_SETS[name].title)
        grid[-1][column].set_xlabel("training, CPU seconds")
    grid[0][0].legend()
    FigureCanvasAgg(figure).print_png(str(path))
