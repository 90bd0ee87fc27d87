"""The compiled operators: loading, shapes for tracing, and autograd.

The library ``rdsnet/_C*.so`` registers its kernels with PyTorch under the namespace ``rdsnet``
(sources in ``rdsnet/ops/csrc``). What PyTorch needs beside the kernels stands here: fake kernels,
which tell the compiler shapes and dtypes without computing, and the link from forward to backward.

Without the library, or with the environment variable ``RDSNET_DISABLE_OPS=1``, the definitions in
:mod:`rdsnet.ops.reference` do the work. ``RDSNET_OPS_LIBRARY`` names another build of the library,
for tests.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

_devices: frozenset[str] = frozenset()
_problem = "no compiled library rdsnet/_C*.so: it was not built when rdsnet was installed"
_announced = False


def active_path() -> str:
    """Which implementation runs: "compiled (cpu)", "compiled (cpu, cuda)" or "pytorch"."""
    return f"compiled ({', '.join(sorted(_devices))})" if _devices else "pytorch"


def why_not_compiled() -> str:
    """Why :func:`active_path` is "pytorch"; empty if it is not."""
    return "" if _devices else _problem


def usable(tensor: Tensor | None = None) -> bool:
    """Whether the compiled operators serve this tensor; without one, what makes tensors on the CPU.

    Export gets the plain PyTorch operators.
    """
    device = "cpu" if tensor is None else tensor.device.type
    if torch.compiler.is_compiling():
        return device in _devices and not exporting()
    _announce()
    return device in _devices and not torch.jit.is_tracing()


def exporting() -> bool:
    """Whether ``torch.export`` is tracing.

    A graph for other runtimes has PyTorch's operators alone, and as few sizes as possible in it
    depend on data.
    """
    if hasattr(torch.compiler, "is_exporting"):  # since 2.7
        return torch.compiler.is_exporting()
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


@contextmanager
def definitions_only() -> Iterator[None]:
    """Within it the PyTorch definitions run, whatever was compiled: for tests and comparisons."""
    global _devices
    kept, _devices = _devices, frozenset()
    try:
        yield
    finally:
        _devices = kept


def load(library: str | Path | None = None) -> bool:
    """Load the library and register what belongs to it.

    The default is the one beside the package, or ``RDSNET_OPS_LIBRARY``.

    Returns:
        Whether the compiled operators are active. If not, :func:`why_not_compiled` says why.
    """
    global _devices, _problem
    if _devices:
        return True
    if os.environ.get("RDSNET_DISABLE_OPS", "0") not in ("", "0"):
        _problem = "the environment variable RDSNET_DISABLE_OPS is set"
        return False
    library = library or os.environ.get("RDSNET_OPS_LIBRARY")
    if library is None:
        found = sorted(Path(__file__).resolve().parents[1].glob("_C*.so"))
        if not found:
            return False
        library = found[0]
    try:
        torch.ops.load_library(str(library))
        _register()
    except (OSError, RuntimeError) as error:
        # Built for another PyTorch, most likely: importing rdsnet still works.
        _problem = f"{library} could not be loaded ({error}); install rdsnet again to rebuild it"
        logging.getLogger("rdsnet").warning("rdsnet.ops: %s", _problem)
        return False
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    keys = {"cpu": "CPU", "cuda": "CUDA"}
    _devices = frozenset(
        device for device, key in keys.items() if has_kernel("rdsnet::correlate", key)
    )
    return True


def _announce() -> None:
    global _announced
    if not _announced:
        _announced = True
        reason = f" ({_problem})" if not _devices else ""
        logging.getLogger("rdsnet").info("Mask operators: %s%s", active_path(), reason)


def _compute_dtype(psi: Tensor, phi: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (psi.dtype, phi.dtype) else torch.float32


def _register() -> None:
    """Fake kernels and autograd formulas. Packed results have a size that depends on the data."""
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
