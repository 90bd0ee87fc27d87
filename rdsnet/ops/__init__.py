"""Batched correlation of objects with pixels, and what follows it.

============================  ====================================================================
``correlate``                 logits of every object at every pixel of its own window
``mask_ohem_loss``            cross-entropy inside the windows, with the hardest background pixels
``mask_ohem_loss_at_pixels``  the same at pixels finer than the grid, where masks are exact
``object_losses``             either from ground truth at the resolution of the images
``mask_targets``              ground-truth masks on the grid of the pixel representations
``assemble_masks``            masks and their row and column maxima at the output resolution
``resize_taps``               the linear map between grid and output, per axis
``expanded_windows``          the pixels that an object looks at, from its box
``refine_edges``              boxes with their edges where the maxima of the masks say (MBRM)
``edge_log_posteriors``       how probable given edges are, for fitting MBRM
============================  ====================================================================

Each is one function (:mod:`rdsnet.ops.operators`, :mod:`rdsnet.ops.losses`) that checks its
arguments and hands over to the compiled kernel, where there is one that serves them
(:mod:`rdsnet.ops.compiled`), else to the definition in PyTorch (:mod:`rdsnet.ops.reference`);
``active_path()`` says whether there are kernels. All need torch alone.

Read the definitions first: the kernels compute the same. Then ``operators`` and ``losses``, with
``arguments`` (what is checked), ``taps`` and ``masks`` (what is taken and given); ``compiled`` and
``registration`` (the kernels, as PyTorch knows them); ``self_check`` (do they agree, on this
machine?); ``sizes`` (of images that export does not know).

Windows are x1, y1, x2, y2 in pixels of the map, end exclusive; what lies outside the map is cut
off, and an empty or reversed window has no pixels. The channels of ``phi`` (N, 2, D) are
background, foreground.
"""

from rdsnet.ops import compiled
from rdsnet.ops.compiled import active_path, exporting
from rdsnet.ops.losses import (
    mask_ohem_loss,
    mask_ohem_loss_at_pixels,
    mask_targets,
    object_losses,
)
from rdsnet.ops.masks import CompactMasks
from rdsnet.ops.operators import (
    assemble_masks,
    correlate,
    edge_log_posteriors,
    expanded_windows,
    refine_edges,
    resize_taps,
)
from rdsnet.ops.sizes import as_vector
from rdsnet.ops.taps import Taps

__all__ = [
    "CompactMasks",
    "Taps",
    "active_path",
    "as_vector",
    "assemble_masks",
    "correlate",
    "edge_log_posteriors",
    "expanded_windows",
    "exporting",
    "mask_ohem_loss",
    "mask_ohem_loss_at_pixels",
    "mask_targets",
    "object_losses",
    "refine_edges",
    "resize_taps",
]

compiled.load()
