"""The authors' MBRM: inclusive pixels in and out, no exceptions for empty masks."""

from __future__ import annotations

import torch
from torch import Tensor

from rdsnet.modeling import MBRM


class InclusiveMBRM(MBRM):
    """MBRM on inclusive boxes, as the authors compute it.

    Likelihood, prior and read-out are the core's. What differs:

    - sigma = max(1, gamma x (x2 - x1)) with the inclusive x2: 1 px narrower sides;
    - the argmax always replaces the regressed edge: with an empty mask the prior decides, an edge
      that the prior does not reach becomes 0, and a left edge may end up right of the right one.
    """

    def forward(self, column_maxima: Tensor, row_maxima: Tensor, boxes: Tensor) -> Tensor:
        """Refined boxes: indices of the first and last pixels inside.

        Args:
            column_maxima: (N, W) largest foreground probability of each pixel column.
            row_maxima: (N, H) largest foreground probability of each pixel row.
            boxes: (N, 4) inclusive boxes, output pixels.

        Returns:
            (N, 4) inclusive boxes with integer values.
        """
        posteriors = self.posteriors(column_maxima, row_maxima, boxes)
        edges = [posterior.nan_to_num(0).argmax(dim=1) for posterior in posteriors]
        return torch.stack(edges, dim=1).to(boxes.dtype)

    def edge_pixels(self, boxes: Tensor) -> Tensor:
        """Inclusive boxes are pixel indices."""
        return boxes

    def _posterior(self, profile: Tensor, kernel: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
        """As in the base class, but where the prior does not reach the image 0 / 0 = NaN."""
        product = self.prior(mu, sigma, profile.shape[1]) * self.likelihood(profile, kernel)
        return product / product.sum(dim=1, keepdim=True)
