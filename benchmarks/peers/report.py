"""Tables and plot from finished runs."""

from __future__ import annotations

import json
import os
import platform
import statistics
from pathlib import Path

from data import DATA_SETS
from models import OTHERS, PEERS, Model

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


def unit(results: Results) -> str:
    """What the seconds of these runs are: of a processor, or on the wall beside a GPU."""
    return "CPU s" if results[0].get("device", "cpu") == "cpu" else "s"


def table(results: Results, times: dict[str, float]) -> str:
    """A data set's runs: a row for every budget and model."""
    rows = [
        f"| time of Mask R-CNN's ... iterations | model | iterations | {unit(results)} | "
        "seeds | box AP without MBRM | box AP | mask AP | ms per image |",
        "| --- " * 9 + "|",
    ]
    for budget in sorted({r["budget"] for r in results}):
        for model, described in (PEERS | OTHERS).items():
            runs = of(results, budget=budget, model=model)
            if runs:
                cells = [
                    str(budget),
                    described.title,
                    *iterations_and_seconds(runs),
                    ", ".join(str(r["seed"]) for r in runs),
                    *(
                        mean_and_error(aps(runs, task))
                        for task in ("bbox_regressed", "bbox", "segm")
                    ),
                    str(times.get(model, "-")),
                ]
                rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def iterations_and_seconds(runs: Results) -> tuple[str, str]:
    """Of one training: iterations, and seconds by the speed that was measured in turns."""
    seconds = [
        r["iterations"] * r["seconds_per_iteration"] for r in runs if r["seconds_per_iteration"]
    ]
    return (
        f"{statistics.mean(r['iterations'] for r in runs):,.0f}",
        f"{statistics.mean(seconds):,.0f}" if seconds else "-",
    )


def gains(results: Results, ours: str, theirs: str) -> list[str]:
    """How far the AP of ours are ahead, paired by data, budget and seed: one text per task."""
    texts = []
    for task in TASKS:
        pairs = [
            a["AP"][task]["AP"] - b["AP"][task]["AP"]
            for a in of(results, model=ours)
            for b in of(results, model=theirs, **{k: a[k] for k in ("data", "budget", "seed")})
        ]
        error = f" ± {standard_error(pairs):.1f}" if len(pairs) > 1 else ", one seed"
        texts.append(f"{statistics.mean(pairs):+.1f}{error}" if pairs else "-")
    return texts


def differences(results: Results) -> str:
    """A line for every budget: how far RDSNet-lite is ahead of Mask R-CNN."""
    lines = []
    for budget in sorted({r["budget"] for r in results}):
        for model in ("lite", "lite_p3"):
            box, mask = gains(of(results, budget=budget), model, "mask_rcnn")
            if box != "-":
                title = (PEERS | OTHERS)[model].title
                lines.append(
                    f"- {title} minus Mask R-CNN at {budget}: box AP {box}; mask AP {mask}."
                )
    return "\n".join(lines)


def circumstances(results: Results) -> str:
    dates = sorted({r["date"] for r in results})
    days = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    seeds = ", ".join(str(seed) for seed in sorted({r["seed"] for r in results}))
    device = results[0].get("device", "cpu")
    precisions = sorted({r.get("precision", "float32") for r in results})
    where = (
        "one thread on a CPU, RDSNet in bfloat16 where it computes in it, Mask R-CNN in float32"
        if device == "cpu"
        else f"one {device}, in {' and '.join(precisions)}"
    )
    time = (
        "Every budget is a training of its own, with its whole schedule. Times are iterations "
        "times seconds per iteration, measured with the models taking turns on the same batches."
        if any(r["seconds_per_iteration"] for r in results)
        else "All are trained for as many iterations, whatever the time."
    )
    factors = {r.get("backbone_lr_factor", 1.0) for r in results}
    if len(factors) == 1:
        time += f" The backbone learns at {factors.pop():g} times the rate of all else."
    return (
        f"The same EfficientNet-Lite0, images, crops, batches of 4 and AdamW; {where}. {time} AP "
        "is COCO's, in percent: "
        f"mean ± standard error over as many of the seeds {seeds} as are named. MBRM has the "
        f"published kernel, the mask threshold is the paper's. {days}, torch "
        f"{results[0]['torch']}. Made by "
        "`benchmarks/peers/run.py`."
    )


def write_json(results: Results, times: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    document = {"machine": machine, "milliseconds_per_image": times, "runs": results}
    path.write_text(json.dumps(document, indent=1) + "\n")


def write_peers(
    results: Results, times: dict[str, dict[str, float]], out: Path, name: str = "peers"
) -> str:
    """NAME.json, NAME.md and NAME.png in ``out``; the text of the tables."""
    write_json(results, times, out / f"{name}.json")
    kind = "CPU time" if unit(results) == "CPU s" else "time"
    parts = [f"# RDSNet-lite against Mask R-CNN, same {kind}", circumstances(results)]
    for data, data_set in DATA_SETS.items():
        own = of(results, data=data)
        if own:
            parts += [f"## {data_set.title}", table(own, times.get(data, {})), differences(own)]
    parts.append(
        "ms per image: one thread, the models taking turns on the same images, to masks of the "
        f"image's size.\n\n![AP over time]({name}.png)\n"
    )
    text = "\n\n".join(part for part in parts if part)
    (out / f"{name}.md").write_text(text)
    titles = {key: m.title for key, m in (PEERS | OTHERS).items() if of(results, model=key)}
    plot(results, titles, out / f"{name}.png")
    return text


def write_study(name: str, models: dict[str, Model], results: Results, out: Path) -> str:
    """NAME.json and NAME.md in ``out``; the text of the table. Gains are over the first model."""
    write_json(results, {}, out / f"{name}.json")
    unchanged = next(iter(models))
    rows = [
        f"| RDSNet-lite with | iterations | {unit(results)} | box AP without MBRM | box AP "
        "| gain | mask AP | gain |",
        "| --- " * 8 + "|",
    ]
    for key, model in models.items():
        runs = of(results, model=key)
        if runs:
            box, mask = gains(results, key, unchanged) if key != unchanged else ("", "")
            columns = ("bbox_regressed", "bbox", "segm")
            regressed, boxes, masks = (mean_and_error(aps(runs, task)) for task in columns)
            cells = [
                "nothing changed" if key == unchanged else model.title,
                *iterations_and_seconds(runs),
                *(regressed, boxes, box, masks, mask),
            ]
            rows.append(f"| {' | '.join(cells)} |")
    title = DATA_SETS[results[0]["data"]].title
    parts = [
        f"# {models[unchanged].title} with one element changed, on {title}",
        circumstances(results) + " Gains are over what is unchanged, paired by seed.",
        "\n".join(rows),
    ]
    text = "\n\n".join(parts) + "\n"
    (out / f"{name}.md").write_text(text)
    return text


def plot(results: Results, titles: dict[str, str], path: Path) -> None:
    """AP over the time of a training: a column for every data set."""
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
                if not runs:
                    continue
                budgets = sorted({r["budget"] for r in runs})
                groups = [of(runs, budget=budget) for budget in budgets]
                y = [statistics.mean(aps(group, task)) for group in groups]
                axes.plot(budgets, y, "o-", color=f"C{number}", label=title)
                dots = [(r["budget"], r["AP"][task]["AP"]) for r in runs]
                if dots:
                    axes.plot(*zip(*dots), ".", color=f"C{number}", alpha=0.4)
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
        grid[0][column].set_title(DATA_SETS[name].title)
        grid[-1][column].set_xlabel("time of so many iterations of Mask R-CNN")
        grid[0][column].legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(str(path))
