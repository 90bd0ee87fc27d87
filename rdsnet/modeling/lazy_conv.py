"""A convolution evaluated only where its output is needed.

The representation branch ends in the widest convolution of the head: 256 -> A x 2D channels at
every location. Only positive anchors (training) and kept detections (inference) need a
representation, a few hundred of up to 200,000 anchors, so their 3x3 neighbourhoods are gathered
and multiplied by the rows of their own anchor. Equal to the dense convolution up to rounding,
gradients included.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rdsnet.ops import compiled


def convolve_at(
    conv: nn.Conv2d, features: list[Tensor], image_index: Tensor, places: Tensor, num_anchors: int
) -> Tensor:
    """Output of a "same" convolution for chosen anchors.

    Args:
        conv: stride-1 convolution C -> A * E with odd kernel and padding kernel // 2; its channels
            are anchor * E + number.
        features: its inputs, (B, C, Hi, Wi) per level.
        image_index: (N,) int64.
        places: (N,) int64 index of an anchor in the order level, y, x, anchor.
        num_anchors: A.

    Returns:
        (N, E), attached to every parameter also when N = 0.
    """
    if compiled.exporting():
        return _convolve_at_any(conv, features, image_index, places, num_anchors)
    level, y, x, anchor = locate(places, [f.shape[-2:] for f in features], num_anchors)
    reach = torch.arange(conv.kernel_size[0], device=places.device) - conv.padding[0]
    patches, order = [], []
    for i, feature in enumerate(features):
        here = (level == i).nonzero().squeeze(1)
        height, width = feature.shape[-2:]
        rows = y[here][:, None, None] + reach[:, None]
        columns = x[here][:, None, None] + reach
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        patch = cells_of(
            feature,
            image_index[here][:, None, None],
            rows.clamp(0, height - 1),
            columns.clamp(0, width - 1),
        )  # (n, k, k, C)
        patches.append(patch * inside[..., None])
        order.append(here)
    order = torch.cat(order)
    patches = torch.cat(patches).flatten(1)

    # One matrix product per anchor shape: objects of the same shape share their rows of weights.
    weights = conv.weight.view(num_anchors, -1, *conv.weight.shape[1:])
    weights = weights.permute(0, 1, 3, 4, 2).flatten(2)  # (A, E, k * k * C)
    biases = conv.bias.view(num_anchors, -1)
    by_anchor = anchor[order].argsort(stable=True)
    counts = torch.bincount(anchor, minlength=num_anchors).tolist()
    outputs = [
        torch.addmm(biases[a], rows, weights[a].t())
        for a, rows in enumerate(patches[by_anchor].split(counts))
    ]
    return torch.cat(outputs)[order[by_anchor].argsort()]


def _convolve_at_any(
    conv: nn.Conv2d, features: list[Tensor], image_index: Tensor, places: Tensor, num_anchors: int
) -> Tensor:
    """:func:`convolve_at` without sizes that depend on how many anchors lie where.

    All levels are one list of cells, each level with a rim of zeros; every neighbourhood meets the
    weights of all A anchors, and its own are chosen. More work, but the same graph for any anchors.
    """
    level, y, x, anchor = locate(places, [f.shape[-2:] for f in features], num_anchors)
    reach = conv.padding[0]
    padded = [F.pad(feature, (reach, reach, reach, reach)) for feature in features]
    cells = torch.cat([p.permute(0, 2, 3, 1).flatten(0, 2) for p in padded])
    sizes = torch.tensor([p.shape for p in padded], device=level.device)
    counts = sizes[:, 0] * sizes[:, 2] * sizes[:, 3]
    starts, heights, widths = counts.cumsum(0) - counts, sizes[:, 2], sizes[:, 3]
    starts, heights, widths = starts[level], heights[level], widths[level]
    steps = torch.arange(conv.kernel_size[0], device=level.device)
    rows = (image_index * heights + y)[:, None] + steps  # (N, k)
    index = (starts[:, None] + rows * widths[:, None] + x[:, None])[:, :, None] + steps
    weights = conv.weight.permute(0, 2, 3, 1).flatten(1)  # (A * E, k * k * C)
    outputs = F.linear(cells[index].flatten(1), weights, conv.bias)
    outputs = outputs.view(-1, num_anchors, conv.out_channels // num_anchors)
    return outputs.gather(1, anchor[:, None, None].expand(-1, 1, outputs.shape[2]))[:, 0]


def cells_of(feature: Tensor, image_index: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``feature[image_index, :, rows, columns]`` with gradients that are the same every time.

    Neighbourhoods overlap, and the CPU's threads add up the gradient of plain indexing in whatever
    order they arrive; that of an embedding has one order.
    """
    if not (torch.is_grad_enabled() and feature.requires_grad):
        return feature[image_index, :, rows, columns]
    _, _, height, width = feature.shape
    cells = feature.permute(0, 2, 3, 1).flatten(0, 2)  # (B * Hi * Wi, C)
    return F.embedding((image_index * height + rows) * width + columns, cells)


def locate(
    places: Tensor, sizes: list[tuple[int, int]], num_anchors: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split anchor indices (order: level, y, x, anchor) into level, y, x and anchor, each (N,)."""
    counts = torch.tensor([h * w * num_anchors for h, w in sizes], device=places.device)
    ends = counts.cumsum(0)
    level = (places[:, None] >= ends).sum(1)
    widths = torch.tensor([w for _, w in sizes], device=places.device)[level]
    within = places - (ends - counts)[level]
    cell = within // num_anchors
    return level, cell // widths, cell % widths, within % num_anchors
