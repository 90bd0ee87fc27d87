"""Mask based boundary refinement (MBRM; paper, Sec. 3.3): the pixels give back to the boxes.

The position X of a box edge is a discrete random variable over the pixel columns (left, right) or
rows (top, bottom) of the output image. With Bayes' rule,

    P(X = i | M') = P(X = i) P(M' | X = i) / sum_t P(X = t) P(M' | X = t)                    (Eq. 3)

and the refined edge is its argmax (Eq. 2). The likelihood looks at the profile m of the mask, the
maximum of the foreground probability over each column (row), near i alone (Eq. 4, 5):

    P(M' | X = i) = sigmoid(b + sum_{k=-s..s} w_k m_{i+k})

The prior is a discrete Gaussian around the regressed edge, P(X = i) ~ exp(-(i - mu)^2 / 2 sigma^2)
with sigma = gamma x box size (Eq. 6, 7).

**Coordinates.** X counts pixels: it is the index of the first pixel inside the object for a left
or top edge, and of the last pixel inside for a right or bottom edge. Pixel i covers [i, i + 1), so
in continuous coordinates a left edge at pixel i is x = i and a right edge at pixel i is x = i + 1.
Hence mu = x1 for the left edge and mu = x2 - 1 for the right edge, and back likewise. Right and
bottom edges are the mirror image: the same kernel, reversed. (Mirrored, x becomes W - x and pixel
i becomes W - 1 - i: a right edge at pixel i, x = i + 1, becomes a left edge at W - 1 - i, which is
where its pixel has gone.)

An edge between the pixel borders belongs to the pixel i with i - 0.5 < x <= i + 0.5, as the
first pixel whose centre is inside says. The mean of such x is i, so that an expected value of X
is a position to a fraction of a pixel without offset.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rdsnet.ops import compiled

# The kernel of the authors' public code, for s = 4: it looks for a rise of the profile.
PUBLISHED_KERNEL = (
    (-0.2968, -0.2892, -0.2635, -3.2545, -0.1874, 2.5041, 0.0196, 0.0651, 0.0917),
    -1.9536,
)

# exp(-z^2 / 2) below this is 0: the prior ends 3.29 standard deviations from the regressed edge.
PRIOR_CUT = 0.0044
PRIOR_REACH = 3.3

READOUTS = ("argmax", "expectation")


class MBRM(nn.Module):
    """Refine box edges from mask profiles.

    Args:
        gamma: sigma of the prior as a share of the box's width (height). Paper: 0.05.
        radius: s, reach of an edge's influence in pixels. Paper: 4.
        min_sigma: smallest sigma, pixels. Without it small boxes would have no neighbouring pixel
            to move to.
        empty_threshold: an object whose profile never rises above this probability has an empty
            mask and keeps its regressed box. Use the mask threshold.
        readout: where in its posterior an edge is. "argmax" (paper): at the most probable pixel.
            "expectation": at the mean of X, given that it is at most ``radius`` pixels from there.

    With radius 4 the kernel starts as the authors' published one, else as the simplest edge
    detector (-1 on the pixel before the edge, +1 on the first pixel inside).
    """

    def __init__(
        self,
        gamma: float = 0.05,
        radius: int = 4,
        *,
        min_sigma: float = 1.0,
        empty_threshold: float = 0.4,
        readout: str = "argmax",
    ) -> None:
        super().__init__()
        if gamma <= 0 or min_sigma <= 0:
            raise ValueError(
                f"MBRM: gamma and min_sigma must be positive, got {gamma} and {min_sigma}; "
                "to leave boxes as regressed set MODEL.RDSNET.MBRM.METHOD none"
            )
        if radius < 1:
            raise ValueError(f"MBRM: radius must be at least 1 pixel, got {radius}")
        if readout not in READOUTS:
            raise ValueError(
                f"MBRM: readout must be one of {READOUTS}, got '{readout}' "
                "(MODEL.RDSNET.MBRM.READOUT)"
            )
        self.gamma, self.radius, self.readout = gamma, radius, readout
        self.min_sigma, self.empty_threshold = min_sigma, empty_threshold
        self.weight = nn.Parameter(torch.zeros(1, 1, 2 * radius + 1))
        self.bias = nn.Parameter(torch.zeros(1))
        self.reset_parameters()
        self._register_load_state_dict_pre_hook(_refuse_other_radius, with_module=True)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        weights, bias = PUBLISHED_KERNEL
        if 2 * self.radius + 1 == len(weights):
            self.weight.copy_(torch.tensor(weights).view(1, 1, -1))
            self.bias.fill_(bias)
        else:
            self.weight.zero_()
            self.weight[0, 0, self.radius - 1 : self.radius + 1] = torch.tensor([-1.0, 1.0])
            self.bias.zero_()

    def forward(self, column_maxima: Tensor, row_maxima: Tensor, boxes: Tensor) -> Tensor:
        """Refined boxes (Eq. 2).

        Args:
            column_maxima: (N, W) largest foreground probability of each pixel column.
            row_maxima: (N, H) largest foreground probability of each pixel row.
            boxes: (N, 4) regressed boxes, output pixels, continuous coordinates.

        Returns:
            (N, 4) refined boxes. What the mask says nothing about stays as regressed: boxes of
            empty masks, edges too far outside the image for the prior to reach it, boxes that were
            reversed, and boxes that would be left without extent.
        """
        if self._compiled(column_maxima, row_maxima, boxes):
            return torch.ops.rdsnet.refine_edges(
                column_maxima,
                row_maxima,
                boxes,
                self.weight,
                self.bias,
                self.gamma,
                self.min_sigma,
                math.log(PRIOR_CUT),
                PRIOR_REACH,
                self.empty_threshold,
            )
        edges = self._edges(column_maxima, row_maxima, boxes)
        # Eq. 3 without its denominator: that moves neither the mode nor a mean around it.
        position = edges.origin + edges.direction * self._read_out(self._log_product(edges))
        # Pixel i is a left edge at i, a right edge at i + 1.
        refined = (position + (edges.direction < 0)).to(boxes.dtype).view(4, -1).t()
        known = edges.reached.view(4, -1).t()
        known = known & has_mask(column_maxima, self.empty_threshold)[:, None]
        return _where_proper(torch.where(known, refined, boxes), boxes)

    def _compiled(self, *arguments: Tensor) -> bool:
        """Whether the compiled operator serves :meth:`forward`; its argmax has no gradient."""
        single_on_cpu = all(
            x.is_cpu and x.dtype == torch.float32 for x in (*arguments, self.weight)
        )
        return self.readout == "argmax" and single_on_cpu and compiled.usable(arguments[0])

    def loss(
        self,
        column_maxima: Tensor,
        row_maxima: Tensor,
        boxes: Tensor,
        gt_boxes: Tensor,
        sizes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """L_refine (Sec. 3.3): cross-entropy of the posteriors against the one-hot true edges.

        The true edge in pixel indices is the first (left, top) or last (right, bottom) pixel whose
        centre lies inside the ground-truth box. Where the prior is 0 at that pixel, because the
        regressed edge is more than 3.29 sigma off or the edge lies outside the image, no kernel
        can find it. Such edges have no term in the loss, so that they neither raise it nor move
        the kernel; the count that is returned says how many remain.

        Args:
            column_maxima, row_maxima, boxes: as in :meth:`forward`.
            gt_boxes: (N, 4) ground-truth boxes, output pixels, continuous coordinates.
            sizes: (N, 2) height and width of each object's image, when profiles from different
                images are padded with zeros to a common (H, W). Default: (H, W) for all.

        Returns:
            the mean over the edges within reach (0, attached, if there is none), and the number
            of edges within reach as a 0-dim int64 tensor (of 4 N).
        """
        first = (gt_boxes[:, :2] - 0.5).ceil().long()
        last = (gt_boxes[:, 2:] - 0.5).ceil().long() - 1
        true_edge = torch.cat([first, last], dim=1).t().flatten()
        edges = self._edges(column_maxima, row_maxima, boxes, sizes)
        # Where the prior does not reach the image, the denominator of Eq. 3 is 0.
        product = self._log_product(edges).masked_fill(~edges.reached[:, None], 0)
        target = (true_edge - edges.origin) * edges.direction
        index = target.clamp(0, product.shape[1] - 1)[:, None]
        reached = edges.log_prior.gather(1, index)[:, 0] > -torch.inf
        reached = reached & (target == index[:, 0])
        log_probability = product.log_softmax(1).gather(1, index)[:, 0]
        return -log_probability[reached].sum() / reached.sum().clamp(min=1), reached.sum()

    def posteriors(
        self, column_maxima: Tensor, row_maxima: Tensor, boxes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """P(X = i | M') of the four edges as Eq. 3 is written, for every pixel of the image.

        :meth:`forward` and :meth:`loss` compute the same numbers, but only where the prior is not
        0: around each edge rather than over the whole image.

        Args: as in :meth:`forward`.

        Returns:
            left (N, W), top (N, H), right (N, W), bottom (N, H): rows sum to 1, or to 0 where the
            prior does not reach the image.
        """
        x1, y1, x2, y2 = boxes.unbind(1)
        sigma_x = (self.gamma * (x2 - x1)).clamp(min=self.min_sigma)
        sigma_y = (self.gamma * (y2 - y1)).clamp(min=self.min_sigma)
        rise, fall = self.weight, self.weight.flip(-1)
        return (
            self._posterior(column_maxima, rise, x1, sigma_x),
            self._posterior(row_maxima, rise, y1, sigma_y),
            self._posterior(column_maxima, fall, x2 - 1, sigma_x),
            self._posterior(row_maxima, fall, y2 - 1, sigma_y),
        )

    def _posterior(self, profile: Tensor, kernel: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
        product = self.prior(mu, sigma, profile.shape[1]) * self.likelihood(profile, kernel)
        total = product.sum(1, keepdim=True)
        return torch.where(total > 0, product / total.clamp(min=1e-30), product.new_zeros(()))

    def likelihood(self, profile: Tensor, kernel: Tensor) -> Tensor:
        """P(M' | X = i) (Eq. 4, 5) for every pixel i: (N, L) -> (N, L). Outside the image m = 0."""
        return self._logits(F.pad(profile, (self.radius, self.radius)), kernel).sigmoid()

    @staticmethod
    def prior(mu: Tensor, sigma: Tensor, length: int) -> Tensor:
        """P(X = i) up to its factor alpha, which Eq. 3 cancels (Eq. 6): (N,), (N,) -> (N, length).

        mu and sigma are in pixel indices; 0 beyond 3.29 sigma.
        """
        index = torch.arange(length, device=mu.device, dtype=mu.dtype)
        gaussian = torch.exp(-0.5 * ((index - mu[:, None]) / sigma[:, None]) ** 2)
        return gaussian.masked_fill(gaussian < PRIOR_CUT, 0)

    def _logits(self, padded: Tensor, kernel: Tensor) -> Tensor:
        """b + sum_k w_k m_{i+k}: (N, L + 2s) -> (N, L)."""
        # Tap by tap rather than by conv1d, which autocast would compute in half precision.
        taps = padded.unfold(1, padded.shape[1] - 2 * self.radius, 1)  # (N, 2s + 1, L)
        return self.bias + sum(w * taps[:, k] for k, w in enumerate(kernel.flatten()))

    def _edges(
        self, column_maxima: Tensor, row_maxima: Tensor, boxes: Tensor, sizes: Tensor | None = None
    ) -> _Edges:
        """The surroundings of the left, top, right and bottom edges, 4N in this order."""
        (n, width), height = column_maxima.shape, row_maxima.shape[1]
        sides = (boxes[:, 2:] - boxes[:, :2]).t().flatten()
        sigma = (self.gamma * sides).clamp(min=self.min_sigma).repeat(2)
        mu = torch.cat([boxes[:, :2], boxes[:, 2:] - 1], dim=1).t().flatten()
        direction = torch.tensor([[1], [1], [-1], [-1]], device=boxes.device)
        direction = direction.expand(4, n).flatten()
        # Columns and rows side by side, so that one look-up serves all edges.
        profiles = torch.cat([column_maxima, row_maxima], dim=1)
        if sizes is None:
            sizes = torch.tensor([[height, width]], device=boxes.device).expand(n, 2)
        length = sizes.flip(1).t().flatten().repeat(2)
        start = torch.arange(n, device=boxes.device) * (width + height)
        start = torch.cat([start, start + width]).repeat(2)

        reach = self._reach(sigma, max(height, width))
        step = torch.arange(-self.radius, 2 * reach + 1 + self.radius, device=boxes.device)
        origin = mu.round().long() - direction * reach
        pixel = origin[:, None] + direction[:, None] * step
        inside = (pixel >= 0) & (pixel < length[:, None])
        index = torch.where(inside, pixel, 0) + start[:, None]
        profile = torch.where(inside, profiles.flatten()[index], 0)

        window = slice(self.radius, len(step) - self.radius)
        log_prior = -0.5 * ((pixel[:, window] - mu[:, None]) / sigma[:, None]) ** 2
        outside = (log_prior < math.log(PRIOR_CUT)) | ~inside[:, window]
        return _Edges(profile, log_prior.masked_fill(outside, -torch.inf), origin, direction)

    def _reach(self, sigma: Tensor, longest: int) -> int:
        """Pixels to either side of an edge within which all priors end.

        No box is larger than the image, which gives a bound; more than necessary only costs time.
        So the largest sigma is not worth waiting for where that would stop a GPU, or where a size
        that depends on values cannot be traced.
        """
        bound = max(self.min_sigma, self.gamma * longest)
        if sigma.device.type == "cpu" and not torch.compiler.is_compiling() and sigma.numel():
            bound = min(bound, float(sigma.max()))
        return math.ceil(PRIOR_REACH * bound) + 1

    def _log_product(self, edges: _Edges) -> Tensor:
        """log P(X = i) P(M' | X = i) (4N, L), up to the factor alpha."""
        return edges.log_prior + F.logsigmoid(self._logits(edges.profile, self.weight))

    def _read_out(self, log_product: Tensor) -> Tensor:
        """Position in the window (M,), a whole number for "argmax"."""
        mode = log_product.argmax(1, keepdim=True)
        if self.readout == "argmax":
            return mode[:, 0]
        distance = torch.arange(-self.radius, self.radius + 1, device=mode.device)
        place = mode + distance
        inside = (place >= 0) & (place < log_product.shape[1])
        near = log_product.gather(1, place.clamp(0, log_product.shape[1] - 1))
        weight = near.masked_fill(~inside, -torch.inf).softmax(1)
        return mode[:, 0] + (weight * distance).sum(1)


class _Edges(NamedTuple):
    """M edges with their surroundings, mirrored where necessary so that the object lies behind.

    Position j of a window of L pixels is pixel ``origin + direction * j`` of the image.
    """

    profile: Tensor  # (M, L + 2s): s more pixels on either side; 0 outside the image
    log_prior: Tensor  # (M, L): -inf where the prior is 0
    origin: Tensor  # (M,) int64
    direction: Tensor  # (M,) int64: 1 for left and top, -1 for right and bottom edges

    @property
    def reached(self) -> Tensor:
        """(M,) whether the prior reaches the image at all."""
        return (self.log_prior > -torch.inf).any(1)


def has_mask(column_maxima: Tensor, threshold: float) -> Tensor:
    """Whether any pixel of an object is above threshold: (N, W) -> (N,)."""
    return (column_maxima > threshold).any(1)


def _where_proper(refined: Tensor, boxes: Tensor) -> Tensor:
    """The refined sides of boxes (N, 4), but the regressed ones where either has no extent."""
    proper = (refined[:, :2] < refined[:, 2:]) & (boxes[:, :2] < boxes[:, 2:])
    return torch.where(proper.repeat(1, 2), refined, boxes)


def _refuse_other_radius(
    module: MBRM, state_dict: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Detectron2's checkpointer drops a kernel of another length, with a warning, before this.

    The model would then refine with the bias of one kernel and the weights of another.
    """
    weight, bias = state_dict.get(prefix + "weight"), state_dict.get(prefix + "bias")
    if bias is not None and (weight is None or weight.shape != module.weight.shape):
        found = "" if weight is None else f" ({weight.numel()} weights)"
        raise ValueError(
            f"the MBRM kernel of the checkpoint{found} is not one of radius {module.radius} "
            f"({2 * module.radius + 1} weights). Set MODEL.RDSNET.MBRM.RADIUS to the radius that "
            "it was fitted with (it is in the config.yaml that 'rdsnet fit-mbrm' writes beside "
            "the checkpoint), or fit a kernel of this radius with 'rdsnet fit-mbrm'."
        )
