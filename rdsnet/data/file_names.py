"""File names that stand for a file of the image folder, though written as on another machine.

Annotation tools write names with backslashes, URL codes, folders of their own and other cases. Such
a name is compared with the files of the folder from its end, part by part ("sub/a.png" has two
parts): first as it is written, then more and more leniently (``_SPELLINGS``). It fits a file

- that lies in more folders than the name says, or in fewer: "a.png" and "sub/a.png";
- in other folders only when the name is that of another machine, an absolute path or an address:
  "train/1.png" is not "val/1.png", but "C:\\upload\\1.png" may be.

Of several files it fits the one that agrees in the most parts; where two agree equally well, nobody
knows which one is meant. Nothing outside the folder is ever looked at.
"""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from urllib.parse import unquote

from rdsnet.data.findings import printable

# A folder with more files is hardly the one that is meant, and is not searched.
_MOST_FILES = 1_000_000
_SHOWN = 3  # files that a message shows


def _decoded(text: str) -> str:
    while (once := unquote(text)) != text:
        text = once
    return text


# What may differ, and what makes such texts equal, each on top of those before it.
_SPELLINGS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("backslashes", lambda text: text.replace("\\", "/")),
    ("URL codes", _decoded),
    ("Unicode form", lambda text: unicodedata.normalize("NFC", text)),
    ("case", lambda text: unicodedata.normalize("NFC", text.casefold())),
    ("'+' for a blank", lambda text: text.replace("+", " ")),
    ("Label Studio's prefix", lambda text: re.sub(r"(^|/)[0-9a-f]{8}-(?=[^/]+$)", r"\1", text)),
    ("'_' for a blank", lambda text: text.replace(" ", "_")),
)

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://[^/?#]*", re.IGNORECASE)
_QUERY_PATH = re.compile(r"[?&]d=([^&#]+)")  # of Label Studio: /data/local-files/?d=PATH
_OF_ANOTHER_MACHINE = re.compile(
    rf"[/\\~]|[a-z]:[/\\]|{_ADDRESS.pattern}|.*{_QUERY_PATH.pattern}"
    r"|(.*[/\\])?\.\.[/\\]|(.*[/\\])?upload[/\\]\d+[/\\]",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Fit:
    """The files that a name may stand for.

    Attributes:
        files: relative to the image folder, with "/"; more than one: nobody knows which.
        spelling, parts: how leniently the name had to be read, and in how many parts it agrees.
        differences: of the name from the first file, in words.
        rival: another name that stands for the file with as much right, or more; "": none.
    """

    files: tuple[str, ...]
    spelling: int
    parts: int
    differences: tuple[str, ...]
    rival: str = ""

    @property
    def is_certain(self) -> bool:
        """Whether it is one file, and this name's alone."""
        return len(self.files) == 1 and not self.rival

    @property
    def rank(self) -> tuple[int, int]:
        """Smaller is better."""
        return self.spelling, -self.parts

    def __str__(self) -> str:
        shown = ", ".join(f"'{printable(file)}'" for file in self.files[:_SHOWN])
        if len(self.files) > 1:
            more = ", ..." if len(self.files) > _SHOWN else ""
            return f"{len(self.files)} files fit, and none better than another: {shown}{more}"
        if self.rival:
            return f"{shown} fits, but '{printable(self.rival)}' means the same file"
        return f"{shown} fits (the difference: {', '.join(self.differences)})"


def fitting_files(
    names: Collection[str], taken: Collection[str], image_root: str
) -> dict[str, Fit]:
    """Find what names may stand for that are no files.

    Args:
        names: as a json has them.
        taken: names of other images, which are files of the folder.
        image_root: the folder.

    Returns:
        {name: what fits}, without the names that nothing fits.
    """
    files = _files(image_root) if names else []
    fits: dict[str, Fit] = {}
    left = _comparable(names, files)
    for spelling in range(len(_SPELLINGS)):
        if not left:
            break
        index = _Index(files, os.path.abspath(image_root), spelling)
        for name in left:
            found, parts = index.find(name)
            found = tuple(file for file in found if os.path.isfile(os.path.join(image_root, file)))
            if found:
                differences = _differences(name, found[0], spelling, parts)
                fits[name] = Fit(found, spelling, parts, differences)
        left = [name for name in left if name not in fits]
    return _without_rivals(fits, taken)


class _Index:
    """The files of a folder by the ends of their paths, read at one spelling."""

    def __init__(self, files: Sequence[str], root: str, spelling: int) -> None:
        self._spelling = spelling
        self._root = _parts(root, spelling)
        self._files = [(file, _parts(file, spelling)) for file in files]
        self._ends: dict[tuple[int, bool], dict[tuple[str, ...], list[str]]] = {}

    def find(self, name: str) -> tuple[list[str], int]:
        """The files that agree with a name in the most parts, and in how many."""
        is_foreign = _OF_ANOTHER_MACHINE.match(name) is not None
        parts = _parts(_place(name) if self._spelling else name, self._spelling)
        for count in range(len(parts), 0, -1):
            whole_files = count < len(parts) and not is_foreign
            found = self._by_end(count, whole_files).get(parts[-count:])
            if found:
                return found, count
        return [], 0

    def _by_end(self, count: int, whole_files: bool) -> dict[tuple[str, ...], list[str]]:
        """Files by the last ``count`` parts of their full paths.

        Args:
            whole_files: only those whose path inside the folder has no more parts.
        """
        key = count, whole_files
        if key not in self._ends:
            ends = self._ends[key] = defaultdict(list)
            for file, parts in self._files:
                if not whole_files or len(parts) <= count:
                    ends[(self._root + parts)[-count:]].append(file)
        return self._ends[key]


def _comparable(names: Collection[str], files: Sequence[str]) -> list[str]:
    """Names whose last part a file has at the most lenient spelling: others need not be looked up.

    (Of a wrong folder, these are none, and that is known soon.)
    """
    most_lenient = len(_SPELLINGS) - 1
    ends = {_parts(file, most_lenient)[-1:] for file in files} - {()}
    return [
        name
        for name in names
        if any(_parts(text, most_lenient)[-1:] in ends for text in (name, _place(name)))
    ]


def _without_rivals(fits: dict[str, Fit], taken: Collection[str]) -> dict[str, Fit]:
    """Mark names whose file another name means, too, unless theirs is the better claim."""
    owners = {posixpath.normpath(name): name for name in taken}
    claims = defaultdict(list)
    for name, fit in fits.items():
        if len(fit.files) == 1:
            claims[fit.files[0]].append(name)
    for file, names in claims.items():
        names.sort(key=lambda name: fits[name].rank)
        tied = len(names) > 1 and fits[names[0]].rank == fits[names[1]].rank
        for place, name in enumerate(names):
            rival = owners.get(file) or (names[0] if place else names[1] if tied else "")
            fits[name] = replace(fits[name], rival=rival)
    return fits


def _files(root: str) -> list[str]:
    """Paths inside a folder, relative to it; hidden folders and links to folders are left out."""
    found: list[str] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        inside = os.path.relpath(folder, root).replace(os.sep, "/")
        found += [name if inside == "." else f"{inside}/{name}" for name in sorted(names)]
        if len(found) > _MOST_FILES:
            return []
    return found


def _spelled(text: str, spelling: int, without: int = -1) -> str:
    for number, (_, simplify) in enumerate(_SPELLINGS[: spelling + 1]):
        text = text if number == without else simplify(text)
    return text


def _parts(text: str, spelling: int, without: int = -1) -> tuple[str, ...]:
    path = posixpath.normpath(_spelled(text, spelling, without))
    return tuple(part for part in path.split("/") if part not in ("", ".", ".."))


def _place(name: str) -> str:
    """The path in an address, such as file:///a.png, https://host/a.png?b or Label Studio's."""
    if match := _QUERY_PATH.search(name):
        return match[1]
    if match := _ADDRESS.match(name):
        return re.split("[?#]", name[match.end() :])[0]
    return name.partition("?")[0]


def _differences(name: str, file: str, spelling: int, parts: int) -> tuple[str, ...]:
    """Those of ``_SPELLINGS`` without which the two would agree in fewer parts, and others."""
    place = _place(name) if spelling else name
    ours, theirs = _parts(place, spelling), _parts(file, spelling)
    agreeing = min(parts, len(theirs))  # the rest is the folder's own path
    found = [
        text
        for number, (text, _) in enumerate(_SPELLINGS[: spelling + 1])
        if _parts(place, spelling, number)[-agreeing:] != _parts(file, spelling, number)[-agreeing:]
    ]
    found += ["address"] if place != name else []
    found += ["folders"] if ours[:-agreeing] or theirs[:-agreeing] or not found else []
    return tuple(found)
