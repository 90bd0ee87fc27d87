"""What PyTorch needs beside the kernels: shapes for tracing, and the way back.

Fake kernels tell the compiler shapes and dtypes without computing; autograd formulas link every
operator to the one that computes its gradients. Schemas: ``csrc/schemas.h``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _compute_dtype(psi: Tensor, phi: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (psi.dtype, phi.dtype) else torch.float32


def register() -> None:
    """Once, when the library has been loaded. Packed results have a size that depends on data."""
    ops, library = torch.ops.rdsnet, torch.library

    @library.register_fake("rdsnet::correlate")
    def _(psi, phi, image_index, windows):
        pixels = library.get_ctx().new_dynamic_size()
        logits = psi.new_empty(pixels, dtype=_compute_dtype(psi, phi))
        return logits, windows.new_empty(windows.shape[0] + 1, dtype=torch.int64)

    @library.register_fake("rdsnet::correlate_backward")
    def _(_, psi, phi, image_index, windows):
        return torch.empty_like(psi), phi.new_empty(phi.shape)

    @library.register_fake("rdsnet::mask_ohem_loss_from_images")
    @library.register_fake("rdsnet::mask_ohem_loss")
    def _(psi, phi, image_index, windows, *_):
        pixels = library.get_ctx().new_dynamic_size()
        dtype = _compute_dtype(psi, phi)
        return psi.new_empty(phi.shape[0], dtype=dtype), psi.new_empty(pixels, dtype=dtype)

    @library.register_fake("rdsnet::mask_ohem_loss_at_pixels")
    def _(psi, phi, image_index, windows, *_):
        pixels = library.get_ctx().new_dynamic_size()
        dtype = _compute_dtype(psi, phi)
        return (
            psi.new_empty(phi.shape[0], dtype=dtype),
            psi.new_empty(pixels, dtype=dtype),
            windows.new_empty(windows.shape, dtype=torch.int64),
        )

    @library.register_fake("rdsnet::mask_ohem_loss_backward")
    def _(logit_gradient, loss_gradient, psi, phi, image_index, windows):
        return torch.empty_like(psi), phi.new_empty(phi.shape)

    @library.register_fake("rdsnet::assemble_masks")
    def _(psi, phi, windows, first_y, weights_y, first_x, weights_x, threshold):
        count, height, width = phi.shape[0], first_y.shape[0], first_x.shape[0]
        dtype = torch.float64 if psi.dtype == torch.float64 else torch.float32
        runs = library.get_ctx().new_dynamic_size()
        return (
            windows.new_empty((count, 4), dtype=torch.int64),
            windows.new_empty(count, dtype=torch.int64),
            psi.new_empty((count, height), dtype=dtype),
            psi.new_empty((count, width), dtype=dtype),
            windows.new_empty(runs, dtype=torch.int64),
            windows.new_empty(count + 1, dtype=torch.int64),
        )

    @library.register_fake("rdsnet::encode_runs")
    def _(run_lengths, run_offsets):
        characters = run_lengths.new_empty(library.get_ctx().new_dynamic_size(), dtype=torch.uint8)
        return characters, run_offsets.new_empty(run_offsets.shape, dtype=torch.int64)

    @library.register_fake("rdsnet::mask_targets")
    def _(masks, windows, stride, height, width):
        return masks.new_empty((masks.shape[0], height, width), dtype=torch.uint8)

    @library.register_fake("rdsnet::expanded_windows")
    def _(boxes, expand, sizes, image_index):
        return boxes.new_empty(boxes.shape, dtype=torch.int64)

    @library.register_fake("rdsnet::resize_taps")
    def _(output, scale, grid):
        return torch.empty(output, dtype=torch.int64), torch.empty(output, 3)

    @library.register_fake("rdsnet::refine_edges")
    def _(column_maxima, row_maxima, boxes, *_):
        return boxes.new_empty(boxes.shape, dtype=torch.float32)

    def save_correlate(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    def correlate_backward(ctx, logit_gradient, _):
        gradients = ops.correlate_backward(logit_gradient, *ctx.saved_tensors)
        return (*gradients, None, None)

    library.register_autograd("rdsnet::correlate", correlate_backward, setup_context=save_correlate)

    def save_loss(ctx, inputs, output):
        # The forward pass has left the gradient of every object's loss by its logits on the grid,
        # and, where it was not given windows of the grid, these.
        loss, logit_gradient, *cell_windows = output
        (windows,) = cell_windows or inputs[3:4]
        ctx.save_for_backward(logit_gradient, *inputs[:3], windows)
        # Without this the backward pass would be given zeros of that size for nothing.
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        # Nothing else has a gradient, be it one tensor or several.
        ctx.rest = [[None] * len(x) if isinstance(x, (list, tuple)) else None for x in inputs[2:]]

    def loss_backward(ctx, loss_gradient, *_):
        logit_gradient, *inputs = ctx.saved_tensors
        if loss_gradient is None:  # the loss has no part in what is differentiated
            return (None, None, *ctx.rest)
        gradients = ops.mask_ohem_loss_backward(logit_gradient, loss_gradient, *inputs)
        return (*gradients, *ctx.rest)

    for name in ("mask_ohem_loss", "mask_ohem_loss_from_images", "mask_ohem_loss_at_pixels"):
        library.register_autograd(f"rdsnet::{name}", loss_backward, setup_context=save_loss)

    def refuse(ctx, *_):
        raise RuntimeError(
            "rdsnet: second derivatives of the compiled operators are not implemented; set "
            "RDSNET_DISABLE_OPS=1 to compute them with the PyTorch definitions"
        )

    for name in ("rdsnet::correlate_backward", "rdsnet::mask_ohem_loss_backward"):
        library.register_autograd(name, refuse)
