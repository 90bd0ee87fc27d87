"""Which images are one photograph: their files are equal in every byte, whatever they are called.

A photograph that is trained on and evaluated on makes a model look better than it is.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping
from typing import TypeVar

from rdsnet.data.findings import Finding, first_of
from rdsnet.data.ids import shown_id
from rdsnet.data.threads import for_each_file

_SAMPLE = 1 << 12  # bytes from the middle of a file
_BLOCK = 1 << 20  # bytes read at once

_K = TypeVar("K", bound=Hashable)


def equal_images(paths: Mapping[_K, str]) -> list[list[_K]]:
    """Groups of two or more images whose files have the same content.

    Files of one size are compared by a sample of their bytes, and those that are still alike by all
    bytes: of compressed images few are read.

    Args:
        paths: of the file of every image. One that cannot be read is equal to itself alone.
    """
    contents: dict[str, tuple] = {path: (_size(path),) for path in dict.fromkeys(paths.values())}
    for look in (_sample, _digest):
        counts = Counter(contents.values())
        alike = [path for path, content in contents.items() if counts[content] > 1]
        for path, seen in zip(alike, for_each_file(look, alike, "Comparing images"), strict=True):
            contents[path] += (seen,)
    groups = defaultdict(list)
    for image, path in paths.items():
        groups[contents[path]].append(image)
    return [group for group in groups.values() if len(group) > 1]


def image_paths(content: dict, image_root: str | os.PathLike) -> dict[Hashable, str]:
    """{image id: path of its file} of a COCO file without structural problems."""
    return {
        image["id"]: os.path.join(image_root, image["file_name"]) for image in content["images"]
    }


def equal_image_findings(content: dict, image_root: str | os.PathLike) -> Iterator[Finding]:
    """Photographs that several images of a COCO file without structural problems have."""
    names = {image["id"]: image["file_name"] for image in content["images"]}
    for group in equal_images(image_paths(content, image_root)):
        files = dict.fromkeys(f"'{names[id_]}'" for id_ in group)
        what = "is the file of each" if len(files) == 1 else "are equal"
        where = f"images {first_of(map(shown_id, group))}"
        yield Finding("same photograph", where, f"{first_of(files)} {what}")


def _size(path: str) -> int | str:
    """Bytes of a file; the path itself, equal to nothing else, where there is nothing to read."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return path
    return status.st_size if status.st_size and stat.S_ISREG(status.st_mode) else path


def _sample(path: str) -> bytes | str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _SAMPLE) // 2)
            return file.read(_SAMPLE)
    except OSError:
        return path


def _digest(path: str) -> bytes | str:
    digest = hashlib.blake2b()
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError:
        return path
    return digest.digest()
