"""Measuring MBRM on stored profiles: every method (Table 4), every gamma and radius (Fig. 5).

The network runs once over a data set (:mod:`rdsnet.fitting.profiles`); another refinement means
other boxes for the same detections, and an evaluation of these.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import nn

from rdsnet.evaluation.box_ap import BoxAP, ImageBoxes
from rdsnet.fitting.choice import variant
from rdsnet.fitting.fit import (
    build_mbrm,
    fit_kernel,
    load_unrefined_model,
    output_folder,
    training_objects,
)
from rdsnet.fitting.profiles import ImageProfiles, collect_profiles
from rdsnet.formatting import decimal
from rdsnet.modeling.mbrm import MBRM, PUBLISHED_KERNEL
from rdsnet.modeling.refinement import EnclosingBoxes

logger = logging.getLogger(__name__)

GAMMAS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)  # 0: boxes as regressed
RADII = (1, 2, 4, 8)


def refine(images: Sequence[ImageProfiles], refinement: nn.Module | None) -> list[ImageBoxes]:
    """The detections with refined boxes; None: as regressed."""
    results = []
    for image in images:
        boxes = image.boxes
        if refinement is not None:
            with torch.no_grad():
                boxes = refinement(image.column_maxima(), image.row_maxima(), boxes)
        results.append(ImageBoxes(image.image_id, boxes, image.scores, image.classes))
    return results


def edge_errors(images: Sequence[ImageProfiles], refined: Sequence[ImageBoxes]) -> dict[str, float]:
    """How far the edges of detections that have found an object are from its true edges.

    Returns:
        ``error``: the mean distance in pixels; ``exact``: the share of edges less than half a pixel
        off, in percent; ``offset``: the mean difference in pixels, counted outwards (positive:
        boxes are too large), over the edges at most 3 px off. It shows the bias of a kernel; what
        is further off has not found the edge.
    """
    outwards = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    differences = torch.cat(
        [(after.boxes - image.gt_boxes) * outwards for image, after in zip(images, refined)]
    )
    differences = differences[~differences.isnan()]
    distances = differences.abs()
    return {
        "error": distances.mean().item(),
        "exact": (distances < 0.5).float().mean().item() * 100,
        "offset": differences[distances <= 3].mean().item(),
    }


def compare_methods(cfg: CfgNode, mbrm: MBRM, dataset_name: str) -> dict[str, dict[str, float]]:
    """Box AP of one set of detections refined in every way (Table 4).

    Returns:
        {"none", "direct", "MBRM" (argmax), "MBRM, sub-pixel" (expectation), and for radius 4 both
        once more with the kernel of the authors' public code: {metric: value}}, metrics of
        :class:`~rdsnet.evaluation.box_ap.BoxAP` and :func:`edge_errors`.
    """
    images = _collect_test_profiles(cfg, dataset_name)
    box_ap = BoxAP(dataset_name, cfg.TEST.DETECTIONS_PER_IMAGE)
    methods: dict[str, nn.Module | None] = {
        "none": None,
        "direct": EnclosingBoxes(cfg.MODEL.RDSNET.MASK_THRESHOLD),
        "MBRM": variant(mbrm, readout="argmax"),
        "MBRM, sub-pixel": variant(mbrm, readout="expectation"),
    }
    if 2 * mbrm.radius + 1 == len(PUBLISHED_KERNEL[0]):
        for name in ("MBRM", "MBRM, sub-pixel"):
            published = variant(methods[name])
            published.reset_parameters()
            methods[f"{name}, published kernel"] = published
    results = {}
    for name, method in methods.items():
        refined = refine(images, method)
        results[name] = {**box_ap(refined), **edge_errors(images, refined)}
        logger.info(f"{name}: box AP {results[name]['AP']:.2f}")
    return results


def sweep(
    cfg: CfgNode,
    dataset_name: str,
    gammas: Sequence[float] = GAMMAS,
    radii: Sequence[int] = RADII,
) -> dict[int, dict[float, float]]:
    """Box AP for every radius s and gamma (Fig. 5); the kernel is fitted anew for every s.

    Kernels are fitted with the config's gamma. Profiles are collected where they are missing.

    Returns:
        {s: {gamma: AP}}
    """
    images = _collect_test_profiles(cfg, dataset_name)
    box_ap = BoxAP(dataset_name, cfg.TEST.DETECTIONS_PER_IMAGE)
    regressed = box_ap(refine(images, None), sizes=False)["AP"]
    objects = training_objects(cfg, load_unrefined_model(cfg))
    results: dict[int, dict[float, float]] = {}
    for radius in radii:
        mbrm = build_mbrm(cfg, RADIUS=radius).to(objects.device)
        fit_kernel(mbrm, objects, cfg.MODEL.RDSNET.MBRM.FIT)
        results[radius] = {}
        for gamma in gammas:
            ap = regressed
            if gamma > 0:
                ap = box_ap(refine(images, variant(mbrm, gamma=gamma)), sizes=False)["AP"]
            results[radius][gamma] = ap
            logger.info(f"s = {radius}, gamma = {gamma:g}: box AP {ap:.2f}")
    return results


def methods_table(results: dict[str, dict[str, float]]) -> str:
    """:func:`compare_methods` as Markdown, with the gain in AP over the regressed boxes."""
    titles = {"error": "error (px)", "exact": "exact (%)", "offset": "offset (px)"}
    metrics = [metric for metric in results["none"] if metric not in titles]
    rows = []
    for name, values in results.items():
        aps = [decimal(values[m], missing="-") for m in metrics]
        gain = decimal(values["AP"] - results["none"]["AP"], signed=True, missing="-")
        offset = decimal(values["offset"], 2, signed=True, missing="-")
        edges = (f"{values['error']:.2f}", f"{values['exact']:.0f}", offset)
        rows.append([name, *aps, gain, *edges])
    return _table(["boxes", *metrics, "gain", *titles.values()], rows)


def sweep_table(results: dict[int, dict[float, float]]) -> str:
    """:func:`sweep` as Markdown: a row per s, a column per gamma."""
    gammas = list(next(iter(results.values())))
    rows = [[f"s = {s}", *(f"{aps[g]:.2f}" for g in gammas)] for s, aps in results.items()]
    return _table(["box AP", *(f"gamma = {g:g}" for g in gammas)], rows)


def _collect_test_profiles(cfg: CfgNode, dataset_name: str) -> list[ImageProfiles]:
    """All detections of a data set; the model is run over it where profiles are missing."""
    model = load_unrefined_model(cfg)
    return collect_profiles(cfg, model, dataset_name, output_folder(cfg) / "profiles")


def _table(headers: list[str], rows: list[list[str]]) -> str:
    alignment = ("left", *("right" for _ in headers[1:]))
    return tabulate(rows, headers, tablefmt="github", colalign=alignment, disable_numparse=True)
