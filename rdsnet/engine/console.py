"""What a run says on the console; ``OUTPUT_DIR/log.txt`` has everything."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

LOGGERS = ({}, {"name": "fvcore"}, {"name": "rdsnet"})
"""Arguments of Detectron2's ``setup_logger``; without a name it is Detectron2's own."""


def setup_loggers(output_dir: str) -> None:
    """Console and ``log.txt``, as Detectron2's ``default_setup`` does it.

    Detectron2 remembers these calls, so that its own, with equal arguments, add nothing.
    """
    for name in LOGGERS:
        setup_logger(output_dir, distributed_rank=comm.get_rank(), **name)


@contextmanager
def details_in_log_alone(wanted: bool = True) -> Iterator[None]:
    """Inside, the console shows warnings only: not the environment, the whole config, the model."""
    handlers = [
        handler
        for logger in LOGGERS
        for handler in logging.getLogger(logger.get("name", "detectron2")).handlers
        if wanted and getattr(handler, "stream", None) is sys.stdout
    ]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
