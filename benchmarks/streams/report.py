"""Tables and plot from finished runs."""

from __future__ import annotations

import json
import os
import platform
import statistics
from pathlib import Path

from trainings import COMPARED, TABLE_3, TRAININGS


def of(results: list[dict], name: str, expand: float, task: str = "segm") -> dict[int, float]:
    """{seed: AP} of the finished runs of a training."""
    return {
        r["seed"]: r["evaluations"][str(expand)][task]["AP"] for r in results if r["name"] == name
    }


def mean_and_spread(values: list[float]) -> str:
    """ "31.0 ± 0.4": mean and sample standard deviation."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def comparison(results: list[dict], milliseconds: dict[str, float]) -> str:
    rows = []
    for name, expand in COMPARED:
        runs = [r for r in results if r["name"] == name]
        if not runs:
            continue
        aps = [
            mean_and_spread(list(of(results, name, expand, task).values()))
            for task in ("bbox_regressed", "bbox", "segm")
        ]
        seconds = [r["training_cpu_seconds"] for r in runs]
        rows.append(
            [
                TRAININGS[name].title,
                *aps,
                str(milliseconds.get(name, "-")),
                f"{runs[0]['parameters'] / 1e6:.2f} M",
                f"{statistics.mean(seconds):.0f}",
            ]
        )
    header = ["", "box AP without MBRM", "box AP", "mask AP", "ms per image", "parameters"]
    return table([*header, "training, CPU s"], rows)


def ablation(results: list[dict]) -> str:
    rows = []
    baseline = of(results, TABLE_3[0].training, TABLE_3[0].test_expand)
    for number, row in enumerate(TABLE_3, 1):
        aps = of(results, row.training, row.test_expand)
        gains = [aps[seed] - baseline[seed] for seed in sorted(set(aps) & set(baseline))]
        corr, *marks = row.marks
        rows.append(
            [
                str(number),
                "Corr" if corr else "LC",
                *("x" if mark else "" for mark in marks),
                mean_and_spread(list(aps.values())),
                ", ".join(f"{aps[seed]:.1f}" for seed in sorted(aps)) or "-",
                f"{statistics.mean(gains):+.1f}" if gains else "-",
                f"{row.paper:.1f}",
                f"{row.paper - TABLE_3[0].paper:+.1f}",
            ]
        )
    header = ["", "masks", "TE", "OHEM", "IE", "mask AP", "every seed", "gain", "paper", "gain"]
    return table(header, rows)


def verdict(results: list[dict], first: int, second: int, what: str) -> str:
    """One sentence on the step from one row of Table 3 to another, paired by seed."""
    a, b = TABLE_3[first - 1], TABLE_3[second - 1]
    before, after = (of(results, row.training, row.test_expand) for row in (a, b))
    gains = [after[seed] - before[seed] for seed in sorted(set(before) & set(after))]
    paper = f"the paper: {b.paper - a.paper:+.1f}"
    if len(gains) < 2:
        return f"{what} (row {first} to {second}; {paper}): not enough runs yet."
    mean = statistics.mean(gains)
    error = statistics.stdev(gains) / len(gains) ** 0.5
    if abs(mean) <= 2 * error or min(gains) * max(gains) <= 0:
        finding = "within the noise of these seeds, so the paper's direction neither shows nor is "
        finding += "contradicted at this scale"
    elif mean * (b.paper - a.paper) > 0:
        finding = "the paper's direction shows at this scale"
    else:
        finding = "the opposite of the paper's direction at this scale"
    seeds = ", ".join(f"{gain:+.1f}" for gain in gains)
    return (
        f"{what} (row {first} to {second}): {mean:+.1f} mask AP (seeds: {seeds}; standard error "
        f"{error:.1f}; {paper}): {finding}."
    )


def write_reports(results: list[dict], milliseconds: dict[str, float], out: Path) -> None:
    """results.json, comparison.md, ablation.md and streams.png in ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    settings = results[0]["settings"]
    document = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "milliseconds_per_image": milliseconds,
        "runs": [{**r, "settings": {**r["settings"], "data": "nuclei"}} for r in results],
    }
    (out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    seeds = sorted({r["seed"] for r in results})
    dates = sorted({r["date"] for r in results})
    setting = (
        f"Cell nuclei (2018 Data Science Bowl), images of at most {settings['max_side']} px; the "
        f"small backbone from scratch, {settings['max_iter']} iterations of {settings['batch']} "
        f"crops of {settings['crop']} x {settings['crop']} px, AdamW, one thread on a CPU; seeds "
        f"{', '.join(map(str, seeds))}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}, torch "
        f"{results[0]['torch']}. AP is COCO's, in percent: mean ± standard deviation over seeds. "
        "Made by `benchmarks/streams/run.py`."
    )
    (out / "comparison.md").write_text(
        f"# Four object streams, same budget\n\n{setting} MBRM has the published kernel.\n\n"
        f"{comparison(results, milliseconds)}\n\n"
        "ms per image: one thread, the models taking turns on the same images, to masks in "
        "run-length form.\n\n![AP of every seed](streams.png)\n"
    )
    steps = (
        (1, 2, "Correlation instead of linear combination"),
        (2, 7, "Expansion with OHEM on top of correlation"),
        (2, 5, "Expansion alone"),
        (5, 7, "OHEM on top of expansion"),
    )
    verdicts = "\n".join(f"- {verdict(results, *step)}" for step in steps)
    (out / "ablation.md").write_text(
        f"# The ablation of Table 3\n\n{setting} LC: linear combination, Corr: correlation, TE: "
        "boxes expanded by 1.5 in training, IE: by 1.2 at inference. Rows that differ only in IE "
        "are the same trained models. Gains are over row 1, paired by seed. The paper's figures "
        f"are from COCO val2017.\n\n{ablation(results)}\n\n{verdicts}\n"
    )
    plot(results, out / "streams.png")


def plot(results: list[dict], path: Path) -> None:
    """AP of every seed (dots) and their means (bars): streams on the left, Table 3 on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    tasks = {"bbox_regressed": "box without MBRM", "bbox": "box", "segm": "mask"}
    for shift, task in enumerate(tasks):
        for x, (name, expand) in enumerate(COMPARED):
            values = list(of(results, name, expand, task).values())
            draw(left, x + 0.25 * (shift - 1), values, f"C{shift}")
    titles = [TRAININGS[name].title.replace(" on ", " on\n") for name, _ in COMPARED]
    left.set_xticks(range(len(COMPARED)), titles)
    left.set_title("same budget")
    handles = [Patch(color=f"C{i}", label=label) for i, label in enumerate(tasks.values())]
    left.margins(y=0.2)
    left.legend(handles=handles, loc="upper center", ncols=3)
    for x, row in enumerate(TABLE_3):
        values = list(of(results, row.training, row.test_expand).values())
        draw(right, x, values, "C2")
    names = zip(("corr", "TE", "OHEM", "IE"), zip(*(row.marks for row in TABLE_3)))
    marks = [[name if mark else "" for mark in column] for name, column in names]
    labels = ["\n".join(filter(None, column)) or "LC" for column in zip(*marks)]
    right.set_xticks(range(len(TABLE_3)), labels)
    right.set_title("Table 3, mask AP")
    for axes in (left, right):
        axes.set_ylabel("AP")
        axes.grid(axis="y", alpha=0.3)
    FigureCanvasAgg(figure).print_png(str(path))


def draw(axes, x: float, values: list[float], color: str) -> None:
    if values:
        axes.bar(x, statistics.mean(values), 0.22, color=color, alpha=0.4)
        axes.plot([x] * len(values), values, ".", color=color)
