"""What other threads do while the model computes: they read ahead of it and write behind it.

Both are bounded, keep the order, and raise an error where it would be raised without them: at its
item's turn. Threads are enough, since Pillow, OpenCV and PyTorch let others run while they compute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import cycle, islice
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


class Ahead(Iterator[T]):
    """The items of a generator, made by a thread from the beginning on.

    Args:
        items: runs in that thread alone.
        most: items that are made before they are asked for.
        thread: an executor of one thread.
    """

    def __init__(self, items: Generator[T, None, None], most: int, thread: Executor) -> None:
        self._items, self._thread = items, thread
        self._waiting = deque(self._ask() for _ in range(most))

    def __next__(self) -> T:
        oldest = self._waiting.popleft()
        self._waiting.append(self._ask())
        item = oldest.result()
        if item is _END:
            raise StopIteration
        return item

    def close(self) -> None:
        """Let the thread end the generator, when it has made the item that it is at."""
        for future in self._waiting:
            future.cancel()
        self._waiting.clear()
        self._thread.submit(self._items.close)

    def _ask(self) -> Future[T]:
        return self._thread.submit(next, self._items, _END)


def several_ahead(
    generators: Iterable[Generator[T, None, None]], number: int, most: int
) -> Generator[Ahead[T], None, None]:
    """Generators in their order, the current one and those behind it running ahead.

    Args:
        generators: done with when the next is asked for; all are when this one is closed.
        number: of those that run at the same time, each in a thread of its own.
        most: items of each that are made before they are asked for.
    """
    with ExitStack() as stack:
        # Threads stay: on a busy machine, to start one takes as long as to read an image.
        threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(number)]
        begun = (Ahead(items, most, thread) for items, thread in zip(generators, cycle(threads)))
        running = deque(islice(begun, number))
        try:
            while running:
                yield running[0]
                running.popleft().close()
                running.extend(islice(begun, 1))
        finally:
            for ahead in running:
                ahead.close()


class Behind:
    """Calls of a function that a thread makes later, one after the other.

    A context manager. At its end, also by an error or Ctrl-C, all calls are made; a second Ctrl-C
    drops those that wait, never the one under way. After a call that fails no other is made.

    Args:
        function: to be called.
        most: calls that wait or are under way; more have to wait for them.
    """

    def __init__(self, function: Callable[..., None], most: int) -> None:
        self._function, self._most = function, most
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()
        self._error: BaseException | None = None

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._thread.shutdown()
        except KeyboardInterrupt:
            self._thread.shutdown(cancel_futures=True)
            raise
        self._raise()

    def __call__(self, *arguments: Any) -> None:
        """Raises the error of a call that has failed."""
        if len(self._waiting) == self._most:
            self._waiting.popleft().result()
        self._raise()
        self._waiting.append(self._thread.submit(self._call, *arguments))

    def _call(self, *arguments: Any) -> None:
        if self._error is None:
            try:
                self._function(*arguments)
            except BaseException as error:
                self._error = error

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
