"""How torch's threads behave beside other work: settings that its OpenMP runtime reads once.

The threads of a convolution wait for the slowest of them. GNU's runtime, which torch comes with on
Linux, lets them wait in a loop for milliseconds, Intel's and LLVM's for 200: where another program
wants the CPU too, the loop takes it from the very thread that all wait for, and everything becomes
several times slower (benchmarks/models/beside_other_work.md). So they are told to hand it back
soon. And in a container that is allowed fewer CPUs than the machine has, the runtime does not see
the limit and starts a thread for each of them; it is told.

What the user has set in the environment is never changed. Imports nothing but Python's own: torch
must not be loaded before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path

# Any of these in the environment is the user's own decision about waiting.
_ABOUT_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
# Every runtime knows the first. GNU's would then not wait in a loop at all, and wake its threads by
# the kernel after each of the many short steps of a network: rather the tens of microseconds that
# it chooses itself where there are more threads than CPUs.
_PATIENCE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
_ABOUT_NUMBER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

_set_here: dict[str, str] = {}


def prepare(environ: MutableMapping[str, str] = os.environ, system: Path = Path("/")) -> None:
    """Set what the user has not; without effect where torch has been loaded already.

    Args:
        environ: the environment of this process.
        system: root of the file system, where /proc and /sys are.
    """
    if "torch" in sys.modules:
        return
    wanted = {}
    if not any(name in environ for name in _ABOUT_WAITING):
        wanted.update(_PATIENCE)
    cpus = usable_cpus(system)
    if cpus < _visible_cpus() and not any(name in environ for name in _ABOUT_NUMBER):
        wanted["OMP_NUM_THREADS"] = str(cpus)
    environ.update(wanted)
    _set_here.update(wanted)


def usable_cpus(system: Path = Path("/")) -> int:
    """CPUs that this process may run on, or as many as its container's limit pays for."""
    return max(1, int(min([_visible_cpus(), *_limits(system)])))


def _visible_cpus() -> int:
    """What OpenMP counts."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _limits(system: Path) -> Iterator[float]:
    """CPUs that the control groups of this process allow: its own and those around it (Linux)."""
    try:
        groups = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            top, files = system / "sys/fs/cgroup", ("cpu.max",)
        elif "cpu" in controllers.split(","):
            top, files = system / "sys/fs/cgroup/cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        else:
            continue
        inside = Path(path.lstrip("/"))
        for folder in (inside, *inside.parents):
            try:
                quota, period = " ".join((top / folder / f).read_text() for f in files).split()
            except (OSError, ValueError):
                continue
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)


def description(environ: MutableMapping[str, str] = os.environ) -> str:
    """How threads wait, and who has said so."""
    names = (*_ABOUT_WAITING, *_ABOUT_NUMBER)
    there = {name: environ[name] for name in names if name in environ}
    by_rdsnet = [f"{name}={value}" for name, value in there.items() if name in _set_here]
    by_user = [f"{name}={value}" for name, value in there.items() if name not in _set_here]
    parts = []
    if by_rdsnet:
        parts.append(
            f"{', '.join(by_rdsnet)}, set by the rdsnet command for work beside other work"
        )
    if by_user:
        parts.append(f"{', '.join(by_user)} as you have set it")
    if not any(name in there for name in _ABOUT_WAITING):
        parts.append(
            "threads wait in loops, slow beside other work: OMP_WAIT_POLICY=PASSIVE was not set "
            "before torch was loaded"
        )
    return "; ".join(parts)
