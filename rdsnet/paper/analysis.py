"""What one trained RDSNet shows: Table 4, Fig. 1, 3 and 5, and errors by size.

All but Fig. 3 comes from stored profiles (:mod:`rdsnet.fitting.profiles`): one pass of the network
over the data serves all of it.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode

from rdsnet.fitting.fit import load_unrefined_model, output_folder
from rdsnet.fitting.profiles import ImageProfiles, NothingFound, collect_profiles
from rdsnet.fitting.study import compare_methods, refine, sweep
from rdsnet.modeling import MBRM
from rdsnet.modeling.refinement import EnclosingBoxes
from rdsnet.paper.localisation import write_fig_1, write_jpeg
from rdsnet.reports.representations import representations_section
from rdsnet.visualization.mbrm import plot_sweep
from rdsnet.visualization.page import Picture
from rdsnet.visualization.sheet import contact_sheet

# Of a picture of Fig. 3, pixels.
_WIDTH = 360
# COCO's sizes by the sides of boxes: from, below, pixels.
_SIZES = {"small": (0, 32), "medium": (32, 96), "large": (96, float("inf"))}


ANALYSES = ("table4", "beyond", "fig1", "fig3", "fig5")


def analyse(cfg: CfgNode, mbrm: MBRM, tables: Sequence[str]) -> dict:
    """Tables and figures of a fitted model; pictures go into ``OUTPUT_DIR``.

    Args:
        cfg: with ``MODEL.WEIGHTS``, ``DATASETS.TRAIN`` and one ``DATASETS.TEST``.
        mbrm: fitted.
        tables: which: "table4", "beyond" (errors), "fig1", "fig3", "fig5".

    Returns:
        {"table4": see :func:`~rdsnet.fitting.study.compare_methods`, "errors": see
        :func:`errors_by_size`, "fig5": {s: {gamma: AP}}, "fig1": see
        :func:`~rdsnet.paper.localisation.write_fig_1`}
    """
    (name,) = cfg.DATASETS.TEST
    folder, results = Path(cfg.OUTPUT_DIR), {}
    if "table4" in tables:
        results["table4"] = compare_methods(cfg, mbrm, name)
    if "beyond" in tables:
        results["errors"] = errors_by_size(cfg, mbrm, name)
    if "fig5" in tables:
        results |= _fig_5(cfg, name, folder / "fig5.png")
    if "fig1" in tables:
        images = validation_profiles(cfg, name)
        results["fig1"] = write_fig_1(images, refine(images, mbrm), name, folder / "fig1.jpg")
    if "fig3" in tables:
        _fig_3(cfg, folder / "fig3.jpg")
    return results


# --------------------------------------------- beyond the paper: where MBRM's gain comes from


def errors_by_size(cfg: CfgNode, mbrm: MBRM, name: str) -> dict[str, dict]:
    """How far edges are off, by the size of the objects.

    Returns:
        {"small" | "medium" | "large" (COCO's): {"objects": found ones, "side": median square root
        of their boxes' areas, pixels, "regressed", "direct", "MBRM": mean distance of their edges
        from the true ones, pixels}}
    """
    images = validation_profiles(cfg, name)
    methods = {
        "regressed": None,
        "direct": EnclosingBoxes(cfg.MODEL.RDSNET.MASK_THRESHOLD),
        "MBRM": mbrm,
    }
    true = torch.cat([image.gt_boxes for image in images])
    found = ~true.isnan().any(1)
    sizes = (true[found, 2:] - true[found, :2]).prod(1).sqrt()
    off = {}
    for method, refinement in methods.items():
        boxes = torch.cat([after.boxes for after in refine(images, refinement)])
        off[method] = (boxes[found] - true[found]).abs().mean(1)
    results: dict[str, dict] = {}
    for size, (least, most) in _SIZES.items():
        inside = (sizes >= least) & (sizes < most)
        results[size] = {"objects": int(inside.sum()), "side": _median(sizes[inside])}
        for method, distances in off.items():
            results[size][method] = distances[inside].mean().item()  # NaN: none
    return results


def _median(values: torch.Tensor) -> float:
    return values.median().item() if len(values) else float("nan")


def validation_profiles(cfg: CfgNode, name: str) -> list[ImageProfiles]:
    """All detections of a data set; the model is run where an earlier call has not."""
    folder = output_folder(cfg) / "profiles"
    return collect_profiles(cfg, load_unrefined_model(cfg), name, folder)


# --------------------------------------------------------------------- Fig. 5: gamma and s


def _fig_5(cfg: CfgNode, name: str, path: Path) -> dict[str, object]:
    try:
        results = sweep(cfg, name)
    except NothingFound as error:  # no kernel can be fitted: there is no such figure
        return {"fig5": None, "fig5_missing": str(error)}
    plot_sweep(results, path)
    return {"fig5": results}


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
    write_jpeg(contact_sheet(rows, titles, cell_width=_WIDTH), path)


def _decoded(uri: str) -> np.ndarray:
    """RGB of a data URI."""
    encoded = np.frombuffer(b64decode(uri.partition(",")[2]), np.uint8)
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)[:, :, ::-1]
