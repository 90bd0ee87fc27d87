"""Tables, plots and json of what was measured."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from tabulate import tabulate

from rdsnet.benchmark.mask_path import PHASES
from rdsnet.formatting import decimal

_NAMES = {
    "straightforward": "straightforward",
    "pytorch": "PyTorch definition",
    "compiled": "compiled",
}
_COLOURS = {"straightforward": "tab:red", "pytorch": "tab:orange", "compiled": "tab:blue"}


def write(report: dict, folder: Path, name: str, text: str) -> None:
    """``name.json`` for programs, ``name.md`` for people."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / f"{name}.md").write_text(text + "\n")


def _machine_text(machine: dict) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in machine.items())


def mask_path_text(report: dict) -> str:
    """The results as Markdown, a table per phase and number of threads."""
    parts = [_machine_text(report["machine"])]
    for limit in report["limits"]:
        threads = limit["threads"]
        parts.append(
            f"{_threads(threads)}: {limit['fma_per_s'] / 1e9:.1f} G multiply-adds/s, "
            f"{limit['bytes_per_s'] / 1e9:.1f} GB/s measured."
        )
        for phase in PHASES:
            own = [r for r in report["results"] if (r["phase"], r["threads"]) == (phase, threads)]
            parts.append(f"### {phase.capitalize()}, {_threads(threads)}")
            parts.append(_table(own))
    skipped = sorted(
        {
            f"{r['phase']}, {r['size']} px, {r['objects']} objects: {name} {reason}"
            for r in report["results"]
            for name, reason in r["skipped"].items()
        }
    )
    parts += [f"Left out: {line}." for line in skipped]
    if "agreement" in report:
        parts += ["### Agreement with the straightforward code", _agreement(report["agreement"])]
    if "lazy_convolution" in report:
        parts += ["### Last convolution of the representations", _lazy(report["lazy_convolution"])]
    return "\n\n".join(parts)


def _table(results: Sequence[dict]) -> str:
    rows = [
        [
            result["size"],
            result["objects"],
            _NAMES[name],
            f"{own['median_ms']:.2f}",
            f"{own['min_ms']:.2f}",
            "?" if own["extra_peak_mb"] is None else f"{own['extra_peak_mb']:.1f}",
            _ratio(own["speedup"]) if "speedup" in own else "",
            _ratio(own["times_bound"]),
        ]
        for result in results
        for name, own in result["implementations"].items()
    ]
    headers = ("px", "objects", "implementation", "median ms", "min ms", "extra MB")
    headers += ("times as fast", "times the bound")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _agreement(agreement: dict) -> str:
    rows = [
        [
            _NAMES[name],
            f"{own['mask_iou']:.4f}",
            f"{100 * own['edges_moved']:.1f} %",
            f"{own['loss']:.1e}",
            f"{own['gradient']:.1e}",
        ]
        for name, own in sorted(agreement.items())
    ]
    headers = ("", "IoU of the masks", "box edges elsewhere")
    headers += ("relative deviation of the loss", "of its gradients")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _lazy(results: Sequence[dict]) -> str:
    rows = [
        [
            r["threads"],
            r["phase"],
            r["objects"],
            f"{r['dense']['median_ms']:.1f}",
            f"{r['lazy']['median_ms']:.1f}",
            f"{r['dense']['median_ms'] / r['lazy']['median_ms']:.1f}",
        ]
        for r in results
    ]
    headers = ("threads", "phase", "objects", "dense ms", "at the anchors ms", "times as fast")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def plot_mask_path(report: dict, path: Path) -> None:
    """Time over the number of objects, per phase and size, on the first number of threads."""
    threads = report["limits"][0]["threads"]
    results = [r for r in report["results"] if r["threads"] == threads]
    sizes = sorted({r["size"] for r in results})
    figure, axes = plt.subplots(
        len(PHASES),
        len(sizes),
        figsize=(1.5 + 3.4 * len(sizes), 3.25 * len(PHASES)),
        sharey=True,
        squeeze=False,
    )
    for row, phase in zip(axes, PHASES):
        for ax, size in zip(row, sizes):
            own = [r for r in results if (r["phase"], r["size"]) == (phase, size)]
            for name, label in _NAMES.items():
                points = [
                    (r["objects"], r["implementations"][name]["median_ms"])
                    for r in own
                    if name in r["implementations"]
                ]
                if points:
                    ax.plot(*zip(*points), "o-", color=_COLOURS[name], label=label)
            bound = [(r["objects"], r["bound_ms"]) for r in own]
            ax.plot(*zip(*bound), "--", color="gray", label="bound")
            ax.set(xscale="log", yscale="log", title=f"{phase}, {size} px")
            counts = sorted({r["objects"] for r in own})
            ax.set_xticks(counts, [str(count) for count in counts])
            ax.set_xticks([], minor=True)
            ax.grid(alpha=0.3)
    for ax in axes[-1]:
        ax.set_xlabel("objects")
    for ax in axes[:, 0]:
        ax.set_ylabel("ms per image")
    axes[0, 0].legend(fontsize=8)
    machine = report["machine"]
    where = machine.get("gpu") or f"{_threads(threads)}, {machine['cpu']}"
    figure.suptitle(f"Mask path, {where}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def models_text(report: dict) -> str:
    """Whole models as Markdown."""
    rows = []
    for result in report["results"]:
        base = result["models"]["RetinaNet"]["median_ms"]
        for name, own in result["models"].items():
            rows.append(
                [
                    f"{result['backbone']}, {result['size']} px",
                    result["phase"],
                    name,
                    f"{own['median_ms']:.0f}",
                    f"{own['min_ms']:.0f}",
                    _memory(own["extra_peak_mb"]),
                    f"{decimal(100 * (own['median_ms'] / base - 1), signed=True)} %",
                    own.get("detections", ""),
                ]
            )
    headers = ("backbone", "phase", "model", "median ms", "min ms", "extra MB")
    headers += ("over RetinaNet", "detections")
    parts = [
        _machine_text(report["machine"]),
        ", ".join(
            f"{name.replace('_', ' ')} {_words(v)}" for name, v in report["settings"].items()
        ),
        tabulate(rows, headers, tablefmt="github", disable_numparse=True),
        "Inference as shipped, beside the plain model:",
        _as_shipped_table(report["as_shipped"]),
    ]
    if "in_use" in report:
        parts += _in_use(report["in_use"])
    return "\n\n".join(parts)


def _in_use(results: dict) -> list[str]:
    """What :func:`rdsnet.benchmark.in_use.run` measured."""
    of_pytorch = results["files"]["PyTorch, float32"]["min_ms"]
    rows = [
        [
            way,
            own["objects"],
            f"{own['min_ms']:.0f}",
            f"{own['median_ms']:.0f}",
            f"{decimal(of_pytorch / own['min_ms'], 2)}x",
            _memory(own["peak_mb"]),
            "" if own["files_mb"] is None else f"{own['files_mb']:.1f}",
        ]
        for way, own in results["files"].items()
    ]
    headers = ("", "objects", "min ms", "median ms", "times PyTorch's float32")
    headers += ("peak MB of a process", "files, MB")
    height, width = results["size"]
    versions = "".join(f"; {name} {value}" for name, value in results["versions"].items())
    predict = results["predict"]
    model, command = (predict[f"{name}_images_per_second"] for name in ("model", "predict"))
    speed = "too few to tell"
    if command is not None:
        speed = f"{command:.2f} images/s, {100 * command / model:.0f} % of that"
    return [
        f"The model `nuclei` on a made-up picture of {height} x {width} px, in PyTorch and as "
        f"exported files, in turn, CPU time of one thread{versions}:",
        tabulate(rows, headers, tablefmt="github", disable_numparse=True),
        *(f"Left out: {way}: {reason}" for way, reason in results["left_out"].items()),
        f"{predict['images']} such JPEGs, by the clock, {predict['precision']}, "
        f"{_threads(predict['threads'])}: the model alone {model:.2f} images/s; `rdsnet predict`, "
        f"which writes coco and csv: {speed}. Loading the model and the first picture, "
        f"{predict['loading_seconds']:.1f} s, are not counted.",
    ]


def _memory(megabytes: float | None) -> str:
    return "?" if megabytes is None else f"{megabytes:.0f}"


def plot_models(report: dict, path: Path) -> None:
    """Milliseconds as bars: per backbone and phase, as shipped, and in use."""
    panels = {
        f"{r['backbone']}, {r['size']} px, {r['phase']}": r["models"] for r in report["results"]
    }
    panels |= {f"{name}, inference": times for name, times in report["as_shipped"].items()}
    if "in_use" in report:
        panels["nuclei, one thread, CPU time"] = report["in_use"]["files"]
    rows = -(-len(panels) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(11, 1.9 * rows), squeeze=False)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, (title, times) in zip(axes.flat, panels.items()):
        values = [own["median_ms"] for own in times.values()]
        colours = ["tab:blue" if _is_ours(name) else "tab:gray" for name in times]
        bars = ax.barh(list(times), values, color=colours)
        ax.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
        ax.invert_yaxis()
        ax.margins(x=0.15)
        ax.set_title(title, fontsize=9)
        ax.tick_params(labelsize=8)
    figure.suptitle(
        f"Milliseconds, medians, {report['machine'].get('gpu') or report['machine']['cpu']}",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _is_ours(name: str) -> bool:
    return name not in ("RetinaNet", "Mask R-CNN", "plain")


def goals_text(report: dict) -> str:
    """What :func:`rdsnet.benchmark.goals.run` measured, as Markdown."""
    rows = [
        [case, name, f"{own['median_ms']:.0f}", f"{own['min_ms']:.0f}"]
        + ["" if own.get("extra_peak_mb") is None else f"{own['extra_peak_mb']:.0f}"]
        for case, times in report["times"].items()
        for name, own in times.items()
    ]
    headers = ("", "model", "median ms", "min ms", "extra MB")
    goals = [
        [goal["case"], goal["goal"], goal["measured"], "yes" if goal["reached"] else "no"]
        for goal in report["goals"]
    ]
    return "\n\n".join(
        [
            _machine_text(report["machine"]),
            "Milliseconds of CPU time on one thread, which other work on the machine disturbs "
            f"little; at inference {report['rounds']} rounds in turn. Ratios are those of the "
            "least times.",
            tabulate(rows, headers, tablefmt="github", disable_numparse=True),
            tabulate(
                goals,
                ("", "goal", "measured", "reached"),
                tablefmt="github",
                disable_numparse=True,
            ),
        ]
    )


def _as_shipped_table(times: dict) -> str:
    rows = [
        [model, name, f"{own['median_ms']:.0f}", f"{own['min_ms']:.0f}"]
        + [f"{decimal(of_model['plain'][key] / own[key], 2)}x" for key in ("median_ms", "min_ms")]
        for model, of_model in times.items()
        for name, own in of_model.items()
    ]
    headers = ("model", "inference", "median ms", "min ms", "times plain: median", "min")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _ratio(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"


def _words(value: object) -> str:
    """A setting as in a command line: options in a row, "none" where there are none."""
    if not isinstance(value, list):
        return str(value)
    return shlex.join(value) or "none"
