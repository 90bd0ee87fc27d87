"""Tests of what uses the operators run on each implementation that is there."""

from __future__ import annotations

import pytest

from rdsnet.ops import compiled


@pytest.fixture(params=["pytorch", "compiled"])
def path(request, monkeypatch) -> str:
    """The implementation under test."""
    if request.param == "pytorch":
        monkeypatch.setattr(compiled, "_devices", frozenset())
    elif compiled.active_path() == "pytorch":
        pytest.skip(f"no compiled operators: {compiled.why_not_compiled()}")
    return request.param
