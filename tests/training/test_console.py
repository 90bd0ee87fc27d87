"""What a run says on the console, and that the log has the rest."""

import io
import logging
import sys

import pytest

from rdsnet.training.console import details_in_log_alone

NAMES = ("detectron2", "fvcore", "rdsnet")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wanted", [True, False])
def test_details_are_in_the_log_alone(capsys, monkeypatch, name, wanted):
    log = io.StringIO()
    handlers = [logging.StreamHandler(sys.stdout), logging.StreamHandler(log)]
    monkeypatch.setattr(logging.getLogger(name), "handlers", handlers)
    monkeypatch.setattr(logging.getLogger(name), "level", logging.DEBUG)
    logger = logging.getLogger(f"{name}.part")
    logger.manager._clear_cache()  # of which levels are enabled
    with details_in_log_alone(wanted):
        logger.info("the whole config")
        logger.warning("this matters")
    logger.info("iteration 19")
    printed = capsys.readouterr().out
    assert ("the whole config" in printed) is not wanted
    assert "this matters" in printed and "iteration 19" in printed
    assert log.getvalue().split("\n") == ["the whole config", "this matters", "iteration 19", ""]
