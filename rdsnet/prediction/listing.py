"""What ``--engine ray`` is to predict: paths and addresses with the sizes of the files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain

import pyarrow.parquet as pq
from pyarrow import fs

from rdsnet.data.findings import printable
from rdsnet.prediction.addresses import files_at, is_address, name_at, opened
from rdsnet.prediction.sources import Source, Sources, find_sources

Listed = tuple[str, int | None]
"""A path or an address, and the size in bytes; None: not known."""

_COLUMN = "path"


def listed_inputs(inputs: Sequence[str]) -> tuple[Iterator[Listed], list[Source], str]:
    """Find what a command line names.

    Args:
        inputs: as of :func:`~rdsnet.prediction.sources.find_sources`, addresses of images, videos
            and of folders of them, and parquet files with a column ``path``, whose order is kept
            and which are read while they are asked for.

    Returns:
        All of it; the sources that are files of this machine; a sentence on what was left out.

    Raises:
        FileNotFoundError, OSError, ValueError: for what is missing or does not fit.
    """
    lists, sources, left_out = [], {}, Counter()
    addresses: dict[str, int] = {}
    for word in inputs:
        if name_at(word).suffix.lower() == ".parquet":
            lists.append(_in_table(word))
        elif is_address(word):
            new = {path: size for path, size in files_at(word) if path not in addresses}
            addresses |= new
            lists.append(new.items())
        else:
            found = find_sources([word])
            new = [source for source in found.sources if source not in sources]
            for source in new:
                if source.camera is not None:
                    raise ValueError("--engine ray predicts files: a camera needs --engine local")
            sources |= dict.fromkeys(new)
            left_out += found.left_out
            lists.append([(str(source.path), _size(source)) for source in new])
    return chain(*lists), list(sources), Sources([], left_out).left_out_text()


def _size(source: Source) -> int | None:
    try:
        return os.stat(source.path).st_size
    except OSError:  # whoever reads it says why it cannot be read
        return None


def _in_table(word: str) -> Iterator[Listed]:
    if is_address(word):
        system, path = opened(word)
    else:
        system, path = fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(word))
    try:
        table = pq.ParquetFile(system.open_input_file(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--input: '{printable(word)}' does not exist.") from error
    except ValueError as error:
        raise ValueError(f"--input: '{printable(word)}' is no parquet file: {error}") from error
    if _COLUMN not in table.schema_arrow.names:
        names = ", ".join(table.schema_arrow.names)
        raise ValueError(
            f"--input: '{printable(word)}' has no column '{_COLUMN}'; it has: {names}. Rename the "
            "column of the paths."
        )
    return _paths(table, word)


def _paths(table: pq.ParquetFile, word: str) -> Iterator[Listed]:
    for batch in table.iter_batches(columns=[_COLUMN]):
        for path in batch[_COLUMN].to_pylist():
            if not path or not isinstance(path, str | bytes):
                raise ValueError(f"--input: '{printable(word)}' has a row without a path")
            yield os.fsdecode(path), None
