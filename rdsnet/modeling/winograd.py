"""3x3 convolutions of large maps with a quarter of the multiplications, for inference on a CPU.

Winograd's minimal filtering, F(4 x 4, 3 x 3) of Lavin and Gray ("Fast Algorithms for Convolutional
Neural Networks", CVPR 2016). The map is cut into tiles of 4 x 4 outputs, each of which looks at
6 x 6 inputs d. With the fixed matrices of this module,

    outputs = A^T [(G g G^T) * (B^T d B)] A

where g are the 3 x 3 weights and * multiplies element by element, summed over input channels: 36
multiplications for 16 outputs instead of 144. All tiles together are 36 matrix products, tiles x
channels by channels x channels.

The result is that of the convolution up to rounding, whose error is some four times as large
(float32: 4e-5 of the mean magnitude, where the direct convolution has 1e-5).

Shapes: (B, C, H, W) a map, T tiles, O output channels.
"""

from __future__ import annotations

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F

_INPUTS = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]  # B^T
_WEIGHTS = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]  # G
_OUTPUTS = [
    [1, 1, 1, 1, 1, 0],
    [0, 1, -1, 2, -2, 0],
    [0, 1, 1, 4, 4, 0],
    [0, 1, -1, 8, -8, 1],
]  # A^T

# What pays, measured on one thread of an AMD EPYC. With fewer channels the transforms take as long
# as the multiplications that they save; more would need much memory, 36 numbers for 9 weights.
_CHANNELS = 96, 256
_SMALLEST_MAP = 500  # cells
_TILES = 256  # at a time, so that all steps find their data in the cache


class WinogradConv2d(Conv2d):
    """A convolution that takes the short way where it pays; computed directly everywhere else.

    The weights of the short way are made when it is first taken.
    """

    @classmethod
    def of(cls, conv: nn.Conv2d) -> WinogradConv2d:
        """One with the weights of a convolution that :func:`is_suitable` is true of."""
        quick = cls(
            conv.in_channels,
            conv.out_channels,
            3,
            padding=1,
            device="meta",  # nothing is drawn
            norm=getattr(conv, "norm", None),
            activation=getattr(conv, "activation", None),
        )
        quick.weight, quick.bias = conv.weight, conv.bias
        quick.transformed: Tensor | None = None
        return quick.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        if self._pays_for(x):
            x = self._short_way(x)
        else:
            x = F.conv2d(x, self.weight, self.bias, padding=1)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)

    def _pays_for(self, x: Tensor) -> bool:
        # In half precision, products cost half as much, and rounding would be felt.
        is_wide = x.dtype == self.weight.dtype and x.dtype in (torch.float32, torch.float64)
        return (
            is_wide
            and x.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
            and not (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            and x.shape[2] * x.shape[3] >= _SMALLEST_MAP
        )

    def _short_way(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H, W), channels side by side in memory."""
        if self.transformed is None:
            self.transformed = transformed_weights(self.weight)
        batch, _, height, width = x.shape
        down, across = -(-height // 4), -(-width // 4)  # tiles
        padded = x.new_zeros(batch, 4 * down + 2, 4 * across + 2, self.in_channels)
        padded[:, 1 : height + 1, 1 : width + 1] = x.permute(0, 2, 3, 1)
        outputs = x.new_empty(batch, 4 * down, across, 4, self.out_channels)
        rows = max(1, _TILES // across)
        space = [
            x.new_empty(n * rows * across * channels)
            for n, channels in (
                (36, self.in_channels),
                (36, self.in_channels),
                (36, self.out_channels),
                (16, self.out_channels),
            )
        ]
        for image, results in zip(padded, outputs):
            for row in range(0, down, rows):
                of_tiles = slice(4 * row, 4 * min(row + rows, down))
                self._some_rows(image[of_tiles.start : of_tiles.stop + 2], results[of_tiles], space)
        outputs = outputs.view(batch, 4 * down, 4 * across, self.out_channels)
        return outputs[:, :height, :width].permute(0, 3, 1, 2)

    def _some_rows(self, inputs: Tensor, outputs: Tensor, space: list[Tensor]) -> None:
        """Some rows of tiles: inputs (4 n + 2, 4 w + 2, C) -> outputs (4 n, w, 4, O)."""
        channels, (height, across) = inputs.shape[2], outputs.shape[:2]
        down, step = height // 4, inputs.stride()
        tiles = down * across
        # The 6 x 6 inputs of every tile, (6, 6, n, w, C): neighbours share two rows and columns.
        overlapping = inputs.as_strided(
            (6, 6, down, across, channels),
            (step[0], step[1], 4 * step[0], 4 * step[1], 1),
            inputs.storage_offset(),
        )
        gathered, transformed, products, results = (
            part[: n * tiles * width].view(n, tiles * width)
            for part, n, width in zip(
                space, (36, 36, 36, 16), (channels, channels, *2 * (self.out_channels,))
            )
        )
        gathered.view(overlapping.shape).copy_(overlapping)
        torch.mm(_both_ways(_INPUTS, inputs.dtype), gathered, out=transformed)
        torch.bmm(
            transformed.view(36, tiles, channels),
            self.transformed,
            out=products.view(36, tiles, self.out_channels),
        )
        torch.mm(_both_ways(_OUTPUTS, inputs.dtype), products, out=results)
        results = results.view(4, 4, down, across, self.out_channels).permute(2, 0, 3, 1, 4)
        outputs = outputs.view(results.shape)
        if self.bias is None:
            outputs.copy_(results)
        else:
            torch.add(results, self.bias, out=outputs)


def is_suitable(conv: nn.Module) -> bool:
    """Whether a module is a plain 3x3 "same" convolution of as many channels as it pays for."""
    few, many = _CHANNELS
    return (
        type(conv) in (nn.Conv2d, Conv2d)
        and (conv.kernel_size, conv.padding, conv.stride) == ((3, 3), (1, 1), (1, 1))
        and (conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), 1, "zeros")
        and few <= conv.in_channels <= many
        and conv.out_channels >= few
    )


def use_winograd(model: nn.Module) -> None:
    """Replace the convolutions of a model that :func:`is_suitable` is true of, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if is_suitable(child):
                quick = WinogradConv2d.of(child)
                setattr(parent, name, quick)
                # Detectron2's FPN calls its layers from lists of its own.
                for value in vars(parent).values():
                    if isinstance(value, list):
                        value[:] = [quick if part is child else part for part in value]


def transformed_weights(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) -> (36, C, O), computed in float64."""
    factors = torch.tensor(_WEIGHTS, dtype=torch.float64)
    products = torch.einsum("ij,ocjk,lk->ilco", factors, weight.double(), factors)
    return products.reshape(36, weight.shape[1], weight.shape[0]).to(weight.dtype).contiguous()


def _both_ways(matrix: list[list[int]], dtype: torch.dtype) -> Tensor:
    """The matrix that does vertically and horizontally, at once, what this one does in a row."""
    one_way = torch.tensor(matrix, dtype=dtype)
    return torch.kron(one_way, one_way)
