"""A folder of predictions that is filled shard by shard, in any order, by any number of processes.

``run.json`` says by which model and settings; ``inputs.parquet`` which files, a row group per
shard; ``shards/000000.parquet`` what was found in the first ``shard_size`` of them, and so on. Each
is there completely or not at all, so that a run goes on where the last one ended, however that was.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rdsnet.checkpoint.atomic import remove_unfinished, write_atomically
from rdsnet.data.findings import printable

INPUTS = pa.schema([("path", pa.binary()), ("size", pa.int64())])
"""``path`` as bytes, since names of files need not be text; ``size`` in bytes, null: not known."""

# Ending of a file that is whole and has not got its name yet.
_NEW = ".new"
# Differing settings that a message names, at most.
_MOST_NAMED = 3


Predict = Callable[[dict[str, np.ndarray]], pa.Table]


class Shards:
    """The folder, see above.

    Args:
        folder: made by :meth:`begin`; on several machines one that all of them see.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self._run, self._inputs = self.folder / "run.json", self.folder / "inputs.parquet"
        self._shards = self.folder / "shards"

    def begin(self, settings: dict, inputs: Iterable[tuple[str, int | None]], size: int) -> None:
        """Set the folder up, or check that it belongs to the same run.

        Files whose size has changed since will be predicted again.

        Args:
            settings: what results depend on: values by name, such as JSON has them.
            inputs: paths and sizes (None: not known).
            size: files per shard.

        Raises:
            ValueError: the folder has results of another model, other settings or other files.
            OSError: it cannot be written.
        """
        settings = json.loads(json.dumps(settings | {"--shard-size": size}))  # no tuples
        self._shards.mkdir(parents=True, exist_ok=True)
        for folder in (self.folder, self._shards):
            remove_unfinished(folder)
            for path in folder.glob(f"*{_NEW}"):
                path.unlink(missing_ok=True)
        if self._run.exists():
            self._check_settings(settings)
        elif any(self._shards.iterdir()):
            raise ValueError(
                f"'{printable(self._shards)}' has results, but {self._run.name}, which says by "
                "which model, is missing. Take another --output."
            )
        listed = self._inputs.with_suffix(_NEW)
        write_atomically(listed, partial(_write_inputs, inputs=iter(inputs), size=size))
        if self._inputs.exists():
            self._drop_changed(pq.ParquetFile(listed), pq.ParquetFile(self._inputs))
        os.replace(listed, self._inputs)
        text = json.dumps(settings, indent=1) + "\n"
        write_atomically(self._run, lambda file: file.write(text.encode("utf-8")))

    def _check_settings(self, settings: dict) -> None:
        there = json.loads(self._run.read_text(encoding="utf-8"))
        names = sorted(settings.keys() | there.keys())
        differ = [name for name in names if settings.get(name) != there.get(name)]
        if differ:
            shown = [
                f"{name} was {there.get(name)!r} and is {settings.get(name)!r}"
                for name in differ[:_MOST_NAMED]
            ]
            more = f", and {len(differ) - _MOST_NAMED} more" if len(differ) > _MOST_NAMED else ""
            raise ValueError(
                f"'{printable(self.folder)}' has results of another run: {'; '.join(shown)}{more}. "
                "Take another --output, or the model and the settings of then."
            )

    def _drop_changed(self, new: pq.ParquetFile, old: pq.ParquetFile) -> None:
        changed = []
        for shard in range(max(new.num_row_groups, old.num_row_groups)):
            rows = [_row_group(file, shard) for file in (new, old)]
            if rows[0].equals(rows[1]):
                continue
            changed.append(shard)
            nothing = {"path": b""}
            for now, then in zip_longest(*(part.to_pylist() for part in rows), fillvalue=nothing):
                if now["path"] != then["path"]:
                    was, is_ = (printable(os.fsdecode(row["path"])) for row in (then, now))
                    raise ValueError(
                        f"'{printable(self.folder)}' has results of other files: where --input has "
                        f"'{is_}' now, it had '{was}'. Take another --output, or the files of then."
                    )
        for shard in changed:
            self._path(shard).unlink(missing_ok=True)

    def __len__(self) -> int:
        return self._listed.num_row_groups

    @cached_property
    def _listed(self) -> pq.ParquetFile:
        return pq.ParquetFile(self._inputs)

    def _path(self, shard: int) -> Path:
        return self._shards / f"{shard:06d}.parquet"

    def missing(self, retry_failed: bool = False) -> list[int]:
        """The shards that are not there; with ``retry_failed`` also those with failures."""
        there = {path.stem for path in self._shards.glob("*.parquet")}
        return [
            shard
            for shard in range(len(self))
            if self._path(shard).stem not in there or (retry_failed and self._has_failed(shard))
        ]

    def _has_failed(self, shard: int) -> bool:
        errors = self.read(shard, ["error"])["error"]
        return errors.null_count < len(errors)

    def first(self, shard: int) -> int:
        """The number of the first file of a shard in the run."""
        return shard * self._listed.metadata.row_group(0).num_rows

    def inputs(self, shard: int) -> list[str]:
        """The paths of the files of a shard."""
        return [os.fsdecode(path.as_py()) for path in self._listed.read_row_group(shard)["path"]]

    def read(self, shard: int, columns: list[str] | None = None) -> pa.Table:
        """The rows of a shard: those of ``RayPredictor``, and ``input``, the number in the run.

        Raises:
            ValueError: the file is damaged.
        """
        path = self._path(shard)
        try:
            return pq.read_table(path, columns=columns)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"'{printable(path)}' is damaged ({error}): delete it, and run the same command "
                "again"
            ) from error

    def complete(self, shard: int, predict: Predict, retry_failed: bool = False) -> None:
        """Predict what is missing of a shard, and write it.

        Args:
            predict: a ``RayPredictor``.
            retry_failed: predict files again that could not be read.
        """
        paths, old = self.inputs(shard), None
        first = self.first(shard)
        wanted = np.arange(first, first + len(paths))
        if self._path(shard).exists():
            old = self.read(shard)
            failed = old.filter(pc.is_valid(old["error"]))["input"].unique()
            if not retry_failed:
                return
            old = old.filter(pc.invert(pc.is_in(old["input"], value_set=failed)))
            wanted = failed.to_numpy()
        batch = {"path": [os.fsencode(paths[n - first]) for n in wanted], "input": wanted}
        table = predict(batch)
        if old is not None:
            together = pa.concat_tables([old, table]).sort_by("input")
            # Built anew, the file is byte for byte the one of a shard without failures.
            table = pa.Table.from_pylist(together.to_pylist(), table.schema)
        # A worker that everyone takes for dead may still be writing the same shard.
        new = self._path(shard).with_suffix(f".{uuid.uuid4().hex}{_NEW}")
        write_atomically(new, lambda file: pq.write_table(table, file))
        os.replace(new, self._path(shard))


def _row_group(file: pq.ParquetFile, shard: int) -> pa.Table:
    return file.read_row_group(shard) if shard < file.num_row_groups else INPUTS.empty_table()


def _write_inputs(file: BinaryIO, inputs: Iterator[tuple[str, int | None]], size: int) -> None:
    with pq.ParquetWriter(file, INPUTS) as writer:
        while group := list(islice(inputs, size)):
            paths, sizes = zip(*group)
            columns = [list(map(os.fsencode, paths)), list(sizes)]
            writer.write_table(pa.table(columns, schema=INPUTS), row_group_size=size)
