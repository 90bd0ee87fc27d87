"""What Prometheus is told."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Of one service; several in a process do not mix.

    Args:
        inside: how many requests are on their way.
    """

    def __init__(self, inside: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "rdsnet_requests",
            "Images asked for, by the answer's status.",
            ["status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "rdsnet_request_seconds",
            "From a request to its answer, whatever its status.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.model_seconds = Histogram(
            "rdsnet_model_seconds", "The model, per batch.", buckets=_SECONDS, registry=registry
        )
        self.batch_images = Histogram(
            "rdsnet_batch_images",
            "Images that the model saw at once.",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=registry,
        )
        self.objects = Counter("rdsnet_objects", "Objects in answers.", registry=registry)
        waiting = Gauge(
            "rdsnet_requests_inside", "Requests that wait or are under way.", registry=registry
        )
        waiting.set_function(inside)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)


class Counted:
    """Counts and times the requests of one path, also those that are refused on the way.

    Args:
        app: answers them.
        path: the others are not counted, so that nobody makes up labels.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, path: str) -> None:
        self._app, self._metrics, self._path = app, metrics, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != self._path:
            await self._app(scope, receive, send)
            return
        status, start = 500, time.perf_counter()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            self._metrics.requests.labels(str(status)).inc()
            self._metrics.seconds.observe(time.perf_counter() - start)
