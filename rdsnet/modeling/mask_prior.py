"""Where in its box an object probably is: an ellipse that the masks start from.

Representations alone say what an object looks like, not where it is; of two that look alike, each
mask holds both. Here a mask's logit gets a second part beside the correlation of phi and Psi: a
quadratic function of where a pixel lies in the object's box (CondInst, Tian et al. 2020, gives its
masks such relative coordinates),

    q . (1, u, v, u^2, v^2, u v),   u = (x - cx) / (w / 2),  v = (y - cy) / (h / 2),

with q = the learned mean, at first 2 (1 - u^2 - v^2), plus six numbers of the object itself. As it
is a polynomial in x and y too, it is the dot product of six numbers of the object and the six
channels 1, x, y, x^2, y^2, x y of the grid: appended to phi and Psi, they leave correlation,
cropping, losses and export as they are. This is no part of RDSNet's paper.

Shapes: N objects, D = 32, (h, w) grid of Psi. Coordinates are cells of the grid, continuous.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

MASK_PRIORS = ("none", "ellipse")
# The six numbers of an object are three in each of the two rows of phi.
_PER_ROW = 3
_LEAST_SIDE = 0.25  # cells
_FURTHEST = 0.2


def object_dim(cfg: CfgNode) -> int:
    """Numbers per row that an object's representation has in the head: D, and the prior's."""
    return cfg.MODEL.RDSNET.REPRESENTATION_DIM + prior_numbers(build_mask_prior(cfg))


def prior_numbers(prior: EllipsePrior | None) -> int:
    """Numbers that a prior adds to each row of phi in the head."""
    return 0 if prior is None else _PER_ROW


def build_mask_prior(cfg: CfgNode) -> EllipsePrior | None:
    """What ``MODEL.RDSNET.MASK_PRIOR`` names.

    Raises:
        ValueError: there is no such prior.
    """
    name = cfg.MODEL.RDSNET.MASK_PRIOR
    if name not in MASK_PRIORS:
        raise ValueError(f"MODEL.RDSNET.MASK_PRIOR must be one of {MASK_PRIORS}, got '{name}'")
    return EllipsePrior() if name == "ellipse" else None


def near(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """What the prior is given in training: the boxes that anchors predict, (N, 4), as at inference,
    with errors to learn from, but every edge no further from the object's own than ``_FURTHEST`` of
    its side. The quadratic function of a box that is far off would have no bounds.
    """
    room = _FURTHEST * (gt_boxes[:, 2:] - gt_boxes[:, :2]).repeat(1, 2)
    return boxes.clamp(gt_boxes - room, gt_boxes + room)


class EllipsePrior(nn.Module):
    """Appends the prior to representations; its parameter is the mean of q, (6,)."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([2.0, 0.0, 0.0, -2.0, -2.0, 0.0]))

    def of_objects(self, phi: Tensor, boxes: Tensor) -> Tensor:
        """(N, 2, D + 3) of the head and boxes (N, 4) in cells -> (N, 2, D + 6) float32."""
        q = phi[:, :, -_PER_ROW:].flatten(1).double() + self.mean.double()
        x1, y1, x2, y2 = boxes.double().unbind(1)
        cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
        a, b = (2 / (end - start).clamp(min=_LEAST_SIDE) for start, end in ((x1, x2), (y1, y2)))
        # u = a x + s, v = b y + t
        s, t = -a * cx, -b * cy
        one, u, v, uu, vv, uv = q.unbind(1)
        foreground = torch.stack(
            [
                one + u * s + v * t + uu * s * s + vv * t * t + uv * s * t,
                a * (u + 2 * uu * s + uv * t),
                b * (v + 2 * vv * t + uv * s),
                uu * a * a,
                vv * b * b,
                uv * a * b,
            ],
            dim=1,
        ).float()
        rows = torch.stack([torch.zeros_like(foreground), foreground], dim=1)
        return torch.cat([phi[:, :, :-_PER_ROW].float(), rows], dim=2)

    def of_pixels(self, psi: Tensor) -> Tensor:
        """(..., D, h, w) -> (..., D + 6, h, w) float32."""
        height, width = psi.shape[-2:]
        x = (torch.arange(width, device=psi.device) + 0.5).expand(height, width)
        y = (torch.arange(height, device=psi.device) + 0.5)[:, None].expand(height, width)
        channels = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y])
        channels = channels.expand(*psi.shape[:-3], *channels.shape)
        return torch.cat([psi.float(), channels], dim=-3)
