"""Reading a json in COCO's instances format, with errors that say where it is broken."""

from __future__ import annotations

import functools
import json
import mmap
import os
import re
from pathlib import Path
from typing import Any

_EXPECTED = (
    "expected COCO's instances format, a json object with the lists 'images', 'annotations' and "
    "'categories'"
)


def read_json(json_path: str | os.PathLike) -> Any:
    """Parse a json file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not json, with line and column.
    """
    _require_file(json_path)
    with open(json_path, "rb") as stream:
        data = stream.read()
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        cut_off = " The file seems to be cut off." if error.pos >= len(error.doc.rstrip()) else ""
        raise ValueError(
            f"{json_path} is not valid json: {error.msg} at line {error.lineno}, column "
            f"{error.colno}.{cut_off} Repair the file or write it again."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{json_path} is not valid json: it is not text in UTF-8 (byte {error.start}). Is it "
            "really the annotation file?"
        ) from error
    except (ValueError, RecursionError) as error:  # Python's limits
        reason = "a number of more than 4300 digits"
        if isinstance(error, RecursionError):
            reason = "too many lists inside of each other"
        raise ValueError(f"{json_path} cannot be read: it has {reason}. Repair it.") from error


def read_coco_json(json_path: str | os.PathLike) -> dict:
    """Parse a json and check that it is an object with lists of images, annotations, categories.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not json (with line and column), or not in COCO's instances format.
    """
    content = read_json(json_path)
    if not isinstance(content, dict):
        hint = " (a list is what COCO uses for results)" if isinstance(content, list) else ""
        raise ValueError(f"{json_path}: {_EXPECTED}, got a {type(content).__name__}{hint}")
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise ValueError(f"{json_path}: {_EXPECTED}; '{key}' is missing, found {list(content)}")
        if not isinstance(content[key], list):
            raise ValueError(
                f"{json_path}: {_EXPECTED}; '{key}' is a {type(content[key]).__name__}"
            )
    return content


def read_categories(json_path: str | os.PathLike) -> list:
    """The list ``categories`` as it stands in a json, usually without parsing the rest.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_coco_json`.
    """
    _require_file(json_path)
    path = os.path.abspath(json_path)
    stat = os.stat(path)
    return json.loads(_categories_as_text(path, stat.st_mtime_ns, stat.st_size))


@functools.lru_cache(maxsize=64)
def _categories_as_text(path: str, _changed: int, _size: int) -> str:
    # Kept as text, so that nobody can change what others will get.
    categories = _scan_categories(path)
    if categories is None:
        categories = read_coco_json(path)["categories"]
    return json.dumps(categories)


def _scan_categories(path: str) -> list | None:
    """The list of categories found by its key alone; None when that needs the real parser."""
    if os.path.getsize(path) == 0:
        return None
    with open(path, "rb") as stream:
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            # In a json a quote inside a string is escaped, so this can only be a key; and where
            # it is the only one of that name, it must be the one that counts.
            found = [match.end() for match in re.finditer(rb'"categories"\s*:\s*(?=\[)', data)]
            if len(found) != 1:
                return None
            tail = data[found[0] : found[0] + (1 << 22)]
    try:
        return json.JSONDecoder().raw_decode(tail.decode("utf-8", errors="ignore"))[0]
    except (ValueError, RecursionError):
        return None


def _require_file(json_path: str | os.PathLike) -> None:
    if os.path.isdir(json_path):
        raise ValueError(f"{json_path} is a folder; expected an annotation file in COCO format")
    require_exists(json_path)


def require_exists(path: str | os.PathLike) -> None:
    """Raise FileNotFoundError where nothing has this name, with what may be the reason."""
    if not os.path.exists(path):
        unset = re.findall(r"\$\{?(\w+)", os.fspath(path))
        reason = f"relative paths start at {os.getcwd()}"
        if unset:
            reason = f"the environment variable {unset[0]} is not set"
        raise FileNotFoundError(f"annotation file {path} does not exist ({reason})")


def write_coco_json(content: dict, path: str | os.PathLike) -> None:
    """Write a json, and its folders, so that nobody finds half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(content), encoding="utf-8")
    unfinished.replace(path)
