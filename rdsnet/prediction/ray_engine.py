"""``rdsnet predict --engine ray``: prediction on many processes and machines by Ray Data.

Ray says which process predicts which shard, and has another one do it again where one dies; the
folder of :mod:`~rdsnet.prediction.shards` remembers what is done. Formats are written from there,
in the order of the files.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
import ray
import ray.data
import yaml
from tqdm import tqdm

from rdsnet.checkpoint.trained import wanted_device
from rdsnet.data.findings import counted, printable
from rdsnet.prediction.addresses import is_address, name_at
from rdsnet.prediction.large_files import LargeSummary, check_is_tileable
from rdsnet.prediction.listing import listed_inputs
from rdsnet.prediction.output_names import OutputNames
from rdsnet.prediction.pipeline import say
from rdsnet.prediction.ray_predictor import RayPredictor
from rdsnet.prediction.rows import frame_of, instances_of
from rdsnet.prediction.selection import Selection
from rdsnet.prediction.shards import Shards
from rdsnet.prediction.sources import chosen_pages
from rdsnet.prediction.thresholds import AUTO
from rdsnet.prediction.writers import WRITERS, build_writers
from rdsnet.ray_cluster import connected

PARQUET = "parquet"
"""The format of the shards themselves."""
SHARD_SIZE = 256
FAILURES = "failures.csv"

# How often a shard is tried whose worker dies: what an image does to a process, it may do again.
_TRIES = 3
# Failures that are told one by one.
_MOST_TOLD = 20


@dataclass
class RaySummary(LargeSummary):
    """What :func:`predict_with_ray` did, and what earlier runs into the same folder have done.

    Attributes:
        done_before: shards that were there.
        missing: inputs of every shard that could not be finished: the first of them, and how many.
    """

    done_before: int = 0
    missing: list[tuple[str, int]] = field(default_factory=list)

    def text(self) -> str:
        lines = [super().text()]
        if self.done_before:
            lines.append(f"{counted(self.done_before, 'shard')} of an earlier run were kept.")
        if self.unreadable:
            lines.append(
                f"{printable(self.output / FAILURES)} names them; --retry-failed tries them again."
            )
        for first, number in self.missing[:_MOST_TOLD]:
            lines.append(f"Not finished: {counted(number, 'file')} from '{printable(first)}' on.")
        if self.missing:
            lines.append(
                f"{counted(len(self.missing), 'shard')} could not be finished, for the reasons "
                "above, so no other formats were written. The same command tries again."
            )
        return "\n".join(lines)


def predict_with_ray(
    config_file: str | None,
    weights: str,
    inputs: Sequence[str],
    output: str | Path,
    *,
    formats: Sequence[str] = (PARQUET,),
    workers: int | None = None,
    address: str | None = None,
    retry_failed: bool = False,
    shard_size: int | None = None,
    score_threshold: float | str = AUTO,
    classes: Sequence[str] = (),
    max_frames: int | None = None,
    pages: str = "all",
    tiled: bool = False,
    tile: int | None = None,
    overlap: int | None = None,
    max_detections: int | None = None,
    batch_size: int | None = None,
    opts: Sequence[str] = (),
    trust_checkpoint: bool = False,
) -> RaySummary:
    """As :func:`rdsnet.prediction.predict`, or with ``tiled`` as
    :func:`~rdsnet.prediction.large_files.predict_large_files`, by several workers.

    What ``output`` has of an earlier, unfinished run is kept.

    Args:
        inputs: see :func:`~rdsnet.prediction.listing.listed_inputs`.
        output: a folder that all workers see.
        formats: "parquet", and those whose writers take parts.
        workers: processes, with one CPU each, or one GPU where Ray has any; None: as many as there
            are.
        address: of a Ray cluster; None: RAY_ADDRESS, or else this machine alone. Ignored where
            ``ray.init`` was called before.
        retry_failed: read files again that could not be read in an earlier run.
        shard_size: files that are predicted and written at once; None: 256.
        Others: as there.

    Raises:
        FileNotFoundError, OSError, ValueError: for what is missing or does not fit.
    """
    _check_formats(formats)
    chosen_pages(pages)
    listed, local, left_out = listed_inputs(inputs)
    if tiled:
        check_is_tileable(weights, local)
    chosen = {
        "config_file": config_file,
        "score_threshold": score_threshold,
        "classes": list(classes),
        "max_detections": max_detections,
        "opts": list(opts),
    }
    how = {"max_frames": max_frames, "pages": pages}
    how |= {"tiled": tiled, "tile": tile, "overlap": overlap}
    selection = Selection.chosen(weights=weights, **chosen)
    shards = Shards(Path(output).absolute())
    given = {"classes": sorted(classes), "max-detections": max_detections}
    given |= {"max-frames": max_frames, "pages": pages}
    given |= {"tile": (tile or "auto") if tiled else None, "overlap": overlap}
    shards.begin(_identity(selection, given), listed, shard_size or SHARD_SIZE)
    summary = RaySummary(Path(output), selection.thresholds)
    summary.max_detections = selection.cfg.TEST.DETECTIONS_PER_IMAGE
    summary.left_out = left_out
    wanted = shards.missing(retry_failed)
    summary.done_before = len(shards) - len(wanted)
    if wanted:
        predictor = chosen | how | {"weights": selection.cfg.MODEL.WEIGHTS}
        predictor |= {"batch_size": batch_size, "trust_checkpoint": trust_checkpoint}
        with connected(address, workers):
            on_gpu = wanted_device(config_file, selection.cfg.MODEL.WEIGHTS, opts) != "cpu"
            _predict_shards(shards, wanted, predictor, retry_failed, workers, on_gpu)
        for shard in shards.missing():
            paths = shards.inputs(shard)
            summary.missing.append((paths[0], len(paths)))
    _write_formats(shards, [] if summary.missing else formats, selection, summary)
    return summary


def _check_formats(formats: Sequence[str]) -> None:
    """Raise ValueError for formats that need the images."""
    without_images = (
        name for name, writer in WRITERS.items() if writer.takes_parts and not writer.reads_images
    )
    known = [PARQUET, *without_images]
    if unknown := [name for name in formats if name not in known]:
        raise ValueError(
            f"--engine ray writes the formats {', '.join(known)}: the others draw or keep whole "
            f"images; got {', '.join(unknown)}"
        )


def _identity(selection: Selection, given: dict) -> dict:
    """What results depend on, by the names that the user knows."""
    config = yaml.safe_load(selection.cfg.dump())
    config["MODEL"].pop("WEIGHTS"), config["MODEL"].pop("DEVICE"), config.pop("OUTPUT_DIR")
    weights = selection.cfg.MODEL.WEIGHTS
    return {
        "--weights": _sha256(weights) if os.path.isfile(weights) else weights,
        "--score-threshold": list(selection.thresholds.of_classes),
        **{f"--{name}": value for name, value in given.items()},
        **dict(_flat(config)),
    }


def _flat(config: dict, before: str = "") -> Iterator[tuple[str, object]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _predict_shards(
    shards: Shards,
    wanted: Sequence[int],
    predictor: dict,
    retry_failed: bool,
    workers: int | None,
    on_gpu: bool,
) -> None:
    resources = ray.cluster_resources()
    on_gpu = on_gpu and resources.get("GPU", 0) >= 1
    workers = workers or max(1, int(resources["GPU" if on_gpu else "CPU"]))
    # A block per shard: so Ray hands them out one by one.
    dataset = ray.data.from_items(
        [{"shard": shard} for shard in wanted], override_num_blocks=len(wanted)
    ).map_batches(
        _ShardPredictor,
        fn_constructor_args=(str(shards.folder), os.getcwd(), predictor, retry_failed),
        batch_size=1,
        # One at a time: what waited for a worker that dies would count as tried, too.
        compute=ray.data.ActorPoolStrategy(
            size=min(workers, len(wanted)), max_tasks_in_flight_per_actor=1
        ),
        num_cpus=1,
        num_gpus=1 if on_gpu else 0,
        max_task_retries=_TRIES - 1,
    )
    dataset.context.max_errored_blocks = -1  # the other shards are predicted all the same
    dataset.context.enable_progress_bars = False
    try:
        with tqdm(total=len(wanted), unit="shard", disable=None) as progress:
            for batch in dataset.iter_batches(batch_size=None):
                progress.update(len(batch["shard"]))
    except ray.exceptions.RayError as error:  # no worker could begin, or the cluster is gone
        raise OSError(
            f"Ray has given up: {error}\nWhat is finished is kept; the same command goes on there."
        ) from error


class _ShardPredictor:
    """What an actor does: its shards, one after the other."""

    def __init__(self, folder: str, here: str, predictor: dict, retry_failed: bool) -> None:
        if os.path.isdir(here):  # paths on the command line are relative to it
            os.chdir(here)
        self._shards, self._retry_failed = Shards(folder), retry_failed
        self._predict = RayPredictor(**predictor)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for shard in batch["shard"].tolist():
            self._shards.complete(shard, self._predict, self._retry_failed)
        return batch


def _write_formats(
    shards: Shards, formats: Sequence[str], selection: Selection, summary: RaySummary
) -> None:
    """Write what the shards have, and count it."""
    others, names = [name for name in formats if name != PARQUET], OutputNames()
    columns = None if others else ["input", "part", "objects", "cut_off", "too_large", "error"]
    with ExitStack() as stack:
        writers = build_writers(others, summary.output, selection.metadata)
        writers = [stack.enter_context(writer) for writer in writers]
        summary.written = ["shards/"] + [file for writer in writers for file in writer.files]
        failures = _Failures(summary.output / FAILURES)
        for path, rows in _files(shards, columns):
            name = None
            for row in rows:
                if row["error"] is not None:
                    failures.add(path, row["error"])
                    continue
                summary.images += not row["part"]
                summary.objects += row["objects"]
                summary.cut_off += row["cut_off"]
                summary.too_large += row["too_large"]
                if writers:
                    frame = frame_of(row, path if is_address(path) else Path(path))
                    name = name or names.new(name_at(path).stem, frame.is_one_of_many)
                    instances = instances_of(row)
                    for writer in writers:
                        writer.write(frame.named(name), instances)
        failures.end()
        summary.unreadable = failures.number


def _files(shards: Shards, columns: Sequence[str] | None) -> Iterator[tuple[str, list[dict]]]:
    """The path of every file of the shards that are there, and its rows."""
    missing = set(shards.missing())
    for shard in range(len(shards)):
        if shard in missing:
            continue
        paths, first = shards.inputs(shard), shards.first(shard)
        rows = shards.read(shard, columns).to_pylist()
        for number, of_file in groupby(rows, key=lambda row: row["input"]):
            yield paths[number - first], list(of_file)


class _Failures:
    """``failures.csv``: files that could not be read, and why; no file where there are none."""

    def __init__(self, path: Path) -> None:
        self._path, self._file, self.number = path, None, 0
        path.unlink(missing_ok=True)

    def add(self, path: str, reason: str) -> None:
        if self._file is None:
            self._file = open(self._path, "w", newline="", encoding="utf-8")
            self._rows = csv.writer(self._file)
            self._rows.writerow(["file", "reason"])
        self._rows.writerow([printable(path), reason])
        self.number += 1
        if self.number <= _MOST_TOLD:
            say(f"skipped: {reason}")

    def end(self) -> None:
        if self._file is not None:
            self._file.close()
