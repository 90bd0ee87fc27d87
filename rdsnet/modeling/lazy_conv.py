"""The end of the representation branch, evaluated only where its output is needed.

The branch ends in the widest convolution of the head: 256 -> A x 2D channels at every location.
Only positive anchors (training) and kept detections (inference) need a representation, a few
hundred of up to 200,000 anchors, so their 3x3 neighbourhoods are gathered and multiplied by the
rows of their own anchor. Where the convolutions before it have no normalisation over the whole map,
the same holds for them: each looks at a neighbourhood that is wider by its own reach. Where they
have one, they are needed on whole maps, but on those alone in which there is an object. On a GPU
the number of operations is what costs, not their size: there all levels are one list of locations,
in a few large operations. Equal to the dense convolutions up to rounding, gradients included.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rdsnet.ops import as_vector, exporting


def convolve_at(
    conv: nn.Conv2d,
    features: list[Tensor],
    image_index: Tensor,
    places: Tensor,
    num_anchors: int,
    tower: nn.Sequential | None = None,
) -> Tensor:
    """Output of a "same" convolution for chosen anchors.

    Args:
        conv: stride-1 convolution C -> A * E with odd kernel and padding kernel // 2; its channels
            are anchor * E + number.
        features: its inputs, (B, C, Hi, Wi) per level; with a tower the tower's inputs.
        image_index: (N,) int64.
        places: (N,) int64, of the anchors in the order level, y, x, anchor.
        num_anchors: A.
        tower: layers before ``conv``, evaluated at neighbourhoods where :func:`is_local` is true of
            them, else on the maps of images and levels with chosen anchors, on a GPU everywhere;
            None: there are none.

    Returns:
        (N, E), attached to every parameter also when N = 0.
    """
    if exporting() or _launches_cost_most(features[0]):
        features = features if tower is None else [tower(feature) for feature in features]
        return _convolve_at_once(conv, features, image_index, places, num_anchors)
    level, y, x, anchor = locate(places, [f.shape[-2:] for f in features], num_anchors)
    radius = conv.padding[0]
    patches, order = [], []
    for i, feature in enumerate(features):
        here = (level == i).nonzero().squeeze(1)
        locations = torch.stack([image_index[here], y[here], x[here]], dim=1)
        if tower is None:
            patches.append(_neighbourhoods(feature, locations, radius)[0])
        else:
            patches.append(_tower_at(tower, feature, locations, radius))
        order.append(here)
    order = torch.cat(order)
    patches = torch.cat(patches).flatten(1)

    # One matrix product per anchor shape: anchors of the same shape share their rows of weights.
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


def _launches_cost_most(feature: Tensor) -> bool:
    """On an H200 (benchmarks/gpu) level by level took 2 to 5 times as long as the convolution
    everywhere. How long it takes at once was not measured.
    """
    return feature.is_cuda


def is_local(layers: Iterable[nn.Module]) -> bool:
    """Whether every output depends on a neighbourhood alone: plain "same" convolutions and ReLU."""
    return all(
        isinstance(layer, nn.ReLU)
        or (
            isinstance(layer, nn.Conv2d)
            and getattr(layer, "norm", None) is None  # of Detectron2's Conv2d
            and getattr(layer, "activation", None) is None
            and (layer.stride, layer.dilation, layer.groups) == ((1, 1), (1, 1), 1)
            and layer.padding_mode == "zeros"
            and tuple(2 * reach + 1 for reach in layer.padding) == layer.kernel_size
            and layer.kernel_size[0] == layer.kernel_size[1]
        )
        for layer in layers
    )


def _tower_at(tower: nn.Sequential, feature: Tensor, locations: Tensor, radius: int) -> Tensor:
    """Neighbourhoods of chosen locations in the output of a tower, (N, 2 r + 1, 2 r + 1, C).

    Arguments as in :func:`_neighbourhoods`. Where the locations are so many that their
    neighbourhoods are more work than the whole map, the whole map is evaluated.
    """
    if not is_local(tower):
        return _neighbourhoods(*_whole_maps(tower, feature, locations), radius)[0]
    height, width = feature.shape[-2:]
    # Anchors of one location share it.
    keys, index = ((locations[:, 0] * height + locations[:, 1]) * width + locations[:, 2]).unique(
        return_inverse=True
    )
    unique = torch.stack([keys // (height * width), keys // width % height, keys % width], dim=1)
    reaches = [layer.padding[0] for layer in tower if isinstance(layer, nn.Conv2d)]
    # Sides of the patches that each convolution leaves.
    sides = [2 * (radius + sum(reaches[i + 1 :])) + 1 for i in range(len(reaches))]
    if len(unique) * sum(side**2 for side in sides) >= feature[:, 0].numel() * len(reaches):
        return _neighbourhoods(tower(feature), locations, radius)[0]
    patches, inside = _neighbourhoods(feature, unique, radius + sum(reaches))
    patches, inside = patches.permute(0, 3, 1, 2), inside[:, None]
    for layer in tower:
        if isinstance(layer, nn.Conv2d):
            reach = layer.padding[0]
            inside = inside[..., reach:-reach, reach:-reach] if reach else inside
            # Beyond the map the next layer sees zeros, not what this one would give there.
            patches = F.conv2d(patches, layer.weight, layer.bias) * inside
        else:
            patches = layer(patches)
    patches = patches.permute(0, 2, 3, 1)
    rows = F.embedding(index, patches.flatten(1))  # see _features_at
    return rows.view(len(locations), *patches.shape[1:])


def _whole_maps(tower: nn.Sequential, feature: Tensor, locations: Tensor) -> tuple[Tensor, Tensor]:
    """The tower's maps of those images that have locations, and the locations in these maps."""
    images, image = locations[:, 0].unique(return_inverse=True)
    if torch.is_grad_enabled() or len(images) == len(feature):
        return tower(feature), locations  # in training every parameter takes part
    if len(images) == 0:
        channels = [layer.out_channels for layer in tower if isinstance(layer, nn.Conv2d)]
        return feature.new_zeros(1, channels[-1], 1, 1), locations
    return tower(feature[images]), torch.stack([image, locations[:, 1], locations[:, 2]], dim=1)


def _neighbourhoods(feature: Tensor, locations: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Square neighbourhoods of chosen locations of a map.

    Args:
        feature: (B, C, H, W).
        locations: (N, 3) int64: image, y, x.
        radius: r.

    Returns:
        (N, 2 r + 1, 2 r + 1, C), zero beyond the map, and (N, 2 r + 1, 2 r + 1) bool, the locations
        that lie on it.
    """
    height, width = feature.shape[-2:]
    reach = torch.arange(-radius, radius + 1, device=locations.device)
    image, y, x = (part[:, None, None] for part in locations.unbind(1))
    rows, columns = y + reach[:, None], x + reach
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    patches = _features_at(feature, image, rows.clamp(0, height - 1), columns.clamp(0, width - 1))
    return patches * inside[..., None], inside


def _convolve_at_once(
    conv: nn.Conv2d, features: list[Tensor], image_index: Tensor, places: Tensor, num_anchors: int
) -> Tensor:
    """:func:`convolve_at` without sizes that depend on how many anchors lie where.

    All levels are one list of locations, each level with a rim of zeros; every neighbourhood meets
    the weights of all A anchors, and its own are chosen. More work, but in fewer
    operations, and the same graph for any anchors.
    """
    level, y, x, anchor = locate(places, [f.shape[-2:] for f in features], num_anchors)
    reach = conv.padding[0]
    padded = [F.pad(feature, (reach, reach, reach, reach)) for feature in features]
    vectors = torch.cat([p.permute(0, 2, 3, 1).flatten(0, 2) for p in padded])
    heights, widths = (
        as_vector([p.shape[axis] for p in padded], torch.int64, level.device) for axis in (2, 3)
    )
    image_count = padded[0].shape[0]
    counts = image_count * heights * widths
    starts = counts.cumsum(0) - counts
    starts, heights, widths = starts[level], heights[level], widths[level]
    steps = torch.arange(conv.kernel_size[0], device=level.device)
    rows = (image_index * heights + y)[:, None] + steps  # (N, k)
    index = (starts[:, None] + rows * widths[:, None] + x[:, None])[:, :, None] + steps
    weights = conv.weight.permute(0, 2, 3, 1).flatten(1)  # (A * E, k * k * C)
    # An embedding's gradient is the same every time, see _features_at.
    differentiable = torch.is_grad_enabled() and vectors.requires_grad
    patches = F.embedding(index, vectors) if differentiable else vectors[index]
    outputs = F.linear(patches.flatten(1), weights, conv.bias)
    outputs = outputs.view(-1, num_anchors, conv.out_channels // num_anchors)
    return outputs.gather(1, anchor[:, None, None].expand(-1, 1, outputs.shape[2]))[:, 0]


def _features_at(feature: Tensor, image_index: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``feature[image_index, :, rows, columns]`` with gradients that are the same every time.

    Neighbourhoods overlap, and the CPU's threads add up the gradient of plain indexing in whatever
    order they arrive; that of an embedding has one order.
    """
    if not (torch.is_grad_enabled() and feature.requires_grad):
        return feature[image_index, :, rows, columns]
    _, _, height, width = feature.shape
    vectors = feature.permute(0, 2, 3, 1).flatten(0, 2)  # (B * Hi * Wi, C)
    return F.embedding((image_index * height + rows) * width + columns, vectors)


def locate(
    places: Tensor, sizes: list[tuple[int, int]], num_anchors: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split places (order: level, y, x, anchor) into level, y, x and anchor, each (N,)."""
    heights, widths = (as_vector(sides, torch.int64, places.device) for sides in zip(*sizes))
    counts = heights * widths * num_anchors
    ends = counts.cumsum(0)
    level = (places[:, None] >= ends).sum(1)
    widths = widths[level]
    within = places - (ends - counts)[level]
    location = within // num_anchors
    return level, location // widths, location % widths, within % num_anchors
