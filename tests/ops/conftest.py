"""Every test of an operator runs on each implementation that is there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rdsnet.ops import CompactMasks, Taps, compiled


@pytest.fixture(params=["cpu", "cuda"])
def device(request, path) -> str:
    """The device under test; CUDA only where there is a GPU and kernels for it."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        if path == "compiled" and "cuda" not in compiled.active_path():
            pytest.skip("rdsnet was built without CUDA")
    return request.param


@pytest.fixture
def run(device) -> Callable:
    """``run(function, *arguments)`` on the device under test, with the results back on the CPU."""

    def moved(value, place: str):
        if isinstance(value, (torch.Tensor, Taps, CompactMasks)):
            return value.to(place)
        if type(value) in (list, tuple):
            return type(value)(moved(one, place) for one in value)
        return value

    def call(function, *arguments):
        return moved(function(*moved(arguments, device)), "cpu")

    return call
