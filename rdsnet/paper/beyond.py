"""What the paper leaves open, answered by the same trainings."""

from __future__ import annotations

from collections.abc import Sequence

from rdsnet.paper.tables import PaperTable, Runs, mean_and_error
from rdsnet.visualization.page import Table


def beyond_the_paper(runs: Runs) -> list[PaperTable]:
    """Those tables for which there are results."""
    made = (sizes_table(runs), expansion_table(runs), detectors_table(runs))
    return [table for table in made if table.table.rows]


def sizes_table(runs: Runs) -> PaperTable:
    """Whether MBRM gives most to large objects: edges' errors in pixels, by size."""
    results = [run["errors"] for run in runs.get("rdsnet", []) if "errors" in run]
    rows, sentences = [], []
    for size in ("small", "medium", "large"):
        of_size = [result[size] for result in results if result[size]["objects"]]
        if not of_size:
            continue
        means = {
            method: [errors[method] for errors in of_size]
            for method in ("regressed", "direct", "MBRM")
        }
        objects = sum(errors["objects"] for errors in of_size) // len(of_size)
        shown = [_pixels(values) for values in means.values()]
        saved = [a - b for a, b in zip(means["regressed"], means["MBRM"])]
        rows.append([size, str(objects), *shown, _pixels(saved)])
    if len(rows) > 1:
        regressed = ", ".join(f"{row[2]} px on {row[0]}" for row in rows)
        saved = ", ".join(f"{row[-1]} px on {row[0]}" for row in rows)
        sentences.append(
            f"Regressed edges are off by {regressed} objects; MBRM saves {saved} ones."
        )
    headers = ["objects", "found", "regressed, px off", "direct", "MBRM", "saved by MBRM"]
    title = "Beyond the paper: MBRM by the size of the objects"
    return PaperTable("sizes", title, Table(headers, rows), sentences)


def expansion_table(runs: Runs) -> PaperTable:
    """What happens without the 20 % at inference."""
    results = [run["metrics"] for run in runs.get("rdsnet", []) if "1.0" in run["metrics"]]
    rows = []
    for expand, title in (("1.0", "none"), ("None", "as configured")):
        of_expand = [metrics[expand] for metrics in results]
        if of_expand:
            columns = (("segm", "AP"), ("segm", "AP75"), ("bbox", "AP"), ("bbox", "AP75"))
            shown = [mean_and_error([m[task][ap] for m in of_expand]) for task, ap in columns]
            rows.append([title, *shown])
    sentences = []
    if rows:
        gains = [m["None"]["bbox"]["AP"] - m["1.0"]["bbox"]["AP"] for m in results]
        masks = [m["None"]["segm"]["AP"] - m["1.0"]["segm"]["AP"] for m in results]
        sentences.append(
            f"The expansion gives {mean_and_error(masks, signed=True)} mask AP and "
            f"{mean_and_error(gains, signed=True)} box AP (MBRM cannot move an edge beyond the "
            "window)."
        )
    headers = ["boxes expanded at inference", "mask AP", "mask AP75", "box AP", "box AP75"]
    title = "Beyond the paper: without the expansion at inference"
    return PaperTable("expansion", title, Table(headers, rows), sentences)


def detectors_table(runs: Runs) -> PaperTable:
    """Whether MBRM's gain survives a better detector and finer pixels."""
    titles = {
        "corr_te": "YOLACT's detector, correlation, without OHEM",
        "rdsnet_s": "RDSNet_s",
        "rdsnet_600": "RDSNet, smaller scale",
        "rdsnet": "RDSNet",
    }
    rows = []
    for name, title in titles.items():
        last = [list(run["metrics"].values())[-1] for run in runs.get(name, [])]
        last = [metrics for metrics in last if "bbox_regressed" in metrics]
        if last:
            before = [metrics["bbox_regressed"]["AP"] for metrics in last]
            gains = {
                ap: [m["bbox"][ap] - m["bbox_regressed"][ap] for m in last]
                for ap in ("AP", "AP50", "AP75")
            }
            shown = [mean_and_error(values, signed=True) for values in gains.values()]
            rows.append([title, mean_and_error(before), *shown])
    headers = ["model", "box AP as regressed", "gain of MBRM", "at IoU 0.5", "at IoU 0.75"]
    title = "Beyond the paper: MBRM on better detectors"
    return PaperTable("detectors", title, Table(headers, rows))


def _pixels(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f}"
