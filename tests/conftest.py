"""Fixtures: each implementation of the operators; a machine that has no pretrained weights."""

from __future__ import annotations

import logging

import pytest
from helpers.boxes import box, trained_model  # noqa: F401  (fixtures)
from helpers.predicting import model_files, predict  # noqa: F401  (fixtures)

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
    from huggingface_hub import constants

    from rdsnet.checkpoint import pretrained

    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(autouse=True)
def logs_reach_caplog(monkeypatch) -> None:
    """Also after a test that trains: Detectron2 then keeps what is logged from pytest for good, and
    writes to the standard output that this test had, which is closed.
    """
    for name in ("detectron2", "fvcore", "rdsnet"):
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "propagate", True)
        for handler in list(logger.handlers):
            if isinstance(handler, logging.StreamHandler) and handler.stream.closed:
                logger.removeHandler(handler)
