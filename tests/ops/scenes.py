"""Random arguments for the operators, with the geometries that break index arithmetic."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rdsnet.ops import Taps, resize_taps


class Scene(NamedTuple):
    psi: Tensor
    phi: Tensor
    image_index: Tensor
    windows: Tensor
    targets: Tensor
    target_index: Tensor


def random_windows(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Ordinary windows among empty, reversed, outlying ones and the whole map."""
    sides = torch.tensor([width, height, width, height])
    windows = (torch.rand(count, 4, generator=generator) * (sides + 8)).long() - 4
    ordered = torch.cat(
        [
            torch.minimum(windows[:, :2], windows[:, 2:]),
            torch.maximum(windows[:, :2], windows[:, 2:]),
        ],
        dim=1,
    )
    kind = torch.randint(0, 10, (count,), generator=generator)
    windows[kind > 1] = ordered[kind > 1]  # kinds 0 and 1: perhaps reversed
    windows[kind == 2, 2:] = windows[kind == 2, :2]  # empty
    windows[kind == 3] += 2 * sides  # beyond the map
    windows[kind == 4] -= 2 * sides
    windows[kind == 5] = torch.tensor([0, 0, width, height])
    windows[kind == 6] = torch.tensor([-(10**6), -(10**6), 10**6, 10**6])
    return windows


def random_scene(
    seed: int,
    *,
    images: int = 2,
    dims: int = 32,
    height: int = 13,
    width: int = 37,
    objects: int = 9,
    dtype: torch.dtype = torch.float32,
) -> Scene:
    g = torch.Generator().manual_seed(seed)
    num_targets = 3
    return Scene(
        torch.randn(images, dims, height, width, generator=g).to(dtype),
        torch.randn(objects, 2, dims, generator=g).to(dtype) / dims**0.5,
        torch.randint(0, images, (objects,), generator=g),
        random_windows(objects, height, width, g),
        (torch.rand(num_targets, height, width, generator=g) > 0.7).to(torch.uint8),
        torch.randint(0, num_targets, (objects,), generator=g),
    )


def random_sizes(seed: int) -> dict[str, int]:
    """Keyword arguments for :func:`random_scene`: odd sizes, one pixel, no object, other D."""
    g = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=g))

    return {
        "images": pick(1, 3),
        "dims": (32, 1, 3, 8, 33)[pick(0, 4)],
        "height": (1, pick(2, 9), pick(10, 40))[pick(0, 2)],
        "width": (1, pick(2, 20), pick(15, 70))[pick(0, 2)],
        "objects": (0, 1, pick(2, 12))[pick(0, 2)],
    }


def to_device(value, device: str):
    """Tensors and taps on the device; other values as they are."""
    return value.to(device) if hasattr(value, "to") else value


class PixelScene(NamedTuple):
    psi: Tensor
    phi: Tensor
    image_index: Tensor
    windows: Tensor
    masks: list[Tensor]
    object_index: Tensor
    taps_y: Taps
    taps_x: Taps


def random_pixel_scene(
    seed: int, *, stride: int = 4, dtype: torch.dtype = torch.float32, **sizes: int
) -> PixelScene:
    """A grid of cells of stride x stride pixels, and images that cover it to various extents."""
    psi, phi, image_index = random_scene(seed, dtype=dtype, **sizes)[:3]
    g = torch.Generator().manual_seed(seed)
    grid = psi.shape[2:]
    height, width = padded = [cells * stride for cells in grid]
    masks = []
    for i in range(len(psi)):
        # Up to two cells are missing, and the last image may even reach beyond the grid.
        missing = torch.randint(-3 if i else 0, 2 * stride + 1, (2,), generator=g).tolist()
        size = [max(side - lost, 1) for side, lost in zip(padded, missing)]
        masks.append(torch.rand(3, *size, generator=g) > 0.6)
    taps_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return PixelScene(
        psi,
        phi,
        image_index,
        random_windows(len(phi), height, width, g),
        masks,
        torch.randint(0, 3, (len(phi),), generator=g),
        *(resize_taps(n, n, cells, stride, dtype=taps_dtype) for n, cells in zip(padded, grid)),
    )
