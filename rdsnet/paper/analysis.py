"""What one trained RDSNet shows: Table 4, Fig. 1, 3 and 5, and errors by size.

All but Fig. 3 comes from stored profiles (:mod:`rdsnet.fitting.profiles`): one pass of the network
over the data serves all of it.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from rdsnet.data.channels import read_picture
from rdsnet.evaluation.box_ap import ImageBoxes
from rdsnet.fitting.fit import load_unrefined_model, output_folder
from rdsnet.fitting.profiles import ImageProfiles, collect_profiles
from rdsnet.fitting.study import compare_methods, refine, sweep
from rdsnet.modeling import MBRM
from rdsnet.modeling.refinement import EnclosingBoxes
from rdsnet.reports.representations import representations_section
from rdsnet.visualization.mbrm import plot_sweep
from rdsnet.visualization.page import Picture
from rdsnet.visualization.sheet import captioned, contact_sheet

# Pictures of localisation errors, and their width.
_WORST, _COLUMNS, _WIDTH = 8, 4, 360
# A picture shows so many times the object's box.
_AROUND = 1.8
# COCO's sizes by the sides of boxes: from, below, pixels.
_SIZES = {"small": (0, 32), "medium": (32, 96), "large": (96, float("inf"))}
# RGB
TRUE, REGRESSED, REFINED = (40, 190, 90), (240, 140, 30), (60, 130, 255)


def analyse(cfg: CfgNode, mbrm: MBRM, tables: Sequence[str]) -> dict:
    """Tables and figures of a fitted model; pictures go into ``OUTPUT_DIR``.

    Args:
        cfg: with ``MODEL.WEIGHTS``, ``DATASETS.TRAIN`` and one ``DATASETS.TEST``.
        mbrm: fitted.
        tables: which: "table4", "beyond" (errors), "fig1", "fig3", "fig5".

    Returns:
        {"table4": see :func:`~rdsnet.fitting.study.compare_methods`, "errors": see
        :func:`errors_by_size`, "fig5": {s: {gamma: AP}}, "fig1": see :func:`worst_errors`}
    """
    (name,) = cfg.DATASETS.TEST
    folder, results = Path(cfg.OUTPUT_DIR), {}
    if "table4" in tables:
        results["table4"] = compare_methods(cfg, mbrm, name)
    if "beyond" in tables:
        results["errors"] = errors_by_size(cfg, mbrm, name)
    if "fig5" in tables:
        results["fig5"] = sweep(cfg, name)
        plot_sweep(results["fig5"], folder / "fig5.png")
    if "fig1" in tables:
        results["fig1"] = _fig_1(cfg, mbrm, name, folder / "fig1.jpg")
    if "fig3" in tables:
        _fig_3(cfg, folder / "fig3.jpg")
    return results


# --------------------------------------------- beyond the paper: where MBRM's gain comes from


def errors_by_size(cfg: CfgNode, mbrm: MBRM, name: str) -> dict[str, dict]:
    """How far edges are off, by the size of the objects.

    Returns:
        {"small" | "medium" | "large" (COCO's): {"objects": found ones, "regressed", "direct",
        "MBRM": mean distance of their edges from the true ones, pixels}}
    """
    images = _profiles(cfg, name)
    methods = {
        "regressed": None,
        "direct": EnclosingBoxes(cfg.MODEL.RDSNET.MASK_THRESHOLD),
        "MBRM": mbrm,
    }
    true = torch.cat([image.gt_boxes for image in images])
    found = ~true.isnan().any(1)
    sizes = (true[found, 2:] - true[found, :2]).prod(1).sqrt()
    results: dict[str, dict] = {}
    for size, (least, most) in _SIZES.items():
        inside = (sizes >= least) & (sizes < most)
        results[size] = {"objects": int(inside.sum())}
        for method, refinement in methods.items():
            boxes = torch.cat([after.boxes for after in refine(images, refinement)])
            distances = (boxes[found] - true[found]).abs().mean(1)[inside]
            results[size][method] = distances.mean().item() if len(distances) else float("nan")
    return results


def _profiles(cfg: CfgNode, name: str) -> list[ImageProfiles]:
    folder = output_folder(cfg) / "profiles"
    return collect_profiles(cfg, load_unrefined_model(cfg), name, folder)


# ----------------------------------------------------------------- Fig. 1: worst errors


@dataclass(frozen=True)
class EdgeError:
    """A detection and how far its edges are from those of its object.

    Attributes:
        image_id: of its image.
        true, regressed, refined: boxes, XYXY in pixels.
        before, after: the largest distance of an edge from the true one as a share of the object's
            side, regressed and refined.
    """

    image_id: int | str
    true: list[float]
    regressed: list[float]
    refined: list[float]
    before: float
    after: float


def worst_errors(
    images: Sequence[ImageProfiles], refined: Sequence[ImageBoxes], number: int = _WORST
) -> list[EdgeError]:
    """The worst localisation errors of the regressed boxes, one per image, worst first.

    Only detections count that have found an object (IoU at least 0.5, same class). What the
    refinement made of them plays no part in the choice.
    """
    worst = []
    for image, after in zip(images, refined, strict=True):
        found = ~image.gt_boxes.isnan().any(1)
        if not found.any():
            continue
        true = image.gt_boxes[found]
        sides = (true[:, 2:] - true[:, :2]).clamp(min=1).repeat(1, 2)
        before = ((image.boxes[found] - true) / sides).abs().amax(1)
        later = ((after.boxes[found] - true) / sides).abs().amax(1)
        n = int(before.argmax())
        boxes = (true[n], image.boxes[found][n], after.boxes[found][n])
        worst.append(
            EdgeError(
                image.image_id,
                *([round(x, 2) for x in box.tolist()] for box in boxes),
                before[n].item(),
                later[n].item(),
            )
        )
    return sorted(worst, key=lambda error: -error.before)[:number]


def _fig_1(cfg: CfgNode, mbrm: MBRM, name: str, path: Path) -> list[dict]:
    images = _profiles(cfg, name)
    errors = worst_errors(images, refine(images, mbrm))
    files = {record["image_id"]: record["file_name"] for record in DatasetCatalog.get(name)}
    cells = [_draw_error(read_picture(files[error.image_id]), error) for error in errors]
    if cells:
        rows = [cells[k : k + _COLUMNS] for k in range(0, len(cells), _COLUMNS)]
        footer = "green: true box; orange: as regressed; blue: after MBRM"
        _write(contact_sheet(rows, footer=footer, cell_width=_WIDTH), path)
    return [vars(error) for error in errors]


def _draw_error(image: np.ndarray, error: EdgeError) -> np.ndarray:
    """The three boxes on the surroundings of the object."""
    x1, y1, x2, y2 = error.true
    half = _AROUND * max(x2 - x1, y2 - y1, 8) / 2
    left, top = (int(max(0, (a + b) / 2 - half)) for a, b in ((x1, x2), (y1, y2)))
    part = image[top : int((y1 + y2) / 2 + half) + 1, left : int((x1 + x2) / 2 + half) + 1]
    scale = _WIDTH / max(part.shape[:2])
    size = (round(part.shape[1] * scale), round(part.shape[0] * scale))
    canvas = np.ascontiguousarray(cv2.resize(part, size, interpolation=cv2.INTER_CUBIC))
    for box, color in ((error.true, TRUE), (error.regressed, REGRESSED), (error.refined, REFINED)):
        corners = [round((value - start) * scale) for value, start in zip(box, (left, top) * 2)]
        cv2.rectangle(canvas, corners[:2], corners[2:], color, 2, cv2.LINE_AA)
    square = np.full((_WIDTH, _WIDTH, 3), 255, np.uint8)
    square[: canvas.shape[0], : canvas.shape[1]] = canvas
    return captioned(square, f"off by {error.before:.0%}, then {error.after:.0%}", _WIDTH)


# --------------------------------------------------------------- Fig. 3: representations


def _fig_3(cfg: CfgNode, path: Path) -> None:
    """The pictures of a report's section, on one sheet."""
    section = representations_section(cfg, load_unrefined_model(cfg))
    if section is None or not section.pictures:
        return
    rows = [
        [_decoded(picture.uri) for picture in row if isinstance(picture, Picture)]
        for row in section.pictures
    ]
    titles = ("objects in their own colours", "representations of the pixels")
    _write(contact_sheet(rows, titles, cell_width=_WIDTH), path)


def _decoded(uri: str) -> np.ndarray:
    """RGB of a data URI."""
    encoded = np.frombuffer(b64decode(uri.partition(",")[2]), np.uint8)
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)[:, :, ::-1]


def _write(sheet: np.ndarray, path: Path) -> None:
    path.write_bytes(cv2.imencode(".jpg", sheet[:, :, ::-1])[1].tobytes())
