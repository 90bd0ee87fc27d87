"""Which pass over a large image an object belongs to, by its size.

A pass sees objects whole up to the size that its tiles overlap by. Larger ones belong to the next
pass, at half the resolution, whose tiles see four times as much; the fine pass has cut them into
pieces, or, where they happened to lie well, has seen them whole. Only what is about as large as the
overlap or larger, or lies at the border of what a tile sees, is compared between passes: it waits
until all are done.
"""

from __future__ import annotations

from collections.abc import Iterator

import pycocotools.mask as mask_util
import torch
from detectron2.structures import Instances

from rdsnet.prediction.tiled_pass import CUT, WHOLE, TiledPass
from rdsnet.prediction.tiles import SAME, overlapping

# Two passes do not measure a size alike: from this share of the limit on, objects of the fine pass
# wait, and those of the coarse one are taken.
_WAITING, _TAKEN = 0.75, 0.9
# The least score of a piece that a coarser pass is made for. Less certain ones are everywhere where
# scores near zero are asked for, as evaluations do; they are pieces of nothing.
_LEAST_SCORE = 0.2
# A piece belongs to a larger object that holds more than this share of its pixels.
_HELD = 0.5


class SizeRanges:
    """Takes one pass after the other, each at half the resolution of the one before.

    Attributes:
        has_cut: whether the last pass has cut an object that is worth another pass.
    """

    def __init__(self) -> None:
        self._waiting: list[Instances] = []
        self._pieces: list[torch.Tensor] = []
        self._least, self._number = 0.0, 0
        self.has_cut = False

    @property
    def pieces(self) -> torch.Tensor:
        """Boxes (N, 4) of what passes have cut, or may have: where another one has to look."""
        return torch.cat(self._pieces)

    def kept(self, run: TiledPass) -> Iterator[Instances]:
        """The objects of a pass that no other pass can see better; the rest waits.

        They have another field, ``pass_number`` (N,) int64, from 0.
        """
        self.has_cut = False
        for part in run:
            part.pass_number = torch.full((len(part),), self._number)
            sizes = longer_sides(part)
            part, sizes = part[sizes >= self._least], sizes[sizes >= self._least]
            waits = (sizes >= _WAITING * run.limit) | (part.cut > WHOLE) | (part.pass_number > 0)
            certain = part.scores >= _LEAST_SCORE
            self.has_cut |= bool(((part.cut == CUT) & certain).any())
            self._pieces.append(part.pred_boxes.tensor[(part.cut > WHOLE) & certain])
            if waits.any():
                self._waiting.append(part[waits])
            yield part[~waits]
        self._least, self._number = _TAKEN * run.limit, self._number + 1

    def decided(self) -> Iterator[Instances]:
        """What has waited, every object once."""
        if self._waiting:
            waiting = Instances.cat(self._waiting)
            self._waiting = []
            yield waiting[once(waiting)]


def longer_sides(found: Instances) -> torch.Tensor:
    """(N,) of the boxes, pixels."""
    boxes = found.pred_boxes.tensor
    return (boxes[:, 2:] - boxes[:, :2]).amax(1)


def once(found: Instances) -> torch.Tensor:
    """Which objects of several passes stay, (N,) bool.

    A coarser pass is believed where it explains a piece: of its objects, those stay that hold most
    of something that a finer pass has cut, of their class; else a clump would be an object as soon
    as something was cut elsewhere. Of two passes that have seen one object whole, the finer one's
    stays. What is cut goes where another tile, or a coarser pass, has found what holds most of it.
    """
    passes, cut = found.pass_number.tolist(), (found.cut > WHOLE).tolist()
    classes = found.pred_classes.tolist()
    # Of two, the one that may go first: what is cut, what another pass has seen better.
    pairs = [
        (i, j) if (passes[i], not cut[i]) < (passes[j], not cut[j]) else (j, i)
        for i, j in overlapping(found.pred_boxes.tensor)
        if classes[i] == classes[j] and (passes[i], cut[i]) != (passes[j], cut[j])
    ]
    rles: dict[int, dict] = {}
    for pair in pairs:
        for n in pair:
            rles[n] = rles.get(n) or found.pred_masks[n].rle()[0]
    # Fine ones first: what one of them has decided holds for all coarser ones.
    pairs.sort(key=lambda pair: (passes[pair[0]], pair))
    holding = [pair for pair in pairs if cut[pair[0]] and _held(*map(rles.get, pair)) > _HELD]
    stays = torch.tensor([number == 0 for number in passes], dtype=torch.bool)
    for fine, coarse in holding:
        stays[coarse] |= stays[fine]
    for fine, coarse in pairs:
        both = not cut[fine] and not cut[coarse]
        if both and stays[fine] and stays[coarse] and _iou(rles[fine], rles[coarse]) > SAME:
            stays[coarse] = False
    # Coarse ones first: a piece of a piece goes with what holds both.
    for fine, coarse in sorted(holding, key=lambda pair: (-passes[pair[1]], pair)):
        stays[fine] &= not stays[coarse]
    return stays


def _iou(one: dict, other: dict) -> float:
    return float(mask_util.iou([one], [other], [0])[0, 0])


def _held(piece: dict, whole: dict) -> float:
    """The share of the piece's pixels that are the whole's, too."""
    return float(mask_util.iou([piece], [whole], [1])[0, 0])
