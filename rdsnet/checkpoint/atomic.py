"""Files that are there completely or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_UNFINISHED = ".tmp"
"""Ending of a file that is being written."""


def write_atomically(path: str | Path, write: Callable[[BinaryIO], None]) -> None:
    """Write under a temporary name, bring it to the disk, then give it its name.

    Whatever happens meanwhile (SIGKILL, power cut, full disk), ``path`` is either what it was or
    complete.

    Args:
        write: gets the open binary file.

    Raises:
        OSError: nothing could be written; the message says how much space is left.
    """
    path = Path(path)
    unfinished = path.with_name(path.name + _UNFINISHED)
    try:
        with open(unfinished, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    # torch.save turns the OSError of a full disk into a RuntimeError.
    except (OSError, RuntimeError) as error:
        unfinished.unlink(missing_ok=True)
        raise OSError(
            f"'{path}' could not be written: {_root_cause(error)}. {_space_left(path.parent)} "
            "What was there before is unchanged."
        ) from error
    _sync_folder(path.parent)


def remove_unfinished(folder: str | Path) -> None:
    """Remove what a killed process has left half-written."""
    for path in Path(folder).glob(f"*{_UNFINISHED}"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Bring the new name itself to the disk, where the file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _root_cause(error: BaseException) -> BaseException:
    while not isinstance(error, OSError) and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__
    return error


def _space_left(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB are free there."
    except OSError:
        return f"The folder '{folder}' cannot be examined either."
