"""The last convolution of the representation branch: everywhere, or where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rdsnet.benchmark import measure
from rdsnet.benchmark.scene import ASPECT, DIM, PADDED_TO
from rdsnet.modeling.lazy_conv import convolve_at

_NUM_ANCHORS = 9
_STRIDES = (8, 16, 32, 64, 128)


def run(
    size: int,
    channels: int,
    num_objects: int,
    thread_counts: Sequence[int],
    device: str,
    seconds: float,
    rounds: tuple[int, int],
) -> list[dict]:
    """Dense against lazy on the five levels of an image of ``size`` px, one image."""
    g = torch.Generator().manual_seed(0)
    sides = [-(-side // PADDED_TO) * PADDED_TO for side in (size, round(size * ASPECT))]
    conv = nn.Conv2d(channels, _NUM_ANCHORS * 2 * DIM, 3, padding=1).to(device)
    shapes = [tuple(-(-side // stride) for side in sides) for stride in _STRIDES]
    features = [torch.randn(1, channels, *s, generator=g).to(device) for s in shapes]
    total = sum(h * w * _NUM_ANCHORS for h, w in shapes)
    places = torch.randint(0, total, (num_objects,), generator=g).to(device)
    first_image = torch.zeros_like(places)

    def dense() -> Tensor:
        outputs = [conv(f).permute(0, 2, 3, 1).reshape(1, -1, 2 * DIM) for f in features]
        return torch.cat(outputs, dim=1)[first_image, places]

    def lazy() -> Tensor:
        return convolve_at(conv, features, first_image, places, _NUM_ANCHORS)

    def infer(function: Callable[[], Tensor]) -> Tensor:
        with torch.no_grad():
            return function()

    def train(function: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        inputs = [*features, conv.weight, conv.bias]
        return torch.autograd.grad(function().square().sum(), inputs)

    results = []
    for count in thread_counts:
        with measure.threads(count):
            for phase, call in (("inference", infer), ("training", train)):
                for feature in features:
                    feature.requires_grad_(phase == "training")
                calls = {"dense": lambda c=call: c(dense), "lazy": lambda c=call: c(lazy)}
                times = measure.alternate(calls, device, seconds, rounds)
                results.append(
                    {"threads": count, "phase": phase, "size": size, "objects": num_objects} | times
                )
    return results
