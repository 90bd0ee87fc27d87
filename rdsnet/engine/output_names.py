"""Names of outputs: no two pictures of a run share one, on any file system."""

from __future__ import annotations

import os
import re
import unicodedata

# Bytes of a name, so that with a number and an ending it stays below the 255 of most file systems.
LONGEST = 220
# What frames add to the name of their video, and pages to that of their file.
NUMBERED = re.compile(r"_\d{6,}$")


class OutputNames:
    """Gives out names: the stem of an input's name, with a number where it is taken.

    Names that differ in upper and lower case alone, or in the way that an accent is written, count
    as equal: some file systems do not tell them apart.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()  # all names
        self._numbered: set[str] = set()  # names of which NAME_000000, ... are taken too
        self._stems: set[str] = set()  # NAME of every taken name that looks like NAME_000000

    def single(self, stem: str) -> str:
        """The name of one picture: "cat", "cat_2", ..."""
        return self._unused(stem, frozenset())

    def numbered(self, stem: str) -> str:
        """The name of a video or stack, whose pictures are called :func:`with_number` of it."""
        name = self._unused(stem, self._stems)
        self._numbered.add(_key(name))
        return name

    def _unused(self, stem: str, excluded: set[str] | frozenset[str]) -> str:
        stem = shortened_name(stem)
        name, number = stem, 1
        while not self._is_free(_key(name)) or _key(name) in excluded:
            number += 1
            name = f"{stem}_{number}"
        key = _key(name)
        self._taken.add(key)
        if NUMBERED.search(key):
            self._stems.add(NUMBERED.sub("", key))
        return name

    def _is_free(self, key: str) -> bool:
        return key not in self._taken and (
            not NUMBERED.search(key) or NUMBERED.sub("", key) not in self._numbered
        )


def with_number(name: str, index: int) -> str:
    """The name of a frame or page: "clip_000012"."""
    return f"{name}_{index:06d}"


def shortened_name(stem: str) -> str:
    """The stem, without its end where that would be too long for a file system."""
    while len(os.fsencode(stem)) > LONGEST:
        stem = stem[:-1]
    return stem


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
