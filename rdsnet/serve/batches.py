"""The model's one thread: it takes together what waits and has one size."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Batches:
    """Asks the model for images that come one at a time, from requests at the same moment.

    Args:
        find: what is found in images of one size; called in one thread alone.
        size: images that the model sees at once, at most.
    """

    def __init__(self, find: Callable[[Sequence[dict]], Sequence[Any]], size: int) -> None:
        self._find, self._size = find, size
        self._waiting: deque[tuple[dict, Future]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def find(self, prepared: dict) -> Any:
        """What is found in an image as :meth:`rdsnet.prediction.Predictor.prepare` gives it."""
        future: Future = Future()
        self._waiting.append((prepared, future))
        # One call per image, though some find nothing left to do: none is ever forgotten.
        self._thread.submit(self._run_next)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Answer what waits and end the thread."""
        self._thread.shutdown()

    def _run_next(self) -> None:
        batch = self._next()
        if not batch:
            return
        try:
            results = self._find([prepared for prepared, _ in batch])
        except BaseException as error:
            for _, future in batch:
                future.set_exception(error)
        else:
            for (_, future), result in zip(batch, results, strict=True):
                future.set_result(result)

    def _next(self) -> list[tuple[dict, Future]]:
        """Those that have waited longest, without the cancelled ones; padding changes results."""
        batch: list[tuple[dict, Future]] = []
        while self._waiting and len(batch) < self._size:
            if batch and self._waiting[0][0]["image"].shape != batch[0][0]["image"].shape:
                break
            prepared, future = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                batch.append((prepared, future))
        return batch
