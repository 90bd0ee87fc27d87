"""What a run says on the console; ``OUTPUT_DIR/log.txt`` has everything."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from rdsnet import pipes

_LOGGERS = ({}, {"name": "fvcore"}, {"name": "rdsnet"})
"""Arguments of Detectron2's ``setup_logger``; without a name it is Detectron2's own."""


def setup_loggers(output_dir: str) -> None:
    """Console and ``log.txt``, as Detectron2's ``default_setup`` does it.

    Detectron2 remembers these calls, so that its own, with equal arguments, add nothing. A console
    that is a closed pipe (``| head``) is no reason to end: the log goes on alone.
    """
    for name in _LOGGERS:
        logger = setup_logger(output_dir, distributed_rank=comm.get_rank(), **name)
        for handler in _on_console(logger):
            handler.handleError = partial(_discard_if_closed, handler)


def _on_console(logger: logging.Logger) -> list[logging.StreamHandler]:
    return [h for h in logger.handlers if getattr(h, "stream", None) is sys.stdout]


def _discard_if_closed(handler: logging.StreamHandler, record: logging.LogRecord) -> None:
    """``handleError`` of a handler; logging would print a traceback for every line."""
    if isinstance(sys.exc_info()[1], BrokenPipeError):
        pipes.discard(handler.stream)
    else:
        logging.Handler.handleError(handler, record)


@contextmanager
def details_in_log_alone(wanted: bool = True) -> Iterator[None]:
    """Inside, the console shows warnings only: not the environment, the whole config, the model."""
    names = [logger.get("name", "detectron2") for logger in _LOGGERS if wanted]
    handlers = [handler for name in names for handler in _on_console(logging.getLogger(name))]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
