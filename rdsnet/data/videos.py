"""Which files are videos, and how OpenCV opens files of any name."""

from __future__ import annotations

import mimetypes
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import filetype


def is_video(path: str | os.PathLike) -> bool:
    """Whether a file is a video by its name, or by its content whatever its name is."""
    if (mimetypes.guess_type(os.fspath(path))[0] or "").startswith("video/"):
        return True
    try:
        return os.path.isfile(path) and filetype.is_video(os.fspath(path))
    except OSError:  # whoever reads it says why it cannot be read
        return False


@contextmanager
def path_for_opencv(path: str | os.PathLike) -> Iterator[str]:
    """A path by which OpenCV can open a file, inside the context; what is open stays open.

    OpenCV ends the whole process over names that are not text in UTF-8, which Linux allows; such a
    file is opened by a link to its folder, or to itself, that has another name.

    Raises:
        OSError: no link can be made here.
    """
    path = os.path.abspath(path)
    if _is_text(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="rdsnet-") as folder:
        ending = os.path.splitext(path)[1]
        link = os.path.join(folder, "file" + (ending if _is_text(ending) else ""))
        parent, name = os.path.split(path)
        if _is_text(name):
            os.symlink(parent, os.path.join(folder, "folder"))
            link = os.path.join(folder, "folder", name)
        else:
            os.symlink(path, link)
        yield link


def _is_text(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
