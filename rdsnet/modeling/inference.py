"""A trained model made ready for inference: the same results, sooner.

What everybody gets is exact up to rounding: norms with fixed statistics are folded into the
convolutions (:mod:`rdsnet.modeling.folding`), ReLU overwrites what it alone reads, and the
representation branch is evaluated in those levels alone in which something was found (on a GPU in
all: there the number of operations costs, not their size). On a CPU the maps (B, C, H, W) lie in
memory with their channels side by side, which its convolutions are quicker with, and in float32
those of large maps save multiplications (:mod:`rdsnet.modeling.winograd`). Lower precision
(:mod:`rdsnet.modeling.precision`) moves results a little: it is a choice,
``MODEL.RDSNET.INFERENCE.PRECISION``.

Training never meets any of this: what is prepared is a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from torch import nn

from rdsnet.modeling.folding import fold_norms
from rdsnet.modeling.precision import PRECISIONS, chosen_precision
from rdsnet.modeling.winograd import use_winograd


def prepare_for_inference(model: nn.Module) -> nn.Module:
    """A copy of a model with its weights, for inference alone; the model stays as it is.

    The copy has no gradients, and its weights no longer fit the model's checkpoints: what is saved
    and trained is the model.
    """
    prepared = copy.deepcopy(model).eval().requires_grad_(False)
    fold_norms(prepared)
    _overwrite_by_relu(prepared)
    for head in prepared.modules():
        # No branch of its own: the shared tower has been evaluated for the others.
        if hasattr(head, "lazy_subnet") and any(True for _ in head.rep_subnet.parameters()):
            head.lazy_subnet = True
    if has_channels_last(next(prepared.parameters()).device.type):
        prepared.to(memory_format=torch.channels_last)
        use_winograd(prepared)
    return prepared


def _overwrite_by_relu(model: nn.Module) -> None:
    """Let ReLU save memory where nothing else sees what it is given."""
    for layers in model.modules():
        if isinstance(layers, nn.Sequential):
            for before, layer in zip(layers, list(layers)[1:]):
                if isinstance(layer, nn.ReLU) and isinstance(before, (nn.Conv2d, nn.GroupNorm)):
                    layer.inplace = True


def has_channels_last(device: str) -> bool:
    """Whether prepared models keep channels side by side: measured on CPUs (benchmarks/models)."""
    return device == "cpu" and torch.backends.mkldnn.is_available()


def inference_facts(device: str) -> dict[str, str]:
    """{what: what of it is active on a device, and why} of all this, for people."""
    precision, why = chosen_precision("auto", device)
    if has_channels_last(torch.device(device).type):
        layout = (
            "channels last, as convolutions on a CPU are faster so; 3x3 ones of large maps in "
            "float32 save multiplications (Winograd)"
        )
    else:
        layout = "contiguous: channels last is not measured here"
    return {
        "norms": "those with fixed statistics are folded into convolutions",
        "memory format": layout,
        "precision": f"{precision} in rdsnet predict and app ({why}); elsewhere "
        "MODEL.RDSNET.INFERENCE.PRECISION, float32",
    }


@contextmanager
def inference_precision(cfg: CfgNode) -> Iterator[str]:
    """Inside, models compute as ``MODEL.RDSNET.INFERENCE.PRECISION`` says; gives its name.

    Half precision is that of autocast: of convolutions and matrix products. Boxes are decoded,
    masks assembled and edges refined in float32.

    Raises:
        ValueError: ``MODEL.DEVICE`` does not compute in this precision.
    """
    device = cfg.MODEL.DEVICE
    name, _ = chosen_precision(cfg.MODEL.RDSNET.INFERENCE.PRECISION, device)
    dtype = PRECISIONS[name]
    with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
        yield name
