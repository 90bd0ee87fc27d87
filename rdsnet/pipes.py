"""Output that nobody reads any more, as in ``rdsnet ... | head``."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TextIO

STATUS = 141
"""What a shell reports for a program that a closed pipe has ended: 128 + SIGPIPE."""

_discarded: list[TextIO] = []


def discard(stream: TextIO) -> None:
    """Send what is still to be written to a closed pipe to nowhere, also at Python's own end."""
    _discarded.append(stream)
    # A stream of a test or of a notebook has no number of its own.
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def is_discarded(stream: TextIO) -> bool:
    """Whether a pipe was found closed before."""
    return stream in _discarded
