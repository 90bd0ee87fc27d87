"""The definition of the operators in PyTorch: what the compiled kernels must compute.

Softmax over background and foreground is a sigmoid of their difference, so an object meets the
pixels through one vector, ``phi[:, 1] - phi[:, 0]``, and everything here works on the logit
``z = (phi_fg - phi_bg) . psi`` (Eq. 1 of the paper: M_o = softmax(psi * phi), foreground channel =
sigmoid(z)). Nothing is computed outside an object's window.

Shapes: B images, N objects, D representation dimensions, (h, w) grid, (H, W) output.
Functions have the names and arguments that they have in :mod:`rdsnet.ops`, where they are
explained; theirs are checked there. They run when no compiled operator is there. Export, whose
graph has no windows of any size, computes whole maps by the same identities
(rdsnet/export/masks.py).
"""

from rdsnet.ops.reference.assembly import assemble_masks
from rdsnet.ops.reference.correlation import correlate
from rdsnet.ops.reference.edges import edge_log_posteriors, refine_edges
from rdsnet.ops.reference.losses import mask_ohem_loss, mask_ohem_loss_at_pixels
from rdsnet.ops.reference.taps import resize_taps
from rdsnet.ops.reference.targets import mask_targets
from rdsnet.ops.reference.windows import expanded_windows, window_areas

__all__ = [
    "assemble_masks",
    "correlate",
    "edge_log_posteriors",
    "expanded_windows",
    "mask_ohem_loss",
    "mask_ohem_loss_at_pixels",
    "mask_targets",
    "refine_edges",
    "resize_taps",
    "window_areas",
]
