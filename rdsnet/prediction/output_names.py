"""Names of outputs that never overwrite each other, whatever the inputs are called."""

from __future__ import annotations

import re
import unicodedata

# Linux allows 255 bytes; endings and numbers need some.
MOST_BYTES = 200
# Digits of the number behind the name of a frame or page.
_DIGITS = 6
_NUMBERED = re.compile(rf"(.*)_\d{{{_DIGITS},}}", re.DOTALL)


class OutputNames:
    """Hands out names, each once in a run.

    Two names are the same when a file system may take them so: without regard to case and to how
    accents are written (NFC, NFD). A sequence, such as a video, also has the names of its frames,
    ``clip_000000``, ``clip_000001``, ...: neither is an image called as one of them, nor a
    sequence as the beginning of an image's name, in whatever order they come.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._sequences: set[str] = set()
        self._beginnings: set[str] = set()  # of names that could be those of frames

    def new(self, stem: str, is_sequence: bool = False) -> str:
        """The stem as a file's name, with a number if it is taken: "cat", "cat_2"."""
        stem = as_file_name(stem)
        name, number = stem, 1
        while not self._is_free(_key(name), is_sequence):
            number += 1
            name = f"{stem}_{number}"
        key = _key(name)
        self._taken.add(key)
        if is_sequence:
            self._sequences.add(key)
        if numbered := _NUMBERED.fullmatch(key):
            self._beginnings.add(numbered[1])
        return name

    def _is_free(self, key: str, is_sequence: bool) -> bool:
        numbered = _NUMBERED.fullmatch(key)
        return not (
            key in self._taken
            or (numbered and numbered[1] in self._sequences)
            or (is_sequence and key in self._beginnings)
        )


def numbered(name: str, index: int) -> str:
    """The name of a frame or page of a sequence: "clip_000012"."""
    return f"{name}_{index:0{_DIGITS}d}"


def as_file_name(stem: str) -> str:
    """A name that every file system takes, as close to the stem as can be.

    Bytes that are no text, and control characters such as line breaks, become ``%E9``; a name of
    more than MOST_BYTES bytes in UTF-8 is cut off.
    """
    text = "".join(map(_plain, stem))
    return text.encode("utf-8")[:MOST_BYTES].decode("utf-8", errors="ignore") or "_"


def _plain(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python holds a byte that is no text
        return f"%{ord(character) - 0xDC00:02X}"
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
        return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))
    return character


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
