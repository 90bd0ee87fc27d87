"""What a command line names: images, folders, patterns, videos, cameras."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rdsnet.data.findings import counted, printable
from rdsnet.data.image_formats import has_image_content, has_image_ending
from rdsnet.engine.video import has_other_ending, has_video_content, has_video_ending

# Files of this name lie beside pictures and are none; so do those that begin with a dot.
COMPANIONS = frozenset(("desktop.ini", "ehthumbs.db", "icon\r", "thumbs.db"))
# Of an unknown ending so many files are tried as videos before the rest is left out.
TRIES = 3


@dataclass(frozen=True)
class Source:
    """Something that frames come from: an image file, a video file, or a camera (an index)."""

    path: Path
    is_video: bool = False
    camera: int | None = None


@dataclass
class Sources:
    """The sources that a command line names, in its order, none twice.

    Attributes:
        sources: the sources. Files that cannot be read are among them, so that they are reported.
        left_out: per ending, the number of files in folders that are neither images nor videos.
    """

    sources: list[Source] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def left_out_text(self) -> str:
        """ "12 other files were left out: .txt 10, .json 2", "" for none."""
        return _left_out_text(self.left_out)


def find_sources(inputs: Sequence[str]) -> Sources:
    """The sources that a command line names.

    Args:
        inputs: paths of files (of any name); folders (the images and videos directly inside,
            sorted by name); patterns with ``*``, ``?``, ``**`` (sorted); numbers, which are
            cameras unless there is a file of that name. ``~`` is the home folder.

    Raises:
        FileNotFoundError: for a path that does not exist, or a folder or pattern without images.
            A link to a file that is not there does exist: it is a source, which cannot be read.
    """
    found: dict[Source, None] = {}
    left_out: Counter[str] = Counter()
    for given in inputs:
        path = os.path.expanduser(given)
        if given.isdecimal() and not os.path.lexists(path):
            sources = [Source(Path(f"camera {int(given)}"), True, int(given))]
        elif os.path.isdir(path):
            sources = _in_folder(path, left_out)
        elif os.path.lexists(path):
            sources = [_named(path)]
        elif glob.has_magic(path):
            matches = sorted(glob.glob(path, recursive=True))
            sources = [_named(match) for match in matches if _is_meant(match)]
            if not sources:
                raise FileNotFoundError(f"--input: no file fits the pattern '{printable(given)}'.")
        else:
            raise FileNotFoundError(f"--input: '{printable(given)}' does not exist.")
        found.update(dict.fromkeys(sources))
    return Sources(list(found), left_out)


def is_companion(name: str) -> bool:
    """Whether a file is one that systems put beside pictures: "._a.jpg", "Thumbs.db", ..."""
    return name.startswith(".") or name.lower() in COMPANIONS


def _named(path: str) -> Source:
    """A file that was named itself: whatever it is, it is read."""
    is_picture = has_image_ending(path) or has_image_content(path)
    return Source(
        Path(path), not is_picture and (has_video_ending(path) or has_video_content(path))
    )


def _is_meant(path: str) -> bool:
    """Whether a pattern that fits a path means it: folders without an image's name are not."""
    if os.path.isdir(path):
        return has_image_ending(path)
    return not is_companion(os.path.basename(path))


def _in_folder(folder: str, left_out: Counter[str]) -> list[Source]:
    """The images and videos in a folder; counts the other files.

    What has the name of one is one, also a folder or a link to nothing: it will be reported. Files
    of other names are looked into.
    """
    sources: list[Source] = []
    here: Counter[str] = Counter()
    tries: Counter[str] = Counter()
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        ending = os.path.splitext(entry.name)[1].lower()
        if is_companion(entry.name):
            continue
        is_picture = has_image_ending(entry.name)
        is_video = not is_picture and has_video_ending(entry.name)
        if entry.is_file() and not (is_picture or has_other_ending(entry.name)):
            is_picture = has_image_content(entry.path)
            is_video = not is_picture and is_video
            if not (is_picture or is_video) and tries[ending] < TRIES:
                is_video = has_video_content(entry.path)
                tries[ending] += not is_video
        if is_picture or is_video:
            sources.append(Source(Path(entry.path), is_video))
        elif not entry.is_dir():
            here[ending or "without ending"] += 1
    if not sources:
        others = _left_out_text(here)
        raise FileNotFoundError(
            f"--input: the folder '{printable(folder)}' has no images or videos. "
            + (f"{others} " if others else "")
            + "Images in folders inside are named by a pattern, such as "
            f"'{printable(folder.rstrip('/'))}/**/*.jpg'."
        )
    left_out.update(here)
    return sources


def _left_out_text(left_out: Counter[str]) -> str:
    if not left_out:
        return ""
    by_number = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    kinds = ", ".join(f"{printable(ending)} {number}" for ending, number in by_number)
    files = counted(left_out.total(), "other file was", "other files were")
    return f"{files} left out: {kinds}."
