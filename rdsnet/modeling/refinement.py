"""What refines boxes, by ``MODEL.RDSNET.MBRM.METHOD``: MBRM, or one of the baselines of Table 4."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rdsnet.modeling.mbrm import MBRM

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_METHODS = ("mbrm", "direct", "none")


class EnclosingBoxes(nn.Module):
    """The baseline "direct" (Sec. 3.3, Table 4): the minimum enclosing rectangle of the mask.

    Args:
        threshold: foreground probability above which a pixel belongs to the mask.
    """

    def __init__(self, threshold: float = 0.4) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, column_maxima: Tensor, row_maxima: Tensor, boxes: Tensor) -> Tensor:
        """Arguments and result as of :meth:`MBRM.forward`; empty masks keep the regressed box.

        A column has a pixel of the mask exactly when its largest probability is above threshold.
        """
        columns, rows = column_maxima > self.threshold, row_maxima > self.threshold
        (left, right), (top, bottom) = self._extent(columns), self._extent(rows)
        enclosing = torch.stack([left, top, right, bottom], dim=1).to(boxes.dtype)
        return torch.where(columns.any(1)[:, None], enclosing, boxes)

    @staticmethod
    def _extent(inside: Tensor) -> tuple[Tensor, Tensor]:
        """First true index and the one after the last (N,) of (N, L) bool."""
        inside = inside.byte()
        return inside.argmax(1), inside.shape[1] - inside.flip(1).argmax(1)


def build_refinement(cfg: CfgNode) -> MBRM | EnclosingBoxes | None:
    """What ``MODEL.RDSNET.MBRM`` asks for; None leaves boxes as regressed.

    Raises:
        ValueError: for an unknown METHOD or READOUT, or a GAMMA, MIN_SIGMA or RADIUS that is not
            positive.
    """
    mbrm, threshold = cfg.MODEL.RDSNET.MBRM, cfg.MODEL.RDSNET.MASK_THRESHOLD
    if mbrm.METHOD not in _METHODS:
        raise ValueError(f"MODEL.RDSNET.MBRM.METHOD must be one of {_METHODS}, got '{mbrm.METHOD}'")
    if not mbrm.ENABLED or mbrm.METHOD == "none":
        return None
    if mbrm.METHOD == "direct":
        return EnclosingBoxes(threshold)
    return MBRM(
        mbrm.GAMMA,
        mbrm.RADIUS,
        min_sigma=mbrm.MIN_SIGMA,
        empty_threshold=threshold,
        readout=mbrm.READOUT,
    )
