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
bottom edges are the mirror image: the same kernel, reversed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The kernel of the authors' public code, for s = 4: it looks for a rise of the profile.
PUBLISHED_KERNEL = (
    (-0.2968, -0.2892, -0.2635, -3.2545, -0.1874, 2.5041, 0.0196, 0.0651, 0.0917),
    -1.9536,
)

# exp(-z^2 / 2) below this is 0: the prior ends 3.29 standard deviations from the regressed edge.
PRIOR_CUT = 0.0044


class MBRM(nn.Module):
    """Refine box edges from mask profiles.

    Args:
        gamma: sigma of the prior as a share of the box's width (height). Paper: 0.05.
        radius: s, reach of an edge's influence in pixels. Paper: 4.
        min_sigma: smallest sigma, pixels. Without it small boxes would have no neighbouring pixel
            to move to.
        empty_threshold: an object whose profile never rises above this probability has an empty
            mask and keeps its regressed box. Use the mask threshold.

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
    ) -> None:
        super().__init__()
        if gamma <= 0 or min_sigma <= 0:
            raise ValueError(
                f"MBRM: gamma and min_sigma must be positive, got {gamma} and {min_sigma}; "
                "to leave boxes as regressed set MODEL.RDSNET.MBRM.ENABLED False"
            )
        if radius < 1:
            raise ValueError(f"MBRM: radius must be at least 1 pixel, got {radius}")
        self.gamma, self.radius = gamma, radius
        self.min_sigma, self.empty_threshold = min_sigma, empty_threshold
        self.weight = nn.Parameter(torch.zeros(1, 1, 2 * radius + 1))
        self.bias = nn.Parameter(torch.zeros(1))
        self.reset_parameters()

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
            empty masks, edges too far outside the image for the prior to reach it, edges that were
            reversed, and edges that would leave the box without extent.
        """
        left, top, right, bottom = self.posteriors(column_maxima, row_maxima, boxes)
        edges = torch.stack(
            [left.argmax(1), top.argmax(1), right.argmax(1) + 1, bottom.argmax(1) + 1], dim=1
        ).to(boxes.dtype)
        known = torch.stack([p.sum(1) > 0 for p in (left, top, right, bottom)], dim=1)
        if len(boxes):
            known &= (column_maxima.amax(1) > self.empty_threshold)[:, None]
        refined = torch.where(known, edges, boxes)
        proper = (refined[:, :2] < refined[:, 2:]) & (boxes[:, :2] < boxes[:, 2:])
        return torch.where(proper.repeat(1, 2), refined, boxes)

    def posteriors(
        self, column_maxima: Tensor, row_maxima: Tensor, boxes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """P(X = i | M') of the four edges (Eq. 3).

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

    def loss(
        self, column_maxima: Tensor, row_maxima: Tensor, boxes: Tensor, gt_boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """L_refine (Sec. 3.3): cross-entropy of the posteriors against the one-hot true edges.

        The true edge in pixel indices is the first (left, top) or last (right, bottom) pixel whose
        centre lies inside the ground-truth box. Where the prior is 0 at that pixel, because the
        regressed edge is more than 3.29 sigma off or the edge lies outside the image, no kernel
        can find it: such edges are left out of the loss, and counted.

        Args:
            column_maxima, row_maxima, boxes: as in :meth:`forward`.
            gt_boxes: (N, 4) ground-truth boxes, output pixels, continuous coordinates.

        Returns:
            the mean over the edges within reach (0, attached, if there is none), and the number
            of edges within reach as a 0-dim int64 tensor (of 4 N).
        """
        first = (gt_boxes[:, :2] - 0.5).ceil().long()
        last = (gt_boxes[:, 2:] - 0.5).ceil().long() - 1
        edges = torch.cat([first, last], dim=1).unbind(1)
        posteriors = self.posteriors(column_maxima, row_maxima, boxes)
        found = []
        for posterior, edge in zip(posteriors, edges):
            inside = (edge >= 0) & (edge < posterior.shape[1])
            index = edge.clamp(0, posterior.shape[1] - 1)[:, None]
            found.append(posterior.gather(1, index)[:, 0] * inside)
        probability = torch.cat(found)
        reached = probability > 0
        return -probability[reached].log().sum() / reached.sum().clamp(min=1), reached.sum()

    def _posterior(self, profile: Tensor, kernel: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
        product = self.prior(mu, sigma, profile.shape[1]) * self.likelihood(profile, kernel)
        total = product.sum(1, keepdim=True)
        return torch.where(total > 0, product / total.clamp(min=1e-30), product.new_zeros(()))

    def likelihood(self, profile: Tensor, kernel: Tensor) -> Tensor:
        """P(M' | X = i) (Eq. 4, 5) for every pixel i: (N, L) -> (N, L). Outside the image m = 0."""
        logits = F.conv1d(profile[:, None], kernel, self.bias, padding=self.radius)
        return logits[:, 0].sigmoid()

    @staticmethod
    def prior(mu: Tensor, sigma: Tensor, length: int) -> Tensor:
        """P(X = i) up to its factor alpha, which Eq. 3 cancels (Eq. 6): (N,), (N,) -> (N, length).

        mu and sigma are in pixel indices; 0 beyond 3.29 sigma.
        """
        index = torch.arange(length, device=mu.device, dtype=mu.dtype)
        gaussian = torch.exp(-0.5 * ((index - mu[:, None]) / sigma[:, None]) ** 2)
        return torch.where(gaussian < PRIOR_CUT, gaussian.new_zeros(()), gaussian)
