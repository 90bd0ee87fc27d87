"""The mask path three times: straightforward, PyTorch definition, compiled.

Inference goes from Psi and the kept detections to COCO RLE and refined boxes, training from
ground-truth masks to the gradients of L_mask, on the grid or at the pixels of the image. The work,
and so the bound, is counted on the scene.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from rdsnet.benchmark import measure, straightforward
from rdsnet.benchmark.scene import (
    STRIDE,
    TEST_EXPAND,
    THRESHOLD,
    TRAIN_EXPAND,
    Scene,
    make_scene,
)
from rdsnet.modeling.cropping import expanded_windows
from rdsnet.modeling.mask_loss import mask_loss
from rdsnet.modeling.mbrm import MBRM
from rdsnet.ops import assemble_masks, compiled, resize_taps
from rdsnet.ops.reference import window_areas

PHASES = ("inference", "training", "training at pixels")
_FLOAT = 4  # bytes


@dataclass
class Plan:
    """What to run. Seconds and rounds are for each combination of the others."""

    objects: Sequence[int] = (1, 10, 100, 300)
    sizes: Sequence[int] = (400, 800, 1600)
    thread_counts: Sequence[int] = (1,)
    seconds: float = 4.0
    rounds: tuple[int, int] = (3, 15)
    memory_limit_gb: float = 4.0


def run(plan: Plan, device: str, progress: Callable[[str], None] = print) -> dict:
    """Measure everything in the plan.

    Returns:
        ``machine``; ``limits``: per number of threads the measured multiply-adds and bytes per
        second; ``results``: one entry per phase, size, number of objects and threads.
    """
    report = {"machine": measure.describe_machine(device), "limits": [], "results": []}
    for count in plan.thread_counts:
        with measure.threads(count):
            limit = {"threads": count, "fma_per_s": measure.fma_rate(device)}
            limit["bytes_per_s"] = measure.bandwidth(device)
            report["limits"].append(limit)
            for size in plan.sizes:
                for num_objects in plan.objects:
                    scene = make_scene(num_objects, size, device)
                    for phase in PHASES:
                        result = compare(scene, phase, plan, limit, device)
                        report["results"].append({"size": size, **result})
                        progress(_one_line(report["results"][-1]))
    return report


def compare(scene: Scene, phase: str, plan: Plan, limit: dict, device: str) -> dict:
    """All implementations in turn on one scene."""
    calls = inference_calls(scene) if phase == "inference" else training_calls(scene, phase)
    skipped = {}
    needed_gb = _straightforward_bytes(scene, phase) / 1e9
    if needed_gb > plan.memory_limit_gb:
        del calls["straightforward"]
        skipped["straightforward"] = (
            f"needs about {needed_gb:.1f} GB, more than the limit of {plan.memory_limit_gb:g} GB"
        )
    times = measure.alternate(calls, device, plan.seconds, plan.rounds)
    bound = bound_ms(scene, phase, limit)
    for name, call in calls.items():
        repeats = 1 if name == "straightforward" else 3
        times[name]["extra_peak_mb"] = measure.extra_peak_mb(call, device, repeats)
        times[name]["times_bound"] = times[name]["median_ms"] / bound
        if "straightforward" in times:
            slow = times["straightforward"]["median_ms"]
            times[name]["speedup"] = slow / times[name]["median_ms"]
    return {
        "phase": phase,
        "objects": len(scene),
        "threads": limit["threads"],
        "bound_ms": bound,
        "implementations": times,
        "skipped": skipped,
    }


def inference_calls(scene: Scene) -> dict[str, Callable[[], tuple[list[dict], Tensor]]]:
    """Each gives the RLE of every object and the refined boxes."""
    mbrm = MBRM(empty_threshold=THRESHOLD).to(scene.psi.device)
    calls = {
        "straightforward": lambda: straightforward.infer(scene, mbrm, TEST_EXPAND, THRESHOLD),
        "pytorch": _by_definition(lambda: _infer(scene, mbrm)),
    }
    if _has_operators(scene):
        calls["compiled"] = lambda: _infer(scene, mbrm)
    return calls


def training_calls(
    scene: Scene, phase: str = "training"
) -> dict[str, Callable[[], tuple[Tensor, Tensor, Tensor]]]:
    """Each gives the loss and its gradients for Psi (1, D, h, w) and phi."""
    slow, fast = {
        "training": (straightforward.train, _train),
        "training at pixels": (straightforward.train_at_pixels, _train_at_pixels),
    }[phase]
    psi, phi = scene.psi[None].clone().requires_grad_(), scene.phi.clone().requires_grad_()

    def with_gradients(function: Callable[..., Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        loss = function(scene, psi, phi, TRAIN_EXPAND)
        return loss.detach(), *torch.autograd.grad(loss, (psi, phi))

    calls = {
        "straightforward": lambda: with_gradients(slow),
        "pytorch": _by_definition(lambda: with_gradients(fast)),
    }
    if _has_operators(scene):
        calls["compiled"] = lambda: with_gradients(fast)
    return calls


def _has_operators(scene: Scene) -> bool:
    return scene.psi.device.type in compiled.active_path()


def _by_definition(call: Callable[[], object]) -> Callable[[], object]:
    def run_it() -> object:
        with compiled.definitions_only():
            return call()

    return run_it


@torch.no_grad()
def _infer(scene: Scene, mbrm: MBRM) -> tuple[list[dict], Tensor]:
    """What :meth:`rdsnet.modeling.RDSNet.refine` does, to RLE."""
    windows = expanded_windows(scene.boxes, TEST_EXPAND, scene.output_size)
    taps_y, taps_x = (
        resize_taps(output, image, grid, STRIDE, device=scene.psi.device)
        for output, image, grid in zip(scene.output_size, scene.image_size, scene.psi.shape[1:])
    )
    masks = assemble_masks(scene.psi, scene.phi, windows, taps_y, taps_x, THRESHOLD)
    return masks.rle(), mbrm(masks.column_maxima, masks.row_maxima, scene.boxes)


def _train(
    scene: Scene, psi: Tensor, phi: Tensor, expand: float, at_pixels: bool = False
) -> Tensor:
    """What :meth:`rdsnet.modeling.RDSNet.losses` does for L_mask."""
    return mask_loss(
        psi,
        phi,
        torch.zeros(len(phi), dtype=torch.int64, device=phi.device),
        scene.gt_boxes,
        [scene.gt_masks],
        torch.arange(len(phi), device=phi.device),
        [scene.image_size],
        strides=(STRIDE, STRIDE),
        at_pixels=at_pixels,
        expand=expand,
    )


_train_at_pixels = partial(_train, at_pixels=True)


def agreement(scene: Scene) -> dict[str, dict[str, float]]:
    """How far the other implementations are from the straightforward one, by its own measure.

    Returns:
        Per implementation ``mask_iou`` (pixels of all masks together), ``edges_moved`` (share of
        box edges elsewhere), ``loss`` and ``gradient`` (largest relative deviations).
    """
    masks = {name: call() for name, call in inference_calls(scene).items()}
    losses = {name: call() for name, call in training_calls(scene).items()}
    expected_rle, expected_boxes = masks["straightforward"]
    expected = losses["straightforward"]
    result = {}
    for name in masks.keys() - {"straightforward"}:
        pairs = list(zip(masks[name][0], expected_rle))
        both, either = (
            sum(int(coco_mask.area(coco_mask.merge(pair, intersect))) for pair in pairs)
            for intersect in (True, False)
        )
        deviations = [
            ((mine - theirs).abs().max() / theirs.abs().max()).item()
            for mine, theirs in zip(losses[name], expected)
        ]
        result[name] = {
            "mask_iou": both / either,
            "edges_moved": (masks[name][1] != expected_boxes).float().mean().item(),
            "loss": deviations[0],
            "gradient": max(deviations[1:]),
        }
    return result


def bound_ms(scene: Scene, phase: str, limit: dict) -> float:
    """The larger of arithmetic and memory traffic that no implementation can do without."""
    dims = len(scene.psi)
    psi_bytes = scene.psi.numel() * _FLOAT
    if phase == "inference":
        windows = expanded_windows(scene.boxes, TEST_EXPAND, scene.output_size)
        pixels = int(window_areas(windows).sum())
        rows = scene.image_size[0] / STRIDE / scene.output_size[0]  # cells per output pixel
        columns = scene.image_size[1] / STRIDE / scene.output_size[1]
        # A product per cell and dimension; two taps per axis, along the rows on grid rows alone.
        fma = pixels * (rows * columns * dims + 2 * rows + 2)
        traffic = psi_bytes
    else:
        own_grid = [-(-side // STRIDE) for side in scene.image_size]
        windows = expanded_windows(scene.gt_boxes / STRIDE, TRAIN_EXPAND, own_grid)
        # Logits, and the gradients of phi and of Psi.
        fma = int(window_areas(windows).sum()) * 3 * dims
        if phase == "training at pixels":
            windows = expanded_windows(scene.gt_boxes, TRAIN_EXPAND, scene.image_size)
            # There and back: two taps per axis, along the rows on grid rows alone.
            fma += int(window_areas(windows).sum()) * 2 * (2 / STRIDE + 2)
        # Psi is read for logits and for the gradient of phi; its own gradient is written.
        traffic = 3 * psi_bytes
    return 1e3 * max(fma / limit["fma_per_s"], traffic / limit["bytes_per_s"])


def _straightforward_bytes(scene: Scene, phase: str) -> int:
    """Peak of the straightforward implementation, from its largest tensors."""
    (h, w), n = scene.psi.shape[1:], len(scene)
    padded = h * w * STRIDE * STRIDE
    if phase == "inference":
        output = scene.output_size[0] * scene.output_size[1]
        return 2 * n * _FLOAT * (padded + output)
    if phase == "training at pixels":
        return n * padded * _FLOAT * 12
    return n * (padded * (_FLOAT + 1) + h * w * _FLOAT * 8)


def _one_line(result: dict) -> str:
    parts = [f"{name} {own['median_ms']:.2f} ms" for name, own in result["implementations"].items()]
    return (
        f"{result['phase']:<9} {result['size']:>4} px {result['objects']:>3} objects, "
        f"threads {result['threads']}: {', '.join(parts)}"
    )
