"""Files by their addresses, such as ``s3://bucket/a.png``: everything that pyarrow reaches."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from pyarrow import fs

from rdsnet.data.image_formats import has_image_ending
from rdsnet.data.videos import is_video
from rdsnet.prediction.output_names import as_file_name
from rdsnet.prediction.sources import Frame, Source, source_of


def is_address(path: str) -> bool:
    """Whether it begins as ``s3://`` does, rather than being a path of this machine."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) is not None


def opened(address: str) -> tuple[fs.FileSystem, str]:
    """The file system of an address, and the path there.

    Behind ``?`` may stand options that pyarrow knows, such as ``endpoint_override``.

    Raises:
        ValueError: pyarrow knows no such addresses.
    """
    place, mark, options = address.partition("?")
    try:
        return fs.FileSystem.from_uri(quote(place, safe=":/@") + mark + options)
    except ValueError as error:
        raise ValueError(f"'{address}' is no address that pyarrow can open: {error}") from error


def files_at(address: str) -> Iterator[tuple[str, int]]:
    """The addresses and sizes in bytes of an image or video, or of those directly in a folder.

    Raises:
        FileNotFoundError: there is nothing, or nothing of the kind.
        OSError, ValueError: it cannot be reached.
    """
    system, path = opened(address)
    info = system.get_file_info(path)
    if info.type == fs.FileType.File:
        yield address, info.size
        return
    if info.type == fs.FileType.NotFound:
        raise FileNotFoundError(f"--input: '{address}' does not exist.")
    wanted = [
        file
        for file in system.get_file_info(fs.FileSelector(path))
        if file.type == fs.FileType.File
        and not file.base_name.startswith(".")
        and (has_image_ending(file.base_name) or is_video(file.base_name))
    ]
    if not wanted:
        raise FileNotFoundError(f"--input: '{address}' has no file with the ending of an image.")
    for file in sorted(wanted, key=lambda file: file.base_name):
        place, mark, options = address.partition("?")
        yield f"{place.rstrip('/')}/{file.base_name}{mark}{options}", file.size


def name_at(path: str) -> PurePosixPath:
    """What names the file at the end of a path or an address."""
    return PurePosixPath(path.partition("?")[0] if is_address(path) else path)


@contextmanager
def local_copy(path: str) -> Generator[Path, None, None]:
    """The file itself, or a copy of what is at an address, under the same name.

    Raises:
        OSError, ValueError: it cannot be reached; also what is raised inside, about the address.
    """
    if not is_address(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / as_file_name(name_at(path).name)
        try:
            system, inside = opened(path)
            here = fs.LocalFileSystem()
            fs.copy_files(inside, str(local), source_filesystem=system, destination_filesystem=here)
            yield local
        except (OSError, ValueError) as error:
            text = str(error).replace(str(local), path)
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(text if path in text else f"'{path}' cannot be read: {text}") from error


@dataclass(frozen=True)
class _RemoteSource(Source):
    """A file at an address, copied when it is read."""

    address: str = ""

    def frames(self, *how) -> Generator[Frame, None, None]:
        with local_copy(self.address) as local:
            for frame in source_of(str(local)).frames(*how):
                yield replace(frame, path=self.address)


def source_at(path: str) -> Source:
    """An image or video by its path or address."""
    if is_address(path):
        return _RemoteSource(Path(name_at(path).name), address=path)
    return source_of(path)
