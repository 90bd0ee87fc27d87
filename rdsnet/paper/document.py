"""``paper.md`` and ``paper.html``: tables and figures with honest captions."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
from tabulate import tabulate

from rdsnet.paper import published
from rdsnet.paper.beyond import beyond_the_paper
from rdsnet.paper.plan import Paper
from rdsnet.paper.runs import finished
from rdsnet.paper.tables import PaperTable, Runs, table_1, table_2, table_3, table_4
from rdsnet.visualization.page import Page, Picture, Section, Table, picture_uri

_PICTURES = "pictures"


@dataclass(frozen=True)
class PaperFigure:
    """A picture file in the folder ``pictures`` and what it shows."""

    key: str
    title: str
    file: str
    caption: str


_FIGURES = {
    "fig1": (
        "Fig. 1: localisation errors",
        "fig1.jpg",
        "Of every validation image the detection whose regressed box is furthest off from its "
        "object (largest distance of an edge as a share of the object's side; IoU at least 0.5); "
        "of these the eight worst. What MBRM made of them plays no part in the choice.",
    ),
    "fig3": (
        "Fig. 3: representations",
        "fig3.jpg",
        "Representations of pixels and objects, reduced to three dimensions (PCA) and to length "
        "1. A colour is a place on the sphere: pixels of one object should share a colour.",
    ),
    "fig5": (
        "Fig. 5: gamma and s of MBRM",
        "fig5.png",
        f"Box AP over gamma for several s, the kernel fitted anew for each s. The paper chose "
        f"gamma {published.GAMMA} and s = {published.RADIUS} on COCO val2017.",
    ),
}


def write(paper: Paper, fps: dict[str, float]) -> Path:
    """Write both documents from the runs that are finished.

    Args:
        fps: images per second, see :func:`rdsnet.paper.speed.images_per_second`.

    Returns:
        The path of ``paper.html``.
    """
    runs: Runs = {}
    for training in paper.trainings:
        results = [finished(paper, training, seed) for seed in paper.seeds]
        if any(results):
            runs[training.name] = [result for result in results if result]
    tables = [table for table in _tables(paper, runs, fps) if table.table.rows]
    figures = _figures(paper)
    (paper.folder / "paper.md").write_text(_markdown(paper, runs, tables, figures))
    page = _page(paper, runs, tables, figures)
    path = paper.folder / "paper.html"
    path.write_text(page.html())
    return path


def _tables(paper: Paper, runs: Runs, fps: dict[str, float]) -> list[PaperTable]:
    made = {
        "table1": lambda: table_1(runs, fps),
        "table2": lambda: table_2(runs, fps),
        "table3": lambda: table_3(runs),
        "table4": lambda: table_4(runs),
    }
    tables = [make() for key, make in made.items() if key in paper.tables]
    return tables + (beyond_the_paper(runs) if "beyond" in paper.tables else [])


def _figures(paper: Paper) -> list[PaperFigure]:
    """Those that are there, copied from the first seed's run."""
    (rdsnet,) = [t for t in paper.trainings if t.name == "rdsnet"] or [None]
    if rdsnet is None:
        return []
    source, target = paper.run_folder(rdsnet, paper.seeds[0]), paper.folder / _PICTURES
    figures = []
    for key, (title, file, caption) in _FIGURES.items():
        if key in paper.tables and (source / file).is_file():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, target / file)
            figures.append(PaperFigure(key, title, file, caption))
    return figures


# ------------------------------------------------------------------------ what is said


def circumstances(paper: Paper, runs: Runs) -> list[str]:
    """Data, budget, seeds, machine: what the figures hold for."""
    results = [result for of_training in runs.values() for result in of_training]
    data = "COCO 2017" if paper.is_coco else "/".join(Path(str(paper.data[0])).parts[-2:])
    if not results:
        return [f"Data: {data}. Nothing is finished yet."]
    iterations = sorted({result["iterations"] for result in results})
    batches = sorted({result["batch"] for result in results})
    dates = sorted({result["date"] for result in results})
    days = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    left = [t.title for t in paper.trainings if len(runs.get(t.name, [])) < len(paper.seeds)]
    sentences = [
        f"Data: {data}; models: {paper.family}; {_listed(iterations)} iterations of "
        f"{_listed(batches)} images for every model; seeds {_listed(list(paper.seeds))}.",
        "Figures are COCO's AP in percent on the validation data, mean ± standard error over "
        "seeds. The paper's are from COCO (Tables 1 and 2: test-dev, 3 and 4: val2017) with R-101 "
        "and 12 epochs unless it says otherwise: compare directions, not values.",
        f"{days}, torch {results[0]['torch']}, {_machine(paper)}.",
    ]
    if paper.options:
        sentences.insert(1, f"Options: {' '.join(paper.options)}.")
    if left:
        sentences.append(f"Not finished with all seeds: {', '.join(left)}.")
    return sentences


def _listed(values: list) -> str:
    return ", ".join(f"{value:,}" for value in values)


def _machine(paper: Paper) -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{platform.machine()}, {os.cpu_count()} cores, no GPU"


NOTES = {
    "table1": "TensorMask, MS R-CNN and FCIS are not trained: TensorMask needs operators that "
    "only a compiled Detectron2 has, the others have no implementation in Detectron2. images/s: "
    "one image at a time, the models taking turns on the same images, to masks of the image's "
    "size.",
    "table2": "RetinaNet is RDSNet's object stream, trained without masks. HTC, YOLOv3, RefineDet "
    "and CornerNet have no implementation in Detectron2.",
    "table3": "TE: boxes expanded by 1.5 in training, IE: by 1.2 at inference. Rows that differ "
    "only in IE are the same trained models; gains are over row 1, paired by seed.",
    "table4": "All rows are the same detections. Fitted kernels, gamma as configured.",
    "sizes": "Mean distance of the edges of found objects (IoU at least 0.5) from the true edges, "
    "in pixels, by COCO's sizes of objects.",
    "expansion": "The same trained models with masks cut by the boxes themselves, and by expanded "
    "ones.",
    "detectors": "MBRM's kernel is fitted for RDSNet; the models of Table 3 have the published "
    "one.",
}


def _markdown(
    paper: Paper, runs: Runs, tables: list[PaperTable], figures: list[PaperFigure]
) -> str:
    parts = ["# RDSNet: the paper's tables, made again", " ".join(circumstances(paper, runs))]
    for table in tables:
        parts += [f"## {table.title}", _markdown_table(table.table), NOTES[table.key]]
        parts.append("\n".join(f"- {sentence}" for sentence in table.sentences))
    for figure in figures:
        parts += [f"## {figure.title}", f"![{figure.title}]({_PICTURES}/{figure.file})"]
        parts.append(figure.caption)
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(table: Table) -> str:
    return tabulate(table.rows, table.headers, tablefmt="github", disable_numparse=True)


def _page(paper: Paper, runs: Runs, tables: list[PaperTable], figures: list[PaperFigure]) -> Page:
    sections = [Section("What this is", " ".join(circumstances(paper, runs)))]
    for table in tables:
        text = " ".join([NOTES[table.key], *table.sentences])
        sections.append(Section(table.title, text, tables=[table.table]))
    for figure in figures:
        image = cv2.imread(str(paper.folder / _PICTURES / figure.file))[:, :, ::-1]
        picture = Picture(picture_uri(image, 1440), figure.title)
        sections.append(Section(figure.title, figure.caption, pictures=[[picture]]))
    return Page("RDSNet", "The paper's tables and figures, made again", sections=sections)
