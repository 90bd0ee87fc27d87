"""An image on its way: admitted, read, prepared, found, written; bounded at every step."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO

import torch
from detectron2.structures import Instances

from rdsnet.prediction.pipeline import usual_batch_size
from rdsnet.prediction.selection import chosen_classes
from rdsnet.prediction.thresholds import ScoreThresholds, certain
from rdsnet.prediction.uploads import UploadPredictor
from rdsnet.serve.answers import FORMATS, Answer
from rdsnet.serve.batches import Batches
from rdsnet.serve.metrics import Metrics

# Batches in a row that may fail before the service calls itself ill, so that it is started anew.
_FAILURES = 3
_LONGEST_WAIT = 60  # seconds after which to come again, at most


class OverloadedError(Exception):
    """Too many requests are inside.

    Attributes:
        seconds: after which there should be room.
    """

    def __init__(self, inside: int, seconds: int) -> None:
        super().__init__(f"{inside} images wait already: try again in {seconds} s.")
        self.seconds = seconds


class GoneError(Exception):
    """Whoever has asked does not wait for the answer any more."""


class Service:
    """The model for many at once.

    Whoever is admitted is answered. Those who wait have their image in a file; the pixels of a few
    are in memory, however many wait.

    Args:
        predictor: the model.
        max_waiting: requests inside at most, those whose body still comes among them.
        batch_size: images that the model sees at once, if they wait and have one size; None: one on
            a CPU, some on a GPU.
    """

    def __init__(
        self, predictor: UploadPredictor, max_waiting: int, batch_size: int | None = None
    ) -> None:
        self.predictor, self.max_waiting = predictor, max_waiting
        self.metrics = Metrics(lambda: self.inside)
        self.inside = 0
        batch_size = batch_size or usual_batch_size(predictor.cfg)
        # A batch in the model, the next one behind it, and two that are read or written.
        at_once = 2 * batch_size + 2
        self._in_memory = asyncio.Semaphore(at_once)
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="image")
        self._batches = Batches(self._find_batch, batch_size)
        self._seconds_per_image = 1.0
        self._failures = 0

    @property
    def is_well(self) -> bool:
        """False where the model has failed again and again, as after an error of a GPU."""
        return self._failures < _FAILURES

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Raises OverloadedError where too many are inside."""
        if self.inside >= self.max_waiting:
            seconds = math.ceil(self.inside * self._seconds_per_image)
            raise OverloadedError(self.inside, min(max(seconds, 1), _LONGEST_WAIT))
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def thresholds(self, wanted: float | None) -> float | ScoreThresholds:
        """Those of the model where nothing is wanted.

        Raises:
            ValueError: the model does not look for objects of such scores.
        """
        if wanted is None:
            return self.predictor.thresholds
        if wanted < self.predictor.lowest_score:
            raise ValueError(
                f"score_threshold: {wanted:g} is below {self.predictor.lowest_score:g}, from which "
                "on objects are looked for. Ask for a higher one, or start this with a lower "
                "--lowest-score."
            )
        return wanted

    def classes(self, wanted: Sequence[str]) -> torch.Tensor | None:
        """Class numbers of names or category ids, None: all.

        Raises:
            ValueError: the model has no such class.
        """
        try:
            return chosen_classes(wanted, self.predictor.class_names, self.predictor.category_ids)
        except ValueError as error:
            raise ValueError(str(error).removeprefix("--")) from None

    async def answer(
        self,
        name: str,
        stream: BinaryIO,
        format: str,
        score: float | ScoreThresholds,
        classes: torch.Tensor | None,
        is_gone: Callable[[], Awaitable[bool]],
    ) -> tuple[bytes, dict[str, str]]:
        """What is found in an image, in a format, and the headers that belong to it.

        Args:
            name, stream: of the image; the stream is closed.
            format: a key of :data:`~rdsnet.serve.answers.FORMATS`.
            score: objects with lower ones are left out.
            classes: numbers of those that are kept; None: all.
            is_gone: whether nobody waits for the answer any more.

        Raises:
            RefusedUploadError: the image is not taken.
            GoneError: nobody has waited, and the model was spared.
        """
        with stream:
            async with self._in_memory:
                if await is_gone():
                    raise GoneError
                read = partial(self.predictor.read, name, stream=stream)
                upload = await self._in_thread(read)
                prepared = await self._in_thread(partial(self.predictor.prepare, upload))
                instances, is_cut_off = await self._batches.find(prepared)
                instances = certain(instances, score)
                if classes is not None:
                    instances = instances[torch.isin(instances.pred_classes, classes)]
                metadata = self.predictor.class_names, self.predictor.category_ids
                answer = Answer(upload, instances, is_cut_off, *metadata)
                content = await self._in_thread(partial(FORMATS[format].write, answer))
        self.metrics.objects.inc(len(instances))
        return content, answer.headers()

    def close(self) -> None:
        """End the threads, when they have done what they are at."""
        self._batches.close()
        self._threads.shutdown()

    async def _in_thread(self, function: Callable):
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    def _find_batch(self, prepared: Sequence[dict]) -> list[tuple[Instances, bool]]:
        """Objects of every image, and whether there were more; in the model's thread."""
        start = time.perf_counter()
        predictor = self.predictor.predictor
        try:
            found = [result["instances"].to("cpu") for result in predictor.find(prepared)]
        except BaseException:
            self._failures += 1
            raise
        self._failures = 0
        seconds = time.perf_counter() - start
        self.metrics.model_seconds.observe(seconds)
        self.metrics.batch_images.observe(len(prepared))
        self._seconds_per_image += (seconds / len(prepared) - self._seconds_per_image) / 10
        return list(zip(found, predictor.were_cut_off, strict=True))
