"""Depthwise convolutions, whose gradients on a CPU are taken where oneDNN is quick at them.

oneDNN has no fast code for two gradients of a convolution with one filter per channel: that of the
input where the stride is above 1, and that of filters larger than 3 x 3. In bfloat16, or with the
channels one after the other, they take 2 to 19 times as long as in float32 with the channels side
by side: 44 instead of 3.4 ms for the input of a 3 x 3 filter of stride 2 (4 x 96 x 129 x 129, one
thread of an AMD EPYC). So they are taken there: the same sums, rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class QuickGradientConv2d(nn.Conv2d):
    """``nn.Conv2d``, for depthwise convolutions in training on a CPU quicker."""

    @classmethod
    def like(cls, conv: nn.Conv2d, **changed) -> QuickGradientConv2d:
        """With the settings and the parameters of another convolution; ``changed``: settings."""
        settings = {
            "stride": conv.stride,
            "padding": conv.padding,
            "dilation": conv.dilation,
            "groups": conv.groups,
            "bias": conv.bias is not None,
            "device": conv.weight.device,
        }
        new = cls(conv.in_channels, conv.out_channels, conv.kernel_size, **{**settings, **changed})
        new.weight, new.bias = conv.weight, conv.bias
        return new

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._gradient_is_slow(x):
            if torch.is_autocast_enabled("cpu"):
                dtype = torch.get_autocast_dtype("cpu")
                x, weight = x.to(dtype), weight.to(dtype)
            return _Depthwise.apply(x, weight, self.stride, self.padding, self.dilation)
        return super()._conv_forward(x, weight, bias)

    def _gradient_is_slow(self, x: Tensor) -> bool:
        return (
            self.training
            and has_slow_gradient(self)
            and x.device.type == "cpu"
            and x.dtype in (torch.float32, torch.bfloat16)
            and torch.is_grad_enabled()
            and (x.requires_grad or self.weight.requires_grad)
        )


def has_slow_gradient(conv: nn.Conv2d) -> bool:
    """Whether it is one of those that this module is about."""
    is_depthwise = conv.groups == conv.in_channels == conv.out_channels > 1
    is_plain = conv.bias is None and conv.padding_mode == "zeros"
    return (
        is_depthwise
        and is_plain
        and not isinstance(conv.padding, str)
        and (max(conv.stride) > 1 or max(conv.kernel_size) > 3)
    )


class _Depthwise(torch.autograd.Function):
    """x (B, C, H, W), weight (C, 1, k, k) of the same dtype -> (B, C, H', W')."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride, padding, dilation) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = stride, padding, dilation
        return F.conv2d(x, weight, None, stride, padding, dilation, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        stride = ctx.settings[0]
        is_slow = max(stride) > 1, max(weight.shape[2:]) > 3
        result: list[Tensor | None] = [None, None]
        for slow in (False, True):
            mask = [w and s == slow for w, s in zip(wanted, is_slow)]
            if any(mask):
                found = _gradients(gradient, x, weight, ctx.settings, mask, in_float32=slow)
                result = [new if m else old for m, new, old in zip(mask, found, result)]
        return *result, None, None, None


def _gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, settings, mask: list[bool], in_float32: bool
) -> list[Tensor | None]:
    """Those of input and weight that ``mask`` asks for, in dtype and memory format as these are."""
    operands = [gradient, x, weight]
    if in_float32:
        layout = {"dtype": torch.float32, "memory_format": torch.channels_last}
        operands = [operand.to(**layout) for operand in operands]
    stride, padding, dilation = (list(setting) for setting in settings)
    found = torch.ops.aten.convolution_backward(
        *operands, None, stride, padding, dilation, False, [0, 0], len(weight), [*mask, False]
    )
    return [
        None if new is None else new.to(like.dtype, memory_format=_memory_format(like))
        for new, like in zip(found, (x, weight))
    ]


def _memory_format(x: Tensor) -> torch.memory_format:
    if x.is_contiguous():
        return torch.contiguous_format
    return torch.channels_last
