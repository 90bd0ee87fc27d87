"""The compiled operators: whether they are there, and for what.

The library ``rdsnet/_C*.so`` registers its kernels with PyTorch under the namespace ``rdsnet``
(sources in ``rdsnet/ops/csrc``); :mod:`.registration` adds what PyTorch needs beside them.

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

from rdsnet.ops.registration import register

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
        register()
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
