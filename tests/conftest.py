"""Fixtures: each implementation of the operators; a machine that has no pretrained weights."""

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


@pytest.fixture
def without_weights(monkeypatch) -> None:
    """Neither a package with weights nor a connection."""
    import huggingface_hub

    from rdsnet.checkpoint import pretrained

    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
