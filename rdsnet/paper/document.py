"""``paper.md`` and ``paper.html``: tables and figures with honest captions."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
from tabulate import tabulate

from rdsnet.paper import published
from rdsnet.paper.beyond import beyond_the_paper, detectors_table
from rdsnet.paper.plan import Paper
from rdsnet.paper.runs import finished
from rdsnet.paper.tables import PaperTable, Runs, table_1, table_2, table_3, table_4
from rdsnet.visualization.page import Page, Picture, Section, Table, picture_uri

PICTURES = "pictures"


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
    "fig4": (
        "Fig. 4: with Mask R-CNN, without and with MBRM",
        "fig4.jpg",
        "Rows as in the paper: Mask R-CNN; RDSNet with masks cut by the regressed boxes and "
        "without MBRM; RDSNet. Below each the IoU of box and mask with the true ones. The paper "
        "chose its images by eye; these are the four large objects (medium or small ones where "
        "none was found) whose regressed boxes are worst by the rule of Fig. 1, one per image. The "
        "second row is thus at its worst, and the others would look better by chance alone: the "
        "figure illustrates, the tables measure.",
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
    runs = finished_runs(paper)
    tables = [table for table in _tables(paper, runs, fps) if table.table.rows]
    figures = _figures(paper)
    (paper.folder / "paper.md").write_text(_markdown(paper, runs, tables, figures))
    page = _page(paper, runs, tables, figures)
    path = paper.folder / "paper.html"
    path.write_text(page.html())
    return path


def finished_runs(paper: Paper) -> Runs:
    """The results that are there."""
    runs: Runs = {}
    for training in paper.trainings:
        results = [finished(paper, training, seed) for seed in paper.seeds]
        if any(results):
            runs[training.name] = [result for result in results if result]
    return runs


def _tables(paper: Paper, runs: Runs, fps: dict[str, float]) -> list[PaperTable]:
    made = {
        "table1": lambda: table_1(runs, fps),
        "table2": lambda: table_2(runs, fps),
        "table3": lambda: table_3(runs),
        "table4": lambda: table_4(runs),
    }
    tables = [make() for key, make in made.items() if key in paper.tables]
    tables += beyond_the_paper(runs) if "beyond" in paper.tables else []
    if "detectors" in paper.tables:
        titles = {training.name: training.title for training in paper.trainings}
        tables.append(detectors_table(runs, titles))
    return tables


def _figures(paper: Paper) -> list[PaperFigure]:
    """Those that are there; of RDSNet alone, copied from the first seed's run."""
    (rdsnet,) = [t for t in paper.trainings if t.name == "rdsnet"] or [None]
    if rdsnet is None:
        return []
    source, target = paper.run_folder(rdsnet, paper.seeds[0]), paper.folder / PICTURES
    figures = []
    for key, (title, file, caption) in _FIGURES.items():
        if key not in paper.tables:
            continue
        if (source / file).is_file():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, target / file)
        if (target / file).is_file():  # Fig. 4 is of several runs, and made there
            figures.append(PaperFigure(key, title, file, caption))
    return figures


# ------------------------------------------------------------------------ what is said


_LITE = (
    "The lite RDSNet is not the paper's: besides its backbone it has ATSS, quality focal loss, "
    "masks that begin with an ellipse, and finer pixels. How it stands beside Mask R-CNN or YOLACT "
    "says nothing of the paper's Tables 1 and 2; what masks, MBRM, expansion and OHEM change "
    "within a model does."
)


def circumstances(paper: Paper, runs: Runs) -> list[str]:
    """Data, budget, seeds, machine: what the figures hold for."""
    results = [result for of_training in runs.values() for result in of_training]
    data = "COCO 2017" if paper.is_coco else "/".join(Path(str(paper.data[0])).parts[-2:])
    if not results:
        return [f"Data: {data}. Nothing is finished yet."]
    dates = sorted({result["date"] for result in results})
    days = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    left = [t.title for t in paper.trainings if len(runs.get(t.name, [])) < len(paper.seeds)]
    sentences = [
        f"Data: {data}; models: {paper.family}; {_lengths(paper, runs)}; seeds "
        f"{', '.join(map(str, paper.seeds))}.",
        "Figures are COCO's AP in percent on the validation data, mean ± standard error over "
        "seeds. The paper's are from COCO (Tables 1 and 2: test-dev, 3 and 4: val2017) with R-101 "
        "and 12 epochs unless it says otherwise: compare directions, not values.",
        f"Trained {days}, torch {_all(results, 'torch')}, {_all(results, 'machine')}.",
    ]
    if paper.family == "lite":
        sentences.insert(2, _LITE)
    if paper.options:
        sentences.insert(1, f"Options: {' '.join(paper.options)}.")
    unfitted = [t.title for t in paper.trainings if _not_fitted(runs.get(t.name, []))]
    if unfitted:
        sentences.append(
            f"MBRM has the published kernel in {', '.join(unfitted)}: the model has found no "
            "object in the training images, so there was nothing to fit one to."
        )
    if paper.without:
        sentences.append(f"Left out (--without): {', '.join(paper.without)}.")
    if left:
        sentences.append(f"Not finished with all seeds: {', '.join(left)}.")
    return sentences


def _not_fitted(results: list[dict]) -> bool:
    return any(result.get("kernel_not_fitted") for result in results)


def _lengths(paper: Paper, runs: Runs) -> str:
    """How long every model was trained."""
    models: dict[tuple[int, int], list[str]] = {}
    for training in paper.trainings:
        for result in runs.get(training.name, []):
            titles = models.setdefault((result["iterations"], result["batch"]), [])
            titles += [] if training.title in titles else [training.title]
    if len(models) == 1:
        ((iterations, batch),) = models
        return f"{iterations:,} iterations of {batch} images for every model"
    return "; ".join(
        f"{iterations:,} iterations of {batch} images for {', '.join(titles)}"
        for (iterations, batch), titles in models.items()
    )


def _all(results: list[dict], key: str) -> str:
    return ", ".join(dict.fromkeys(result[key] for result in results))


NOTES = {
    "table1": "TensorMask, MS R-CNN and FCIS are not trained: TensorMask needs operators that "
    "only a compiled Detectron2 has, the others have no implementation in Detectron2. images/s: "
    "one image at a time, the models taking turns on the same images, to masks of the image's "
    "size.",
    "table2": "RetinaNet is RDSNet's object stream, trained without masks. HTC, YOLOv3, RefineDet "
    "and CornerNet have no implementation in Detectron2.",
    "table3": "TE: boxes expanded by 1.5 in training, IE: by 1.2 at inference. Rows that differ "
    "only in IE are the same trained models; gains are over row 1, paired by seed.",
    "table4": "All rows are the same detections. Fitted kernels, gamma as configured. The paper's "
    "figures are near its 600 px model (Table 2).",
    "sizes": "Objects that the regressed boxes have found (IoU at least 0.5): mean distance of "
    "their edges from the true edges in pixels of the image, and as a share of the median side; "
    "edges as regressed, of the rectangle around the mask, and after MBRM. On the right what AP of "
    "objects of this size gains over the regressed boxes (Table 4).",
    "expansion": "The same trained models with masks cut by the boxes themselves, and by boxes "
    "expanded by MODEL.RDSNET.TEST_EXPAND (the paper: 1.2).",
    "detectors": "Each RDSNet has a kernel of its own, fitted to it; YOLACT's detector with "
    "correlation and RDSNet_s have the published one.",
}


def _markdown(
    paper: Paper, runs: Runs, tables: list[PaperTable], figures: list[PaperFigure]
) -> str:
    parts = ["# RDSNet: the paper's tables, made again", " ".join(circumstances(paper, runs))]
    for table in tables:
        parts += [f"## {table.title}", _markdown_table(table.table), NOTES[table.key]]
        parts.append("\n".join(f"- {sentence}" for sentence in table.sentences))
    for figure in figures:
        parts += [f"## {figure.title}", f"![{figure.title}]({PICTURES}/{figure.file})"]
        parts.append(figure.caption)
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(table: Table) -> str:
    return tabulate(table.rows, table.headers, tablefmt="github", disable_numparse=True)


def _page(paper: Paper, runs: Runs, tables: list[PaperTable], figures: list[PaperFigure]) -> Page:
    sections = [Section("What this is", points=circumstances(paper, runs))]
    for table in tables:
        sections.append(
            Section(table.title, NOTES[table.key], tables=[table.table], points=table.sentences)
        )
    for figure in figures:
        image = cv2.imread(str(paper.folder / PICTURES / figure.file))[:, :, ::-1]
        picture = Picture(picture_uri(image, 1600), figure.caption, large=True)
        sections.append(Section(figure.title, pictures=[[picture]]))
    return Page("RDSNet", "The paper's tables and figures, made again", sections=sections)
