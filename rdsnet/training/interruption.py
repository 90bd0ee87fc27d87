"""What makes a resumed training go on as if nothing had happened: hooks of the trainer.

Weights, optimizer and learning rate are in every checkpoint of Detectron2. To be equal bit for bit
to an uninterrupted run, three more things must go on: random numbers, the order of the images
(:mod:`rdsnet.data.train_loader`), and the curves in ``metrics.json``.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from pathlib import Path

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from rdsnet.checkpoint.checkpointer import Checkpointer
from rdsnet.data.seeding import ITERATION, seed_everything

logger = logging.getLogger(__name__)

LOG_PERIOD = 20
"""Iterations between two lines of ``metrics.json``, as in Detectron2."""

# Losses are logged as the median of the last 20 iterations.
_HISTORY = 20


class SeedIterations(HookBase):
    """Gives every iteration a random state of its own; see :mod:`rdsnet.data.seeding`.

    The seed is that of the trainer's data loader, which a checkpoint keeps.
    """

    def before_step(self) -> None:
        seed = self.trainer.data_loader.seed
        seed_everything(seed, ITERATION, self.trainer.iter, comm.get_rank())


class MetricsHistory(HookBase):
    """Lets ``metrics.json`` go on as if the training had not been interrupted.

    A checkpoint keeps the latest values of every curve. When a training resumes, lines of
    iterations after the checkpoint are cut off, which are about to be done again.

    Args:
        metrics_file: path of ``metrics.json``; None: not this process' business.
    """

    def __init__(self, metrics_file: str | Path | None) -> None:
        self._metrics_file = metrics_file
        self._kept: dict[str, dict] = {}
        self.last_written = -1
        """The last iteration of the interrupted training that has a line in the file."""

    def state_dict(self) -> dict:
        storage = self.trainer.storage
        hints = storage.smoothing_hints()
        return {
            name: {"smooth": hints[name], "values": history.values()[-_HISTORY:]}
            for name, history in storage.histories().items()
        }

    def load_state_dict(self, state: dict) -> None:
        self._kept = state

    def before_train(self) -> None:
        start = self.trainer.start_iter
        if start > 0 and self._metrics_file is not None:
            self.last_written = cut_metrics(self._metrics_file, start)
        storage = self.trainer.storage
        for name, kept in self._kept.items():
            for value, iteration in kept["values"]:
                storage.histories()[name].update(value, iteration)
            storage.smoothing_hints()[name] = kept["smooth"]
            if iteration > self.last_written:
                storage.latest()[name] = (value, iteration)


def cut_metrics(path: str | Path, start: int) -> int:
    """Cut off the lines of ``metrics.json`` from iteration ``start`` on, and half-written ones.

    Lines that an earlier training has written into the same file are left alone.

    Returns:
        The last iteration that is left of this training, -1 if none.
    """
    try:
        with open(path, "rb") as file:
            lines = file.readlines()
    except FileNotFoundError:
        return -1
    iterations = [_iteration(line) for line in lines]
    first = 0  # line of this training: where the number of the iteration falls back
    for i, (before, after) in enumerate(zip(iterations, iterations[1:]), start=1):
        if before is not None and after is not None and after + LOG_PERIOD <= before:
            first = i
    last = -1
    for i in range(first, len(lines)):
        if iterations[i] is None or iterations[i] >= start:
            # The file is open for appending elsewhere, so it cannot be replaced by another.
            os.truncate(path, sum(map(len, lines[:i])))
            break
        last = max(last, iterations[i])
    return last


def _iteration(line: bytes) -> int | None:
    """The number in a line of ``metrics.json``; None for a line that is cut off."""
    try:
        return int(json.loads(line)["iteration"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None


class PeriodicWriter(hooks.PeriodicWriter):
    """Detectron2's; an interrupted training writes no last line: the resumed one will."""

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()
            return
        for writer in self._writers:
            writer.close()


class TrainingInterrupted(SystemExit):
    """SIGTERM or Ctrl-C; the exit status is the one of shells, 128 + the signal's number."""


class StopOnSignal(HookBase):
    """On SIGTERM or Ctrl-C: finish the iteration, write a checkpoint, say so, leave.

    In a run of several processes all stop after the same iteration. During an evaluation a process
    does not wait for its end. A second signal ends the process at once.

    Args:
        checkpointer: writes the checkpoint, in the main process.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, checkpointer: Checkpointer) -> None:
        self._checkpointer = checkpointer
        self._received = 0
        self._in_iteration = True
        self._previous: dict[int, object] = {}

    def before_train(self) -> None:
        if threading.current_thread() is threading.main_thread():  # Python allows it only there
            self._previous = {s: signal.signal(s, self._receive) for s in self.SIGNALS}

    def before_step(self) -> None:
        self._in_iteration = True

    def after_step(self) -> None:
        # The largest number: processes may have received different signals, or none yet.
        self._received = max(comm.all_gather(self._received))
        is_last = self.trainer.iter + 1 >= self.trainer.max_iter
        if is_last:  # all is saved, only the evaluation follows
            self._restore_handlers()
        elif self._received:
            self._stop()
        self._in_iteration = False

    def after_train(self) -> None:
        self._restore_handlers()

    def _receive(self, number: int, _frame: object) -> None:
        self._received = number
        self._restore_handlers()
        if not self._in_iteration:
            self._stop()

    def _stop(self) -> None:
        iteration = self.trainer.iter
        self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        if comm.is_main_process():
            logger.warning(
                f"{signal.Signals(self._received).name}: stopped after iteration {iteration}, "
                f"checkpoint written to {self._checkpointer.save_dir}. The same command with "
                "--resume goes on."
            )
        raise TrainingInterrupted(128 + self._received)

    def _restore_handlers(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
