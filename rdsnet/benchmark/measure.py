"""Time and memory, measured so that the figures can be compared.

What is compared runs in turn (A B C A B C ...) in one process, so that a machine which slows down
slows all of them down. Memory is the peak above what was in use before the call.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PEAK_RESET = "5"  # what /proc/self/clear_refs takes to forget the highest resident size


def alternate(
    calls: Mapping[str, Callable[[], object]],
    device: str,
    seconds: float,
    rounds: tuple[int, int],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, float]]:
    """Run all calls in turn: first a round that does not count, then until ``seconds`` are over.

    Args:
        rounds: at least and at most so many.
        clock: gives seconds; ``time.process_time``: those of the CPU, of all threads together.

    Returns:
        Per name ``median_ms``, ``min_ms`` and ``rounds``.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    fewest, most = rounds
    start = time.perf_counter()
    for number in range(most + 1):
        if number > fewest and time.perf_counter() - start > seconds:
            break
        for name, call in calls.items():
            _finish(device)
            begin = clock()
            call()
            _finish(device)
            if number:
                times[name].append(1e3 * (clock() - begin))
    return {
        name: {"median_ms": statistics.median(own), "min_ms": min(own), "rounds": len(own)}
        for name, own in times.items()
    }


def extra_peak_mb(call: Callable[[], object], device: str, repeats: int = 3) -> float | None:
    """Highest memory in use during the call above that before it, MB; None where unknown.

    On a GPU as PyTorch counts it; on the CPU the resident memory of the process (Linux), which
    includes what C++ code and numpy allocate. The result of the call counts too. Least of
    ``repeats``.
    """
    peaks = []
    gc.collect()
    for _ in range(repeats):
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            result = call()
            torch.cuda.synchronize()
            peaks.append((torch.cuda.max_memory_allocated() - before) / 1e6)
        else:
            if not _reset_resident_peak():
                return None
            before = _status("VmRSS")
            result = call()
            peaks.append((_status("VmHWM") - before) / 1e6)
        del result
    return min(peaks)


def peak_mb() -> float:
    """Highest resident memory of this process so far, MB (Linux).

    Not getrusage's, which begins with that of the process that started this one.
    """
    return _status("VmHWM") / 1e6


def _reset_resident_peak() -> bool:
    try:
        # Free memory that the C library has kept would hide what the call needs.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text(_PEAK_RESET)
    except (OSError, AttributeError):
        return False
    return True


def _status(field: str) -> int:
    """Bytes that /proc/self/status gives for a field."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch, and with it our operators, on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fma_rate(device: str) -> float:
    """Multiply-adds per second of a large float32 matrix product, best of several."""
    n = 4096 if device == "cuda" else 768
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    return n**3 / _best_seconds(lambda: a @ b, device)


def bandwidth(device: str) -> float:
    """Bytes per second that a copy of a large tensor reads and writes, best of several."""
    source = torch.zeros(32 << 20, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _best_seconds(lambda: target.copy_(source), device)


def _best_seconds(call: Callable[[], object], device: str) -> float:
    seconds = []
    for _ in range(8):
        _finish(device)
        start = time.perf_counter()
        call()
        _finish(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def describe_machine(device: str) -> dict[str, object]:
    """What has to be said beside a figure."""
    from rdsnet import __version__
    from rdsnet.ops import active_path

    facts = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu_name(),
        "cores": cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "rdsnet": __version__,
        "operators": active_path(),
        "torch": torch.__version__,
    }
    for name in ("detectron2", "torchvision", "pycocotools", "numpy"):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            continue
    if hasattr(os, "getloadavg"):
        facts["load_average_at_start"] = round(os.getloadavg()[0], 2)
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
    return facts


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
