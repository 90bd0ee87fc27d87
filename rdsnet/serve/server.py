"""The beginning and the end of the service."""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence
from contextlib import contextmanager

from rdsnet.prediction.uploads import UploadPredictor

# Whoever is inside when the service is told to end is answered; after so many seconds no more.
_SECONDS_TO_END = 60
# What the service needs and the package does not: import names of the extra "serve".
_EXTRA = ("fastapi", "prometheus_client", "python_multipart", "swagger_ui_bundle", "uvicorn")


def serve(
    config_file: str | None,
    weights: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_upload_mb: float = 20.0,
    max_upload_seconds: float = 60.0,
    max_megapixels: float = 50.0,
    max_waiting: int = 128,
    lowest_score: float = 0.05,
    max_detections: int | None = None,
    batch_size: int | None = None,
    opts: Sequence[str] = (),
    trust_checkpoint: bool = False,
) -> None:
    """Load the model and answer requests until Ctrl-C or SIGTERM, then those that are inside.

    Arguments: see ``rdsnet serve --help``.

    Raises:
        ModuleNotFoundError: without what the extra "serve" installs.
        FileNotFoundError, ValueError: for a config or weights that are missing or do not fit.
        OSError: the port is taken, or the address not this machine's.
    """
    with _explained_imports():
        import python_multipart  # noqa: F401 (starlette looks for it with the first form)
        import uvicorn

        from rdsnet.serve.service import Service
        from rdsnet.serve.web import build_app
    predictor = UploadPredictor(
        config_file, weights, max_megapixels, opts, trust_checkpoint, max_detections, lowest_score
    )
    service = Service(predictor, max_waiting, batch_size)
    config = uvicorn.Config(
        build_app(service, max_upload_mb, max_upload_seconds),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_SECONDS_TO_END,
    )
    with _listening(host, port) as listening:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        print(f"RDSNet answers on {address}/predict ({address}/docs; Ctrl-C ends it).", flush=True)
        if host not in ("127.0.0.1", "localhost", "::1"):
            print("Whoever reaches this machine over the network can use it.", flush=True)
        # uvicorn repeats the signal that ended it, when all is answered: then it is no error.
        previous = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:
            pass
        finally:
            signal.signal(signal.SIGTERM, previous)
    print("Ended; whoever was inside has been answered.", flush=True)


@contextmanager
def _explained_imports():
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA:
            raise
        raise ModuleNotFoundError(
            f"the service needs {package}: pip install 'rdsnet[serve]'", name=error.name
        ) from error


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise OSError(
            f"cannot answer on port {port} of '{host}': {error}. Choose another --port (0: a free "
            "one) or --host."
        ) from error
