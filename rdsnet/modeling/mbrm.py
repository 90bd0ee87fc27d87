"""Mask based boundary refinement (MBRM; paper, Sec. 3.3): the pixels give back to the boxes.

The position X of a box edge is a discrete random variable over the pixel columns (left, right) or
rows (top, bottom) of the output image. With Bayes' rule,

    P(X = i | M') = P(X = i) P(M' | X = i) / sum_t P(X = t) P(M' | X = t)                    (Eq. 3)

and the refined edge is its argmax (Eq. 2). The likelihood looks at the *profile* m of the mask near
i alone: the column maxima of its foreground probability for the left and right edges, the row
maxima for the top and bottom edges (Eq. 4, 5):

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

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rdsnet.ops import edge_log_posteriors, refine_edges
from rdsnet.ops.reference.edges import PRIOR_CUT, edge_logits

# The kernel of the authors' public code, for s = 4: it looks for a rise of the profile.
PUBLISHED_KERNEL = (
    (-0.2968, -0.2892, -0.2635, -3.2545, -0.1874, 2.5041, 0.0196, 0.0651, 0.0917),
    -1.9536,
)

READOUTS = ("argmax", "expectation")


class MBRM(nn.Module):
    """Refine box edges from the column and row maxima of masks.

    Args:
        gamma: sigma of the prior as a share of the box's width (height). Paper: 0.05.
        radius: s, reach of an edge's influence in pixels. Paper: 4.
        min_sigma: smallest sigma, pixels. Without it small boxes would have no neighbouring pixel
            to move to.
        empty_threshold: an object whose maxima never rise above this probability has an empty mask
            and keeps its regressed box. Use the mask threshold.
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
        return refine_edges(
            column_maxima,
            row_maxima,
            boxes,
            self.weight,
            self.bias,
            gamma=self.gamma,
            min_sigma=self.min_sigma,
            empty_threshold=self.empty_threshold,
            readout=self.readout,
        )

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
            sizes: (N, 2) height and width of each object's image, when maxima from different
                images are padded with zeros to a common (H, W). Default: (H, W) for all.

        Returns:
            the mean over the edges within reach (0, attached, if there is none), and the number
            of edges within reach as a 0-dim int64 tensor (of 4 N).
        """
        first = (gt_boxes[:, :2] - 0.5).ceil().long()
        last = (gt_boxes[:, 2:] - 0.5).ceil().long() - 1
        log_probability, reached = edge_log_posteriors(
            column_maxima,
            row_maxima,
            boxes,
            torch.cat([first, last], dim=1),
            self.weight,
            self.bias,
            gamma=self.gamma,
            min_sigma=self.min_sigma,
            sizes=sizes,
        )
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
        left, top, right, bottom = self.edge_pixels(boxes).unbind(1)
        rise, fall = self.weight, self.weight.flip(-1)
        return (
            self._posterior(column_maxima, rise, left, sigma_x),
            self._posterior(row_maxima, rise, top, sigma_y),
            self._posterior(column_maxima, fall, right, sigma_x),
            self._posterior(row_maxima, fall, bottom, sigma_y),
        )

    def edge_pixels(self, boxes: Tensor) -> Tensor:
        """mu of the left, top, right and bottom edges of boxes (N, 4), in pixel indices: (N, 4)."""
        return boxes - boxes.new_tensor([0, 0, 1, 1])

    def _posterior(self, profile: Tensor, kernel: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
        product = self.prior(mu, sigma, profile.shape[1]) * self.likelihood(profile, kernel)
        total = product.sum(1, keepdim=True)
        return torch.where(total > 0, product / total.clamp(min=1e-30), product.new_zeros(()))

    def likelihood(self, profile: Tensor, kernel: Tensor) -> Tensor:
        """P(M' | X = i) (Eq. 4, 5) for every pixel i: (N, L) -> (N, L). Outside the image m = 0."""
        padded = F.pad(profile, (self.radius, self.radius))
        return edge_logits(padded, kernel, self.bias).sigmoid()

    @staticmethod
    def prior(mu: Tensor, sigma: Tensor, length: int) -> Tensor:
        """P(X = i) up to its factor alpha, which Eq. 3 cancels (Eq. 6): (N,), (N,) -> (N, length).

        mu and sigma are in pixel indices; 0 beyond 3.29 sigma.
        """
        index = torch.arange(length, device=mu.device, dtype=mu.dtype)
        gaussian = torch.exp(-0.5 * ((index - mu[:, None]) / sigma[:, None]) ** 2)
        return gaussian.masked_fill(gaussian < PRIOR_CUT, 0)


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
