"""Box edges from the maxima of masks: MBRM (Eq. 2 to 7) in the surroundings of each edge alone.

:mod:`rdsnet.modeling.mbrm` has the formulas and the coordinates. The prior is 0 a few pixels from
the regressed edge, so that only those pixels are looked at. Right and bottom edges are mirrored:
then the object lies behind every edge, and one kernel serves all.

Shapes: the four edges of N boxes are 4 N rows, in the order left, top, right, bottom; (N, W) and
(N, H) maxima; 2 s + 1 weights of the kernel; L pixels of surroundings.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rdsnet.ops.compiled import exporting
from rdsnet.ops.sizes import as_vector

PRIOR_CUT = 0.0044
"""exp(-z^2 / 2) below this is 0: the prior ends 3.29 sigma from the regressed edge."""
PRIOR_REACH = 3.3
"""So many sigma certainly hold all of the prior."""


def refine_edges(
    column_maxima: Tensor,
    row_maxima: Tensor,
    boxes: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    gamma: float,
    min_sigma: float,
    empty_threshold: float,
    readout: str,
) -> Tensor:
    """See :func:`rdsnet.ops.refine_edges`."""
    radius = weight.numel() // 2
    edges = edge_surroundings(column_maxima, row_maxima, boxes, radius, gamma, min_sigma)
    # Eq. 3 without its denominator: that moves neither the mode nor a mean around it.
    log_product = _log_product(edges, weight, bias)
    position = log_product.argmax(1)
    if readout == "expectation":
        position = position + _mean_around(position, log_product, radius)
    position = edges.origin + edges.direction * position
    # Pixel i is a left edge at i, a right edge at i + 1.
    refined = (position + (edges.direction < 0)).to(boxes.dtype).view(4, -1).t()
    not_empty = (column_maxima > empty_threshold).any(1)
    known = edges.reached.view(4, -1).t() & not_empty[:, None]
    refined = torch.where(known, refined, boxes)
    # The regressed sides where either box has no extent.
    proper = (refined[:, :2] < refined[:, 2:]) & (boxes[:, :2] < boxes[:, 2:])
    return torch.where(proper.repeat(1, 2), refined, boxes)


def edge_log_posteriors(
    column_maxima: Tensor,
    row_maxima: Tensor,
    boxes: Tensor,
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    gamma: float,
    min_sigma: float,
    sizes: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See :func:`rdsnet.ops.edge_log_posteriors`."""
    radius = weight.numel() // 2
    edges = edge_surroundings(column_maxima, row_maxima, boxes, radius, gamma, min_sigma, sizes)
    # Where the prior does not reach the image, the denominator of Eq. 3 is 0.
    log_product = _log_product(edges, weight, bias).masked_fill(~edges.reached[:, None], 0)
    position = (pixels.t().flatten() - edges.origin) * edges.direction
    index = position.clamp(0, log_product.shape[1] - 1)[:, None]
    reached = (edges.log_prior.gather(1, index)[:, 0] > -torch.inf) & (position == index[:, 0])
    log_posterior = log_product.log_softmax(1).gather(1, index)[:, 0]
    return log_posterior.view(4, -1), reached.view(4, -1)


def edge_logits(padded: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """b + sum_k w_k m_{i+k} (Eq. 4, 5) of profiles m with s more pixels at both ends.

    (N, L + 2 s) -> (N, L). Tap by tap rather than by conv1d, which autocast would compute in half
    precision.
    """
    radius = weight.numel() // 2
    length = padded.shape[1] - 2 * radius
    return bias + sum(w * padded[:, k : k + length] for k, w in enumerate(weight.flatten()))


class Edges(NamedTuple):
    """M edges with their surroundings, mirrored where necessary so that the object lies behind.

    Position j of the L pixels is pixel ``origin + direction * j`` of the image.
    """

    profile: Tensor  # (M, L + 2 s): s more pixels on either side; 0 outside the image
    log_prior: Tensor  # (M, L): -inf where the prior is 0
    origin: Tensor  # (M,) int64
    direction: Tensor  # (M,) int64: 1 for left and top, -1 for right and bottom edges

    @property
    def reached(self) -> Tensor:
        """(M,) whether the prior reaches the image at all."""
        return (self.log_prior > -torch.inf).any(1)


def edge_surroundings(
    column_maxima: Tensor,
    row_maxima: Tensor,
    boxes: Tensor,
    radius: int,
    gamma: float,
    min_sigma: float,
    sizes: Tensor | None = None,
) -> Edges:
    """The surroundings of the 4 N edges. sizes (N, 2): as in :func:`edge_log_posteriors`."""
    (n, width), height = column_maxima.shape, row_maxima.shape[1]
    sides = (boxes[:, 2:] - boxes[:, :2]).t().flatten()
    sigma = (gamma * sides).clamp(min=min_sigma).repeat(2)
    mu = torch.cat([boxes[:, :2], boxes[:, 2:] - 1], dim=1).t().flatten()
    direction = torch.tensor([[1], [1], [-1], [-1]], device=boxes.device)
    direction = direction.expand(4, n).flatten()
    # Columns and rows side by side, so that one look-up serves all edges.
    profiles = torch.cat([column_maxima, row_maxima], dim=1)
    if sizes is None:
        sizes = as_vector([height, width], torch.int64, boxes.device).expand(n, 2)
    length = sizes.flip(1).t().flatten().repeat(2)
    start = torch.arange(n, device=boxes.device) * (width + height)
    start = torch.cat([start, start + width]).repeat(2)

    reach = _reach(sigma, min_sigma, gamma, (height, width))
    step = torch.arange(-radius, 2 * reach + 1 + radius, device=boxes.device)
    origin = mu.round().long() - direction * reach
    pixel = origin[:, None] + direction[:, None] * step
    inside = (pixel >= 0) & (pixel < length[:, None])
    index = torch.where(inside, pixel, 0) + start[:, None]
    profile = torch.where(inside, profiles.flatten()[index], 0)

    own = slice(radius, step.shape[0] - radius)
    log_prior = -0.5 * ((pixel[:, own] - mu[:, None]) / sigma[:, None]) ** 2
    outside = (log_prior < math.log(PRIOR_CUT)) | ~inside[:, own]
    return Edges(profile, log_prior.masked_fill(outside, -torch.inf), origin, direction)


def _reach(sigma: Tensor, min_sigma: float, gamma: float, size: tuple[int, int]) -> int:
    """Pixels to either side of an edge within which all priors end.

    No box is larger than the image, which bounds sigma; more than necessary only costs time. So
    the largest sigma is not worth waiting for where that would stop a GPU, or where a size that
    depends on values cannot be traced. Export can, and does not know the image.
    """
    if exporting():
        largest = F.pad(sigma, (0, 1), value=min_sigma).max()
        reach = (PRIOR_REACH * largest).ceil().long().item() + 1
        torch._check(reach >= 1)
        return reach
    bound = max(min_sigma, gamma * max(size))
    if sigma.device.type == "cpu" and not torch.compiler.is_compiling() and sigma.numel():
        bound = min(bound, float(sigma.max()))
    return math.ceil(PRIOR_REACH * bound) + 1


def _log_product(edges: Edges, weight: Tensor, bias: Tensor) -> Tensor:
    """log P(X = i) P(M' | X = i) (M, L), up to the factor alpha of the prior."""
    return edges.log_prior + F.logsigmoid(edge_logits(edges.profile, weight, bias))


def _mean_around(mode: Tensor, log_product: Tensor, radius: int) -> Tensor:
    """Mean of X - mode, given that it is at most ``radius``: (M,)."""
    distance = torch.arange(-radius, radius + 1, device=mode.device)
    position = mode[:, None] + distance
    inside = (position >= 0) & (position < log_product.shape[1])
    near = log_product.gather(1, position.clamp(0, log_product.shape[1] - 1))
    weight = near.masked_fill(~inside, -torch.inf).softmax(1)
    return (weight * distance).sum(1)
