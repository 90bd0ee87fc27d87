"""BatchNorm with fixed statistics as a part of the convolution before it.

Such a norm multiplies every channel by a factor and adds a shift,

    norm(conv(x)) = s (W * x + b) + t,    s = gamma / sqrt(var + eps),    t = beta - s mean,

which is one convolution with the weights s W and the bias s b + t: one pass over the map instead of
two, equal up to rounding. Norms that compute their statistics from the map itself (GroupNorm,
LayerNorm) cannot be folded and stay.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rdsnet.modeling.backbones import TimmBackbone
from rdsnet.modeling.backbones.depthwise import QuickGradientConv2d
from rdsnet.modeling.backbones.same_padding import StaticSameConv2d

# Subclasses may compute their weights anew in every call, as weight standardisation does.
_PLAIN_CONVOLUTIONS = (nn.Conv2d, Conv2d, QuickGradientConv2d, StaticSameConv2d)


def fold_norms(model: nn.Module) -> None:
    """Fold the norms of a model in evaluation mode, in place: it can only be used for inference.

    Those are the norms inside Detectron2's convolutions, and in backbones of timm those that follow
    a convolution whose output nothing else reads. What cannot be told stays as it is.
    """
    for conv in model.modules():
        if isinstance(conv, Conv2d) and _is_foldable(conv, conv.norm):
            _fold(conv, conv.norm)
            conv.norm = None
    for backbone in model.modules():
        if isinstance(backbone, TimmBackbone):
            _fold_timm(backbone.features)


def folding_counts(model: nn.Module) -> tuple[int, int]:
    """Norms with fixed statistics that are still there, and plain convolutions."""
    modules = list(model.modules())
    norms = sum(isinstance(module, (FrozenBatchNorm2d, _BatchNorm)) for module in modules)
    return norms, sum(type(module) in _PLAIN_CONVOLUTIONS for module in modules)


def _is_foldable(conv: nn.Module, norm: nn.Module | None) -> bool:
    """Whether a norm's statistics are fixed, and the convolution's weights are its own."""
    is_fixed = isinstance(norm, FrozenBatchNorm2d) or (
        isinstance(norm, _BatchNorm) and not norm.training and norm.running_var is not None
    )
    return is_fixed and type(conv) in _PLAIN_CONVOLUTIONS


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    """Give a convolution the weights and the bias by which it computes ``norm(conv(x))``."""
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = -norm.running_mean.double() * factor
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double() * factor
    weight = conv.weight.double() * factor.view(-1, 1, 1, 1)
    conv.weight = _frozen(weight.to(conv.weight.dtype))
    conv.bias = _frozen(shift.to(conv.weight.dtype))


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def _fold_timm(features: nn.Module) -> None:
    """Fold the norms of a timm model; of its norms with an activation, that remains."""
    modules = dict(features.named_modules())
    for conv_name, norm_name in _conv_norm_pairs(features):
        conv, norm = modules[conv_name], modules[norm_name]
        if _is_foldable(conv, norm):
            _fold(conv, norm)
            # timm's BatchNormAct2d ends with these two.
            parts = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
            features.set_submodule(norm_name, nn.Sequential(*parts))


class _Tracer(fx.Tracer):
    """Records convolutions and norms as single steps."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        is_step = isinstance(module, (nn.Conv2d, _BatchNorm))
        return is_step or super().is_leaf_module(module, name)


def _conv_norm_pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of convolutions and of the norms that alone read their outputs.

    From the steps that the module takes. There are none of a model that decides by its input which
    ones to take.
    """
    try:
        graph = _Tracer().trace(module)
    except Exception:  # whatever the code of a model does with what stands for its input
        return
    modules = dict(module.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [node.target for node in calls]
    for node in calls:
        before = node.args[0] if node.args else None
        if (
            isinstance(modules[node.target], _BatchNorm)
            and isinstance(before, fx.Node)
            and before.op == "call_module"
            and isinstance(modules[before.target], nn.Conv2d)
            and len(before.users) == 1
            and targets.count(node.target) == targets.count(before.target) == 1
        ):
            yield before.target, node.target
