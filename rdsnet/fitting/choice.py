"""Which refinement suits a finished model: the width of MBRM's prior, its readout, or none at all.

How much masks know of an edge that regressed boxes do not differs from model to model: gamma is how
far regressed edges are off, and boxes that are derived from masks end at whole pixels, while drawn
ones have fractions. All of it shows on stored profiles, without running the network again.

What is maximised is what box AP sees of a box: the share of COCO's ten IoUs (0.5 to 0.95) that it
reaches, in the mean over the detections that have found an object. The config's own refinement
stays unless another is better beyond chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rdsnet.fitting.profiles import ImageProfiles
from rdsnet.modeling.mbrm import MBRM, READOUTS

GAMMAS = (0.01, 0.02, 0.05, 0.1, 0.2)
# Standard errors of the mean difference by which another refinement must be better.
_BEYOND_CHANCE = 2.0


@dataclass(frozen=True)
class Refinement:
    """MBRM with a gamma and a readout; without gamma, boxes as regressed."""

    gamma: float | None
    readout: str = "argmax"

    def keys(self) -> dict[str, object]:
        """Of ``MODEL.RDSNET.MBRM``."""
        if self.gamma is None:
            return {"METHOD": "none"}
        return {"METHOD": "mbrm", "GAMMA": self.gamma, "READOUT": self.readout}

    def __str__(self) -> str:
        return "none" if self.gamma is None else f"gamma {self.gamma:g}, {self.readout}"


@dataclass(frozen=True)
class Choice:
    """The refinement of a model.

    Attributes:
        best: the chosen one.
        objects: how many have been found.
        quality: of every refinement that was tried, by its text, the share of IoUs that its boxes
            reach, 0..1.
    """

    best: Refinement
    objects: int
    quality: dict[str, float]

    def text(self) -> str:
        shares = {name: 100 * share for name, share in self.quality.items()}
        best = max(shares, key=shares.__getitem__)
        text = (
            f"Refinement '{self.best}': the boxes of {self.objects} objects reach "
            f"{shares[str(self.best)]:.1f} % of the IoUs 0.5 to 0.95, as regressed "
            f"{shares['none']:.1f} %"
        )
        if best != str(self.best):
            text += f" ('{best}' {shares[best]:.1f} %, which may be chance)"
        return text


@torch.no_grad()
def choose_refinement(
    mbrm: MBRM, images: Sequence[ImageProfiles], gammas: Sequence[float] = GAMMAS
) -> Choice:
    """Try every gamma with either readout, and the boxes as regressed.

    Args:
        mbrm: with its kernel; its gamma and readout are the config's own.
        images: validation images; on those that the model was trained on regressed boxes are
            better than elsewhere.

    Raises:
        ValueError: no detection has found an object.
    """
    own = Refinement(mbrm.gamma, mbrm.readout)
    tried = [own, Refinement(None)]
    tried += [Refinement(gamma, readout) for gamma in gammas for readout in READOUTS]
    reached = {refinement: _shares_of_ious(mbrm, images, refinement) for refinement in tried}
    objects = len(reached[own])
    if not objects:
        raise ValueError("no detection has found an object (same class, IoU at least 0.5)")
    means = {refinement: shares.mean().item() for refinement, shares in reached.items()}
    best = max(means, key=means.__getitem__)
    difference = reached[best] - reached[own]
    error = difference.std(correction=0).item() / objects**0.5
    if difference.mean().item() <= _BEYOND_CHANCE * error:
        best = own
    return Choice(best, objects, {str(r): round(mean, 4) for r, mean in means.items()})


def variant(mbrm: MBRM, **changes) -> MBRM:
    """A copy on the CPU with another gamma, readout, ... (arguments of MBRM)."""
    names = ("gamma", "radius", "min_sigma", "empty_threshold", "readout")
    copy = MBRM(**{**{name: getattr(mbrm, name) for name in names}, **changes})
    copy.load_state_dict({name: tensor.cpu() for name, tensor in mbrm.state_dict().items()})
    return copy


def _shares_of_ious(mbrm: MBRM, images: Sequence[ImageProfiles], refinement: Refinement) -> Tensor:
    """(M,) of the M detections that have found an object: the share of ten IoUs they reach."""
    refine = None
    if refinement.gamma is not None:
        refine = variant(mbrm, gamma=refinement.gamma, readout=refinement.readout)
    shares = [torch.zeros(0)]
    for image in images:
        boxes = image.boxes
        if refine is not None:
            boxes = refine(image.column_maxima(), image.row_maxima(), boxes)
        found = ~image.gt_boxes.isnan().any(1)
        iou = _paired_iou(boxes[found], image.gt_boxes[found])
        shares.append((iou[:, None] >= torch.linspace(0.5, 0.95, 10)).float().mean(1))
    return torch.cat(shares)


def _paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoUs (M,) of boxes (M, 4) with others (M, 4), one by one."""
    overlap = torch.minimum(boxes[:, 2:], others[:, 2:]) - torch.maximum(
        boxes[:, :2], others[:, :2]
    )
    overlap = overlap.clamp(min=0).prod(1)
    areas = [(b[:, 2:] - b[:, :2]).clamp(min=0).prod(1) for b in (boxes, others)]
    return overlap / (areas[0] + areas[1] - overlap).clamp(min=1e-9)
