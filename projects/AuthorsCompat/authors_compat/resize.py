"""The authors' way from the pixel representations to the output image, and the scale it implies."""

from __future__ import annotations

import torch

from rdsnet.ops import Taps, as_vector


def two_resize_taps(
    output: int, image: int, grid: int, stride: float, *, device: torch.device | str | None = None
) -> Taps:
    """Taps of one axis for two bilinear resizes in a row.

    First from the grid to the padded image, x ``stride`` with half-pixel centres; then, cut to the
    image, to the output with aligned corners: output pixel o looks at
    ``o (image - 1) / (output - 1)``.
    Both are linear and the second looks at two neighbouring pixels, which lie between at most
    three neighbouring cells: together one map with three taps.

    Args:
        output: size of the output along this axis, pixels.
        image: size of the network's input before padding, pixels.
        grid: grid cells of the image's own padded area.
        stride: pixels of the network's input per grid cell; the authors': 4.
    """
    of_image, of_output = as_vector([image - 1, output - 1], torch.float64, device)
    step = of_image / of_output.clamp(min=1)
    position = torch.arange(output, dtype=torch.float64, device=device) * step
    pixel = position.floor().clamp(max=image - 1)
    beyond = position - pixel
    first = None
    weights = torch.zeros(output, 3, dtype=torch.float64, device=device)
    for neighbour, share in ((pixel, 1 - beyond), ((pixel + 1).clamp(max=image - 1), beyond)):
        centre = ((neighbour + 0.5) / stride - 0.5).clamp(0, grid - 1)
        cell = centre.floor().long()
        first = cell if first is None else first
        fraction = centre - cell
        for tap, weight in ((cell, 1 - fraction), (cell + 1, fraction)):
            weights.scatter_add_(1, (tap - first).clamp(max=2)[:, None], (share * weight)[:, None])
    return Taps(first, weights.float())


def scale_factor(
    image_size: tuple[int, int], output_size: tuple[int, int], max_elongation: float
) -> tuple[float, float]:
    """By how much an image was resized, horizontally and vertically.

    One side is scaled to a given number of pixels and the other by the same factor, rounded to
    whole pixels; boxes are scaled by the factor, so it matters which side was the first. It is the
    shorter one, unless the image is so long that the limit of the longer side decides.

    Args:
        image_size: (H, W) of the network's input before padding.
        output_size: (H, W) of the original image.
        max_elongation: limit of the longer side / size of the shorter one (1333 / 800).

    Returns:
        (horizontal, vertical) factor; equal, unless no single factor gives ``image_size``.
    """
    by_side = sorted(zip(output_size, image_size, strict=True))
    if max(output_size) > max_elongation * min(output_size):
        by_side.reverse()
    for original, resized in by_side:
        scale = resized / original
        if all(
            int(old * scale + 0.5) == new for old, new in zip(output_size, image_size, strict=True)
        ):
            return scale, scale
    return image_size[1] / output_size[1], image_size[0] / output_size[0]
