"""``--tile auto``: whether an image is too large to be seen at once, and in which tiles it is seen.

Where a checkpoint tells how large the objects of its training were, that decides: an image is too
large when objects like those would be shrunk below what the model has learnt to see.
"""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode

from rdsnet.data.object_sizes import ObjectSizes, scale_at_once
from rdsnet.prediction.large import OVERLAP, TILE

# Where nobody knows the sizes of objects, an image that is shrunk to less than this share is too
# large to be seen at once.
_LEAST_SCALE = 0.5
# A model is taken to see objects of this share of the size below which 5 % of those of its training
# were, and an image to be too large when more than a quarter of the objects would be smaller. Sizes
# that spread as cells do (from a half to double) then come to about _LEAST_SCALE of the training's.
_SEEN, _TOLERATED = 0.7, 0.25
# Tiles are resized as the training's images were, unless that is nearly nothing; a tile of four
# times the side is the largest that is read.
_WORTH_RESIZING, _SMALLEST_SCALE, _LARGEST_SCALE = 1.1, 0.25, 4.0
# Tiles of objects that are known to be small overlap by half as much as others, pixels of the
# network's input, which spares an eighth of the time.
_LEAST_OVERLAP = OVERLAP // 2


@dataclass(frozen=True)
class TileChoice:
    """How an image is seen.

    Attributes:
        side: of the tiles, pixels of the image; None: at once.
        overlap: of neighbouring tiles, pixels of the image.
        scale: by which tiles are resized for the network.
        why: for people, after "in tiles of ... px" or in its place.
    """

    side: int | None
    overlap: int = OVERLAP
    scale: float = 1.0
    why: str = ""


def chosen_tiles(
    cfg: CfgNode, sizes: ObjectSizes | None, size: tuple[int, int], overlap: int | None = None
) -> TileChoice:
    """Decide for an image.

    At once, an image is resized as the config says. It is too large for that where the network's
    input would be larger than a tile. Else the sizes of the training's objects decide, or, where
    they are not known, whether it would be shrunk to less than half its size.

    Args:
        cfg: ``INPUT.MIN_SIZE_TEST`` and ``MAX_SIZE_TEST``.
        sizes: of the training's objects; None: nobody knows.
        size: (H, W) of the image.
        overlap: as the user wants it; None: to be chosen, twice the 95th percentile of the sizes,
            so that long objects fit, too; 128 pixels of the network's input at least, and half of a
            tile at most.
    """
    scale = scale_at_once(cfg, size)
    too_many_pixels = size[0] * size[1] * scale**2 > TILE**2
    if sizes is None:
        if too_many_pixels or scale < _LEAST_SCALE:
            return TileChoice(TILE, overlap or OVERLAP, 1.0, "since it is too large at once")
        return TileChoice(None, why="small enough to be seen at once")
    least = _SEEN * sizes.in_input[0]
    lost = sizes.share_below(least / scale)
    low, _, high = sizes.in_images
    learnt = f"of objects as large as those it was trained on ({low:.3g} to {high:.3g} px)"
    if lost <= _TOLERATED and not too_many_pixels:
        return TileChoice(
            None, why=f"small enough to be seen at once: most {learnt} stay above {least:.2g} px"
        )
    if lost > _TOLERATED:
        why = f"since at once {lost:.0%} {learnt} would shrink below {least:.2g} px"
    else:
        why = "since it has too many pixels to be seen at once"
    of_tiles = min(max(sizes.scale, _SMALLEST_SCALE), _LARGEST_SCALE)
    if 1 / _WORTH_RESIZING < of_tiles < _WORTH_RESIZING:
        of_tiles = 1.0
    side = round(TILE / of_tiles)
    chosen = overlap or min(max(round(_LEAST_OVERLAP / of_tiles), round(2 * high)), side // 2)
    return TileChoice(side, chosen, of_tiles, why)


def spelled(choice: TileChoice) -> str:
    """The choice in words."""
    if choice.side is None:
        return choice.why
    resized = "" if choice.scale == 1 else f", resized by {choice.scale:.3g}"
    tiles = f"in tiles of {choice.side} px that overlap by {choice.overlap} px{resized}"
    return f"{tiles}, {choice.why}" if choice.why else tiles
