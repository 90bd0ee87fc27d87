"""Which format an export is, by its content, and reading it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from rdsnet.data.findings import printable
from rdsnet.data.formats import (
    coco,
    cvat,
    geojson,
    label_studio,
    labelme,
    mask_folders,
    via,
    voc,
    yolo,
)
from rdsnet.data.formats.collecting import Collector, Export
from rdsnet.data.formats.source import TEXTS, Source

# A module has NAME and WHAT, a line for people; is_mine(source) and read(sources, given, export).
FORMATS: tuple[ModuleType, ...] = (
    *(coco, yolo, labelme, cvat, via, label_studio, geojson, voc, mask_folders),
)
# A file that is no export, or broken: what it is in the plural, its path, and what to say.
_Unread = tuple[str, Path, str]
# So many files of one ending in one folder are looked at to know what they are.
_LOOKED_AT = 20


def read_export(
    path: str | os.PathLike,
    images: str | os.PathLike | None = None,
    classes: Mapping[Any, str] | None = None,
    elsewhere: str | os.PathLike | None = None,
) -> Export:
    """Read annotations of any known format.

    Args:
        path: a file or folder.
        images: the folder of its images; None: where the export says, or beside it.
        classes: {category id: name} of the data that it must fit, as that for training; ignored
            for COCO's json, which has ids of its own.
        elsewhere: a folder that is searched for images which are not where they should be; ignored
            for COCO's json, whose names stay as they are.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: its format is not known, it could be several, or it is broken.
    """
    given = Source(path, images)
    if images is not None and not Path(images).is_dir() and not _is_coco_file(given):
        problem = "is a file, not a folder" if Path(images).exists() else "does not exist"
        raise ValueError(f"the image folder {printable(images)} {problem}")
    format, sources, left_out = _recognised(given)
    if format is coco:
        return replace(coco.read(sources, given), left_out=left_out)
    searched = None if elsewhere is None else Path(os.path.abspath(elsewhere))
    export = Collector(given.folder, given.images, classes, searched)
    export.left_out |= left_out
    format.read(sources, given, export)
    return export.export(os.fspath(path), format.NAME)


def _is_coco_file(given: Source) -> bool:
    """Whose images the checks will miss, with better words."""
    return not given.is_folder and coco.is_mine(given)


def _recognised(given: Source) -> tuple[ModuleType, list[Source], dict[str, list[str]]]:
    """The format, the files that it reads (or the folder itself), and what is left out."""
    found = {format: [given] for format in FORMATS if format.is_mine(given)}
    unread: list[_Unread] = []
    if given.is_folder:
        files = _files_by_format(given, unread)
        found |= files
    if not found:
        raise ValueError(_unknown(given, unread))
    if len(found) > 1:
        kinds = "; ".join(
            f"{format.NAME} ({printable(sources[0].path)})" for format, sources in found.items()
        )
        raise ValueError(
            f"{printable(given.path)} may be several things: {kinds}. Give the file or folder of "
            "the one that you mean."
        )
    format, sources = next(iter(found.items()))
    endings = {source.path.suffix.lower() for source in sources}
    left_out: dict[str, list[str]] = {}
    for what, path, text in unread:
        if path.suffix.lower() in endings:
            left_out.setdefault(what, []).append(text)
    return format, sources, left_out


def _files_by_format(given: Source, unread: dict[str, list[str]]) -> dict[ModuleType, list[Source]]:
    """The files in a folder that are exports, or parts of one; ``unread`` gets the others."""
    found: dict[ModuleType, list[Source]] = {}
    kinds: dict[tuple[Path, str], Counter] = {}
    for path in given.files:
        ending = path.suffix.lower()
        if ending not in TEXTS:
            continue
        known = kinds.setdefault((path.parent, ending), Counter())
        if known.total() >= _LOOKED_AT and len(known) == 1 and None not in known:
            found[next(iter(known))].append(Source(path, given.images))  # like those before it
            continue
        format = None
        try:
            source = Source(path, given.images)
            format = next((format for format in FORMATS if format.is_mine(source)), None)
            if format is None:
                unread.append(("files of no known format", path, os.fspath(path)))
        except (OSError, ValueError) as error:
            unread.append(("files that cannot be read", path, str(error)))
        known[format] += 1
        if format is not None:
            found.setdefault(format, []).append(Source(path, given.images))
    return found


def _unknown(given: Source, unread: Sequence[_Unread]) -> str:
    known = "\n".join(f"  {format.WHAT}" for format in FORMATS)
    advice = ""
    if given.path.suffix.lower() in (".zip", ".tar", ".gz", ".7z", ".rar"):
        advice = " It is an archive: unpack it, and give the folder."
    for what, (_, text) in {what: rest for what, *rest in reversed(unread)}.items():
        advice += f" It has {what}, such as this: {text}"
    return (
        f"{printable(given.path)} is no annotation format that is known: it is "
        f"{given.described()}.{advice} What is read:\n{known}"
    )
