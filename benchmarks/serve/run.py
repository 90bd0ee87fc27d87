#!/usr/bin/env python3
"""What many clients of `rdsnet serve` see at the same time: p50, p95, errors, memory.

    OMP_NUM_THREADS=1 python benchmarks/serve/run.py   # 64 clients for a minute
    python benchmarks/serve/run.py --quick             # 4 clients for some seconds: does it run?

Starts the command in a process of its own, and 64 clients in this one. Each posts an image and does
so again as soon as it has its answer. Writes serve.md and serve.json beside this file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import httpx

HERE = Path(__file__).resolve().parent
FIRST = "000002.png"  # of the nuclei images: 256 x 256 px, 35 objects
LONG = 600  # seconds after which an answer counts as an error


@dataclass
class Seen:
    """By all clients: seconds of every answer, and what was no answer."""

    seconds: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)  # MiB of the service, once a second


def memory(pid: int, field: str) -> float:
    """MiB of a process: VmRSS, now, or VmHWM, at most so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


async def client(ask: httpx.AsyncClient, url: str, content: bytes, end: float, seen: Seen) -> None:
    while (start := time.monotonic()) < end:
        try:
            answer = await ask.post(url, content=content)
            if answer.status_code != 200 or not answer.content:
                seen.errors[str(answer.status_code)] += 1
                continue
        except httpx.HTTPError as error:
            seen.errors[type(error).__name__] += 1
            continue
        seen.seconds.append(time.monotonic() - start)


async def watch(pid: int, end: float, seen: Seen) -> None:
    while time.monotonic() < end:
        seen.memory.append(memory(pid, "VmRSS"))
        await asyncio.sleep(1)


async def crowd(address: str, pid: int, args: argparse.Namespace, content: bytes) -> Seen:
    seen, url = Seen(), f"{address}/predict?format={args.format}"
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=LONG, limits=limits) as ask:
        for _ in range(3):  # the first images are slower
            (await ask.post(url, content=content)).raise_for_status()
        end = time.monotonic() + args.seconds
        clients = [client(ask, url, content, end, seen) for _ in range(args.clients)]
        await asyncio.gather(watch(pid, end, seen), *clients)
    return seen


def measured(args: argparse.Namespace) -> dict:
    words = [sys.executable, "-m", "rdsnet.cli", "serve", "--weights", args.weights, "--port", "0"]
    content, load = Path(args.image).read_bytes(), os.getloadavg()[0]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        address = process.stdout.readline().split()[3].removesuffix("/predict")
        start, before = time.monotonic(), memory(process.pid, "VmRSS")
        seen = asyncio.run(crowd(address, process.pid, args, content))
        wall, peak = time.monotonic() - start, memory(process.pid, "VmHWM")
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    finally:
        process.terminate()
        process.wait()
    times, quarter = seen.seconds, len(seen.memory) // 4
    quantiles = statistics.quantiles(times, n=100)
    early, late = seen.memory[quarter : 2 * quarter] or seen.memory, seen.memory[-5:]
    return {
        "date": str(date.today()),
        "clients": args.clients,
        "seconds": args.seconds,
        "format": args.format,
        "weights": args.weights,
        "image": f"{Path(args.image).name}, {len(content)} bytes",
        "answers": len(times),
        "errors": dict(seen.errors),
        "per_second": len(times) / wall,
        "p50_s": quantiles[49],
        "p95_s": quantiles[94],
        "max_s": max(times),
        "processor_ms_per_image": 1000
        * sum(map(int, ticks))
        / os.sysconf("SC_CLK_TCK")
        / (len(times) + 3),
        "memory_before_mib": before,
        "memory_second_quarter_mib": statistics.mean(early),
        "memory_end_mib": statistics.mean(late),
        "memory_peak_mib": peak,
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "exit_status": process.returncode,
    }


def report(results: dict, machine: str) -> str:
    rows = {
        "answers, errors": f"{results['answers']}, {sum(results['errors'].values())}",
        "answers per second": f"{results['per_second']:.1f}",
        "p50, p95, longest": "{p50_s:.2f} s, {p95_s:.2f} s, {max_s:.2f} s".format(**results),
        "processor per answer, the start included": f"{results['processor_ms_per_image']:.0f} ms",
        "memory with the model loaded": f"{results['memory_before_mib']:.0f} MiB",
        "in the second quarter": f"{results['memory_second_quarter_mib']:.0f} MiB",
        "at the end": f"{results['memory_end_mib']:.0f} MiB",
        "at most": f"{results['memory_peak_mib']:.0f} MiB",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"{machine}, {results['date']}. {os.cpu_count()} cores, load average "
        f"{results['load_before']:.1f} before and {results['load_after']:.1f} after. "
        f"{results['clients']} clients for {results['seconds']:g} s, model `{results['weights']}`, "
        f"{results['image']}, format {results['format']}.\n\n| | |\n| --- | --- |\n{table}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=64, metavar="N")
    parser.add_argument("--seconds", type=float, default=60, metavar="S")
    parser.add_argument("--format", default="coco", help="that is asked for")
    parser.add_argument("--weights", default="nuclei", metavar="FILE")
    parser.add_argument("--image", metavar="FILE", help=f"default: {FIRST} of RDSNET_DATA's nuclei")
    parser.add_argument("--quick", action="store_true", help="4 clients for 5 seconds")
    parser.add_argument("--output", default=str(HERE), metavar="DIR")
    args = parser.parse_args()
    if args.quick:
        args.clients, args.seconds = 4, 5
    if args.image is None:
        args.image = str(Path(os.environ["RDSNET_DATA"]) / "nuclei" / "images" / FIRST)
    results = measured(args)
    from rdsnet.checkpoint.trained import prediction_config
    from rdsnet.reports.machine import machine

    text = report(results, machine(prediction_config(None, args.weights)))
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "serve.json").write_text(json.dumps(results, indent=1) + "\n")
    (output / "serve.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
