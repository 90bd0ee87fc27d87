"""Video files: which ones are, and how OpenCV opens them."""

from __future__ import annotations

import mimetypes
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import cv2

# Types of file that are the same on every machine; the system's own table knows more.
STANDARD_TYPES = mimetypes.MimeTypes()
# A file is text, and no video, if there is no zero among so many of its first bytes.
HEAD = 4096


def has_video_ending(path: str | os.PathLike) -> bool:
    ending = f"x{os.path.splitext(path)[1].lower()}"
    guesses = mimetypes.guess_type(ending)[0], STANDARD_TYPES.guess_type(ending)[0]
    return any((guess or "").startswith("video/") for guess in guesses)


def has_other_ending(path: str | os.PathLike) -> bool:
    """Whether the name says that a file is neither picture nor video, but text, an archive, ..."""
    guess, packing = STANDARD_TYPES.guess_type(f"x{os.path.splitext(path)[1].lower()}")
    return packing is not None or (guess or "").startswith(("application/", "text/"))


def has_video_content(path: str | os.PathLike) -> bool:
    """Whether OpenCV can read a file as a video. That takes up to a fifth of a second."""
    try:
        with open(path, "rb") as file:
            if b"\0" not in file.read(HEAD):
                return False
    except OSError:
        return False
    with _quiet(), opencv_path(path) as name:
        # FFmpeg alone: others would take a name with digits for a series of pictures.
        video = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
        is_opened = video.isOpened()
        video.release()
        return is_opened


@contextmanager
def opencv_path(path: str | os.PathLike) -> Iterator[str]:
    """A name by which OpenCV can open a file inside the ``with``, to read or to write it.

    Names that are not UTF-8 end the process in OpenCV: such files get a link with another name.
    """
    absolute = os.path.abspath(path)  # "12:30.mp4" alone would be taken for an address
    try:
        absolute.encode()
    except UnicodeEncodeError:
        ending = os.path.splitext(absolute)[1]
        with tempfile.TemporaryDirectory(prefix="rdsnet-") as folder:
            link = os.path.join(folder, "video" + (ending if ending.isascii() else ""))
            os.symlink(absolute, link)
            yield link
    else:
        yield absolute


@contextmanager
def _quiet() -> Iterator[None]:
    """Without OpenCV's own messages."""
    logging = cv2.utils.logging
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)
