"""The speed on CPUs that this project wants to reach, and what is reached.

RDSNet as users of the commands get it (:mod:`rdsnet.modeling.inference`) beside Detectron2's
Mask R-CNN as its users get it, the plain model, and beside bare RetinaNet with the tricks that
RDSNet has; on ResNet-50 and on the lite backbone. In turn, on one thread, by CPU time, so that
other work on the machine disturbs the comparison little. Models, images and score thresholds are
those of :mod:`rdsnet.benchmark.models`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from detectron2.utils.events import EventStorage
from torch import nn

from rdsnet.benchmark import measure
from rdsnet.benchmark.models import (
    LITE_CLASSES,
    Settings,
    build_lite,
    build_models,
    calibrate,
    inference_call,
    make_batch,
    training_call,
)
from rdsnet.formatting import decimal
from rdsnet.modeling import prepare_for_inference

_MASK_RCNN = "Mask R-CNN"
_LITE_MILLISECONDS = 100  # per image of 512 px, on two cores


def run(
    size: int = 800,
    lite_size: int = 512,
    rounds: int = 3,
    progress: Callable[[str], None] = print,
) -> dict:
    """Returns ``machine``, ``rounds``, ``times`` per case and model, and ``goals``, each with
    ``case``, ``goal``, ``measured``, both in words, and whether it is ``reached``.

    Args:
        size, lite_size: shorter side of the image in pixels, for ResNet-50 and lite.
        rounds: at inference; half as many training steps.
    """
    report: dict = {"machine": measure.describe_machine("cpu"), "rounds": rounds}
    cases = {
        "R-50": (build_models, Settings("cpu", "float32", 50, size, 1, 1, rounds)),
        "lite": (
            build_lite,
            Settings("cpu", "float32", 50, lite_size, 1, 1, rounds, classes=LITE_CLASSES),
        ),
    }
    times = report["times"] = {}
    with measure.threads(1), EventStorage():
        for name, (build, settings) in cases.items():
            case = f"{name}, {settings.size} px"
            models, batch = build(settings), make_batch(settings)
            calibrate(models, batch, settings)
            times[f"{case}, inference"] = _inference(models, batch, settings)
            progress(f"{case}: inference is measured")
            if name == "R-50":
                times[f"{case}, training"] = _training(models, batch, settings)
                progress(f"{case}: training is measured")
    report["goals"] = _goals(*times.items())
    return report


def _inference(models: dict[str, nn.Module], batch: list[dict], settings: Settings) -> dict:
    for model in models.values():
        model.eval()
    calls = {_MASK_RCNN: inference_call(models[_MASK_RCNN], batch, settings)}
    for name in ("RetinaNet", "RDSNet"):
        prepared = prepare_for_inference(models[name])
        for dtype in ("float32", "bfloat16"):
            own = replace(settings, dtype=dtype)
            calls[f"{name}, {dtype}"] = inference_call(prepared, batch, own)
    return _measured(calls, settings.rounds)


def _training(models: dict[str, nn.Module], batch: list[dict], settings: Settings) -> dict:
    calls = {}
    for name in ("RetinaNet", "RDSNet"):
        calls[name] = training_call(models[name].train(), batch, settings)
    return _measured(calls, (settings.rounds + 1) // 2)


def _measured(calls: dict[str, Callable[[], object]], rounds: int) -> dict:
    """Memory first: its calls are those that every model begins with, which do not count."""
    peaks = {name: measure.extra_peak_mb(call, "cpu", 1) for name, call in calls.items()}
    times = measure.alternate(calls, "cpu", 0, (rounds, rounds), time.process_time)
    return {name: {**own, "extra_peak_mb": peaks[name]} for name, own in times.items()}


def _goals(
    inference: tuple[str, dict], training: tuple[str, dict], lite: tuple[str, dict]
) -> list[dict]:
    """What is wanted of every case (its name and its times), and what came of it."""
    goals = [
        _at_most_over_retinanet(inference, 10, ", float32", " with the same tricks"),
        _at_most_over_retinanet(training, 20),
        _times_mask_rcnn(inference, 1.5, "float32"),
        _times_mask_rcnn(inference, 2.5, "bfloat16"),
        _times_mask_rcnn(lite, 3, "bfloat16"),
    ]
    name, times = lite
    # What one thread does in t, two cores do in t / 2 at best.
    at_best = times["RDSNet, bfloat16"]["min_ms"] / 2
    goals.append(
        {
            "case": name,
            "goal": f"RDSNet, bfloat16, below {_LITE_MILLISECONDS} ms on two cores",
            "measured": f"{at_best:.0f} ms at best (half of one thread's time)",
            "reached": at_best < _LITE_MILLISECONDS,
        }
    )
    return goals


def _at_most_over_retinanet(
    case: tuple[str, dict], percent: float, precision: str = "", beside: str = ""
) -> dict:
    name, times = case
    ratio = times[f"RDSNet{precision}"]["min_ms"] / times[f"RetinaNet{precision}"]["min_ms"]
    return {
        "case": name,
        "goal": f"RDSNet{precision}, at most +{percent} % over RetinaNet{beside}",
        "measured": f"{decimal(100 * (ratio - 1), signed=True)} %",
        "reached": 100 * (ratio - 1) <= percent,
    }


def _times_mask_rcnn(case: tuple[str, dict], factor: float, precision: str) -> dict:
    name, times = case
    ratio = times[_MASK_RCNN]["min_ms"] / times[f"RDSNet, {precision}"]["min_ms"]
    return {
        "case": name,
        "goal": f"RDSNet, {precision}, at least {factor} times as fast as {_MASK_RCNN}",
        "measured": f"{decimal(ratio, 2)} times",
        "reached": ratio >= factor,
    }
