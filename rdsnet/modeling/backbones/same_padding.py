"""TensorFlow's "SAME" padding with constants.

timm computes the padding anew for every image (``timm.layers.Conv2dSame``). Here images are padded
to what the strides divide, and then it is the same for all of them: nothing is left to compute, or
to export.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from rdsnet.modeling.backbones.depthwise import QuickGradientConv2d, has_slow_gradient


class StaticSameConv2d(QuickGradientConv2d):
    """A "SAME" convolution for maps (B, C, H, W) whose H and W are multiples of its stride s.

    The last of the H / s outputs begins at row H - s and sees (k - 1) * dilation + 1 rows, k being
    the kernel's. The rows that are missing are added, the smaller half at the top; columns
    likewise. Arguments as of ``nn.Conv2d``, without padding.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.pads: list[int] = []  # left, right, top, bottom
        for k, s, d in reversed(list(zip(self.kernel_size, self.stride, self.dilation))):
            missing = max((k - 1) * d + 1 - s, 0)
            self.pads += [missing // 2, missing - missing // 2]

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(F.pad(x, self.pads), self.weight, self.bias)


def replace_convolutions(module: nn.Module) -> None:
    """Inside a module, make the padding of timm's ``Conv2dSame`` static, and gradients of depthwise
    convolutions quick.
    """
    from timm.layers import Conv2dSame

    for name, child in module.named_children():
        if type(child) is Conv2dSame:
            setattr(module, name, StaticSameConv2d.like(child, padding=0))
        elif type(child) is nn.Conv2d and has_slow_gradient(child):
            setattr(module, name, QuickGradientConv2d.like(child))
        else:
            replace_convolutions(child)
