"""What the user gave as annotations, looked into once: json, xml or yaml, a file or a folder."""

from __future__ import annotations

import os
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from rdsnet.data.coco_json import read_json, require_exists
from rdsnet.data.findings import counted, first_of, printable
from rdsnet.data.image_formats import has_image_ending

# Endings of files that may be an export, or part of one.
_JSON, _YAML = (".json", ".geojson"), (".yaml", ".yml")
TEXTS = (*_JSON, ".xml", *_YAML)
# Folders below the one that was given, in which exports are looked for.
_DEPTH = 3
_MOST_ENTRIES = 1_000_000


class Source:
    """A file or folder that may be an export.

    Args:
        path: of the file or folder.
        images: the folder of its images, if the user named one.

    Attributes:
        name, image_root: both as they were given.

    Raises:
        FileNotFoundError: there is nothing of this name.
    """

    def __init__(self, path: str | os.PathLike, images: str | os.PathLike | None = None) -> None:
        require_exists(path)
        self.name, self.image_root = os.fspath(path), images and os.fspath(images)
        self.path = Path(os.path.abspath(path))
        self.images = None if images is None else Path(os.path.abspath(images))

    @property
    def is_folder(self) -> bool:
        return self.path.is_dir()

    @property
    def folder(self) -> Path:
        """Where names in it begin: the folder itself, or that of the file."""
        return self.path if self.is_folder else self.path.parent

    @cached_property
    def json(self) -> Any:
        """What a json file holds; None: it is none.

        Raises:
            ValueError: it is broken, with the place.
        """
        return read_json(self.path) if self._ends(_JSON) else None

    def release(self) -> None:
        """Forget what the json holds, so that only one of many is in memory."""
        vars(self).pop("json", None)

    @cached_property
    def xml(self) -> ElementTree.Element | None:
        """The root of an xml file; None: it is none.

        Raises:
            ValueError: it is broken, with the place, or declares entities.
        """
        if not self._ends((".xml",)):
            return None
        data = self.path.read_bytes()
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # may grow without bound, or read files
            raise ValueError(
                f"{printable(self.path)} declares a document type or entities, which no annotation "
                "tool writes. It is not read."
            )
        try:
            return ElementTree.fromstring(data)
        except (ElementTree.ParseError, LookupError, ValueError) as error:
            raise ValueError(
                f"{printable(self.path)} is not valid xml: {error}. Repair the file or export it "
                "again."
            ) from error

    @cached_property
    def yaml(self) -> Any:
        """What a yaml file holds; None: it is none.

        Raises:
            ValueError: it is broken, with the place.
        """
        if not self._ends(_YAML):
            return None
        try:
            return yaml.safe_load(self.path.read_bytes())
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{printable(self.path)} is not valid yaml: {reason}") from error

    @cached_property
    def files(self) -> list[Path]:
        """The files of a folder and of those below it, in order; hidden ones are left out."""
        found: list[Path] = []
        for folder, subfolders, names in os.walk(self.path):
            depth = len(Path(folder).relative_to(self.path).parts)
            subfolders[:] = sorted(n for n in subfolders if n[0] != "." and depth < _DEPTH)
            found += [Path(folder, name) for name in sorted(names) if name[0] != "."]
            if len(found) > _MOST_ENTRIES:
                break
        return found

    def described(self) -> str:
        """What is there, for people."""
        if not self.is_folder:
            return f"a file of {counted(self.path.stat().st_size, 'byte')}{self._content()}"
        if not self.files:
            return "an empty folder"
        endings = Counter(path.suffix.lower() or "without ending" for path in self.files)
        listed = ", ".join(f"{number} {ending}" for ending, number in endings.most_common(6))
        names = first_of((os.fspath(path.relative_to(self.path)) for path in self.files), 3)
        return f"a folder with {counted(len(self.files), 'file')} ({listed}), such as {names}"

    def _content(self) -> str:
        if isinstance(self.json, dict):
            return f", a json object with {first_of(map(str, self.json), 8) or 'nothing in it'}"
        if isinstance(self.json, list):
            entry = self.json[0] if self.json else None
            is_object = isinstance(entry, dict) and entry
            keys = f", the first an object with {first_of(map(str, entry), 8)}" if is_object else ""
            return f", a json list of {counted(len(self.json), 'entry', 'entries')}{keys}"
        if self.xml is not None:
            inside = first_of(dict.fromkeys(str(child.tag) for child in self.xml), 8)
            return f", xml of <{self.xml.tag}> with {inside or 'nothing'} in it"
        if isinstance(self.yaml, dict):
            return f", yaml with {first_of(map(str, self.yaml), 8) or 'nothing in it'}"
        return ""

    def _ends(self, endings: tuple[str, ...]) -> bool:
        return not self.is_folder and self.path.suffix.lower() in endings


def image_files(folder: Path) -> list[Path]:
    """The files of a folder whose ending is that of an image, in order."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.name[0] != "." and has_image_ending(path) and path.is_file()
    )


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, in order; hidden ones are left out."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name[0] != "." and path.is_dir())
