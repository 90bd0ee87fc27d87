"""Check the installation; the output is made for bug reports.

Lists versions, where Detectron2 comes from, GPUs, what makes inference fast here and how threads
wait, and whether the compiled operators agree with their definition in PyTorch, and sends a random
image through a small untrained model. The exit status is 1 when something is missing or fails.

Example:
  rdsnet doctor
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time

import rdsnet
from rdsnet import openmp

# (name of the distribution, name of the module)
_PACKAGES = (
    ("torch", "torch"),
    ("torchvision", "torchvision"),
    ("detectron2", "detectron2"),
    ("pycocotools", "pycocotools"),
    ("fvcore", "fvcore"),
    ("timm", "timm"),
    ("numpy", "numpy"),
    ("opencv-python", "cv2"),
    ("pillow", "PIL"),
)
_SMOKE_PACKAGES = {"torch", "torchvision", "detectron2", "opencv-python"}
_INSTALL_DETECTRON2 = (
    "Install it with 'python tools/install_detectron2.py' (in a checkout of rdsnet) or from its "
    "repository, facebookresearch/detectron2."
)
# opencv-python is linked to libraries for windows on a screen, which bare systems do not have.
_INSTALL_LIBRARIES = (
    "Install the system's libraries (Debian, Ubuntu: apt-get install libgl1 libglib2.0-0 libxcb1), "
    "or the build that needs none: pip uninstall opencv-python; pip install opencv-python-headless"
)
_SMOKE_HEIGHT, _SMOKE_WIDTH = 240, 320


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none of its own."""


def run(args: argparse.Namespace) -> int:
    rows = [
        ("rdsnet", f"{rdsnet.__version__} ({os.path.dirname(rdsnet.__file__)})", True),
        ("python", f"{platform.python_version()} ({sys.executable}), {platform.platform()}", True),
        *(_describe_package(*names) for names in _PACKAGES),
    ]
    installed = {name for name, _, healthy in rows if healthy}
    if {"torch", "opencv-python"} <= installed:
        rows += _describe_devices()
        rows.append(_describe_operators())
        rows += _check_operators()
    if _SMOKE_PACKAGES <= installed:
        rows += _describe_inference()
        rows += _smoke_runs()
    else:
        missing = ", ".join(sorted(_SMOKE_PACKAGES - installed))
        rows.append(("smoke run", f"left out: it needs {missing}", False))
    for name, text, healthy in rows:
        print(f"{name:<14} {'' if healthy else 'PROBLEM: '}{text}")
    problems = sum(not healthy for *_, healthy in rows)
    print(f"\n{problems} problem{'s' * (problems != 1)}" if problems else "\nAll is well.")
    return 1 if problems else 0


def _describe_package(distribution: str, module: str) -> tuple[str, str, bool]:
    """Version and place of a package, and whether it can be imported."""
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            return distribution, f"cannot be imported: {error}", False
        remedy = _INSTALL_DETECTRON2 if module == "detectron2" else f"pip install {distribution}"
        return distribution, f"not installed. {remedy}", False
    except Exception as error:  # a broken installation can raise anything
        text = f"cannot be imported: {type(error).__name__}: {error}"
        if module == "cv2" and "cannot open shared object file" in str(error):
            text += f". {_INSTALL_LIBRARIES}"
        return distribution, text, False
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        version = getattr(imported, "__version__", "of unknown version")
    text = f"{version} ({os.path.dirname(imported.__file__)})"
    if module == "detectron2":
        text += f", {_detectron2_origin()}"
    return distribution, text, True


def _detectron2_origin() -> str:
    """In which way the installed Detectron2 was built, and from where."""
    distribution = importlib.metadata.distribution("detectron2")
    if "pure" in distribution.version:
        return "pure Python: no compiled operators; RDSNet needs none of them"
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    source = origin.get("url", "a source that is not recorded")
    if commit := origin.get("vcs_info", {}).get("commit_id"):
        source += f" at commit {commit[:10]}"
    compiled = importlib.util.find_spec("detectron2._C")
    state = "with" if compiled is not None else "WITHOUT"
    return f"built from {source}, {state} compiled operators"


def _describe_devices() -> list[tuple[str, str, bool]]:
    """What torch computes on."""
    import torch

    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    from rdsnet.modeling.precision import device_capabilities

    used = [torch.backends.cpu.get_cpu_capability(), *sorted(device_capabilities("cpu"))]
    threads = f"threads: {torch.get_num_threads()}, CPUs to use: {openmp.usable_cpus()}"
    rows = [
        ("CPU", f"{threads}, instructions: {', '.join(used)}; torch {cuda}", True),
        ("threads", openmp.description(), True),
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        capability = f"{properties.major}.{properties.minor}"
        text = f"{properties.name}, {memory:.0f} GiB, compute capability {capability}"
        rows.append((f"GPU {index}", text, True))
    if not torch.cuda.device_count():
        rows.append(("GPU", "none that torch sees", True))
    return rows


def _describe_inference() -> list[tuple[str, str, bool]]:
    """What the Predictor does to be fast, on the device that it chooses here."""
    from rdsnet.modeling import inference_facts

    facts = inference_facts(rdsnet.get_cfg().MODEL.DEVICE)
    return [(what, text, True) for what, text in facts.items()]


def _describe_operators() -> tuple[str, str, bool]:
    """Whether rdsnet.ops runs compiled or from its definition."""
    from rdsnet.ops import compiled

    reason = compiled.why_not_compiled()
    return "operators", compiled.active_path() + (f": {reason}" if reason else ""), True


def _check_operators() -> list[tuple[str, str, bool]]:
    """Compiled operators beside their definitions, on every device they are compiled for."""
    from rdsnet.ops import compiled
    from rdsnet.ops.self_check import TOLERANCE, largest_differences

    rows = []
    for device in ("cpu", "cuda"):
        if device not in compiled.active_path():
            continue
        name = f"operators {device}"
        try:
            differences = largest_differences(device)
        except Exception as error:  # whatever it is, it is what the report is for
            rows.append((name, f"{type(error).__name__}: {error}", False))
            continue
        shown = ", ".join(f"{op} {value:.1e}" for op, value in differences.items())
        agree = max(differences.values()) <= TOLERANCE
        verdict = "agree with" if agree else "DIFFER from"
        rows.append((name, f"{verdict} their definition, largest difference: {shown}", agree))
    return rows


def _smoke_runs() -> list[tuple[str, str, bool]]:
    """A random image through a small untrained model, on the CPU and on the first GPU."""
    import torch

    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    rows = []
    for device in devices:
        try:
            rows.append((f"smoke run {device}", smoke_run(device), True))
        except Exception as error:  # whatever it is, it is what the report is for
            rows.append((f"smoke run {device}", f"{type(error).__name__}: {error}", False))
    return rows


def smoke_run(device: str) -> str:
    """Run inference and check what comes back; raises when it is not what was promised."""
    import torch
    from detectron2.modeling import build_model

    from rdsnet.modeling import prepare_for_inference

    cfg = rdsnet.get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "RDSNet"
    cfg.MODEL.DEVICE = device
    cfg.MODEL.BACKBONE.NAME = "build_rdsnet_small_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = "GN"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 32
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.RDSNET.PIXEL_STREAM.CONV_DIM = 32
    cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    # An untrained model is sure of nothing; take its best all the same.
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    model = prepare_for_inference(build_model(cfg))
    image = torch.randint(0, 256, (3, _SMOKE_HEIGHT, _SMOKE_WIDTH), dtype=torch.uint8)
    start = time.perf_counter()
    with torch.no_grad():
        instances = model([{"image": image}])[0]["instances"].to("cpu")
    seconds = time.perf_counter() - start
    expected = (len(instances), _SMOKE_HEIGHT, _SMOKE_WIDTH)
    if not len(instances) or tuple(instances.pred_masks.shape) != expected:
        raise RuntimeError(
            f"expected masks of shape {expected} with at least one object, "
            f"got {tuple(instances.pred_masks.shape)}"
        )
    size = f"{_SMOKE_HEIGHT} x {_SMOKE_WIDTH}"
    return f"{len(instances)} objects with masks in a random {size} image, {seconds:.2f} s"
