"""Ray, on this machine or on a cluster: what prediction and training by Ray begin with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from rdsnet.openmp import usable_cpus


@contextmanager
def connected(address: str | None, workers: int | None) -> Iterator[None]:
    """Ray, of this machine alone where no address is given.

    Args:
        address: of a cluster; None: RAY_ADDRESS, or else this machine alone. Ignored where
            ``ray.init`` was called before.
        workers: processes that this machine alone must have room for.

    Raises:
        OSError: Ray cannot be started or reached.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # images and habits are nobody's business
    alone = not address and not os.environ.get("RAY_ADDRESS")
    own = {"num_cpus": max(workers or 1, usable_cpus()), "include_dashboard": False}
    try:
        ray.init(address, **(own if alone else {}))
    except Exception as error:  # of no kind of its own where starting takes too long
        what = "started" if alone else f"reached at '{address or os.environ['RAY_ADDRESS']}'"
        raise OSError(f"Ray could not be {what}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()
