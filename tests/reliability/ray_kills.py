"""Prediction with Ray, killed again and again and resumed, against an undisturbed one.

    python tests/reliability/ray_kills.py --images 300 --kills 20 --workers-killed 2

Drivers are killed by SIGKILL, some while they start and some after they have finished a shard or
two; workers while they predict. The finished folders must be equal byte for byte.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
# As Ray calls the process of an actor of a pool.
_WORKER = b"ray::MapWorker"
_POLL = 0.05


def make_images(folder: Path, count: int, seed: int) -> None:
    """Bright discs on a dark ground, 48 to 96 px a side; every 50th file is cut off."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for k in range(count):
        image = rng.integers(0, 30, (*rng.integers(48, 97, 2), 3), dtype=np.uint8)
        for _ in range(rng.integers(1, 6)):
            x, y = rng.integers(0, 90, 2).tolist()
            cv2.circle(image, (x, y), int(rng.integers(5, 14)), (200, 200, 200), -1)
        content = cv2.imencode(".png", image)[1].tobytes()
        (folder / f"{k:05d}.png").write_bytes(content if k % 50 != 49 else content[:200])


def start(images: Path, output: Path, shard_size: int, workers: int = 2) -> subprocess.Popen:
    """A driver; what it says goes to a file beside the output."""
    words = ["--weights", "nuclei", "--input", images, "--output", output, "--engine", "ray"]
    words += ["--workers", workers, "--shard-size", shard_size, "--format", "coco,csv,parquet"]
    with open(output.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "rdsnet.cli", "predict", *map(str, words)],
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            cwd=images.parent,
        )


def finish(driver: subprocess.Popen, output: Path) -> bool:
    """Wait for the end; a run with unreadable files ends with 1.

    Returns whether there was a run: on a machine that is too busy, Ray's processes do not answer in
    the half minute that they have.
    """
    status = driver.wait()
    log = output.with_suffix(".log").read_text(errors="replace")[-5000:]
    if status == 2 and "Ray could not be started" in log:
        return False
    if status != 1:
        raise RuntimeError(f"the run ended with {status}:\n{log}")
    return True


def run(images: Path, output: Path, shard_size: int) -> None:
    """A run without disturbance."""
    while not finish(start(images, output, shard_size), output):
        pass


def shards_in(output: Path) -> int:
    return len(list((output / "shards").glob("*.parquet")))


def kill_driver(driver: subprocess.Popen, output: Path, rng: random.Random) -> bool:
    """Kill it somewhere; whether it had not ended before."""
    before, begun = shards_in(output), time.monotonic()
    more = rng.choice([None, 1, 2])  # None: while it starts, or whatever it does so early
    pause = rng.uniform(0, 20 if more is None else 1)
    while driver.poll() is None:
        reached = more is None or shards_in(output) >= before + more
        if not reached:
            begun = time.monotonic()
        elif time.monotonic() >= begun + pause:
            driver.kill()
            driver.wait()
            return True
        time.sleep(_POLL)
    return False


def workers_of(driver: int) -> list[int]:
    """Processes of the actors of a driver: those under it in the tree of processes."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state = (entry / "stat").read_text()
                names[int(entry.name)] = (entry / "cmdline").read_bytes()
            except OSError:  # ended meanwhile
                continue
            parents[int(entry.name)] = int(state.rpartition(")")[2].split()[1])

    def is_below(process: int) -> bool:
        while process in parents and process != driver:
            process = parents[process]
        return process == driver

    return [pid for pid, name in names.items() if name.startswith(_WORKER) and is_below(pid)]


def kill_worker(driver: subprocess.Popen, output: Path) -> bool:
    """Kill a worker as soon as another shard is there; whether there was one to kill."""
    before = shards_in(output)
    while driver.poll() is None:
        workers = workers_of(driver.pid) if shards_in(output) > before else []
        if workers:
            os.kill(workers[0], signal.SIGKILL)
            return True
        time.sleep(_POLL)
    return False


def disturbed(
    images: Path, output: Path, shard_size: int, drivers: int, workers: int, rng: random.Random
) -> tuple[int, int]:
    """A finished run, and how many drivers and workers were killed on the way.

    Where a run is finished before all its drivers were killed, some of its shards are removed.
    """
    killed = [0, 0]
    while killed[0] < drivers:
        killed[0] += kill_driver(start(images, output, shard_size), output, rng)
        done = sorted((output / "shards").glob("*.parquet"))
        for path in rng.sample(done, len(done) // 2):
            path.unlink()
    while killed[1] < workers:
        done = sorted((output / "shards").glob("*.parquet"))
        for path in done[len(done) // 3 :]:
            path.unlink()
        driver = start(images, output, shard_size)
        killed[1] += kill_worker(driver, output)
        finish(driver, output)
    run(images, output, shard_size)
    return killed[0], killed[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--kills", type=int, default=20, help="of drivers")
    parser.add_argument("--workers-killed", type=int, default=2)
    parser.add_argument("--shard-size", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ray-kills-"))
    make_images(folder / "images", args.images, args.seed)
    begun = time.monotonic()
    run(folder / "images", folder / "calm", args.shard_size)
    calm = time.monotonic() - begun
    killed = disturbed(
        folder / "images",
        folder / "disturbed",
        args.shard_size,
        args.kills,
        args.workers_killed,
        random.Random(args.seed),
    )
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.folders import contents

    calm_files, got = contents(folder / "calm"), contents(folder / "disturbed")
    differ = sorted(
        name for name in calm_files.keys() | got.keys() if calm_files.get(name) != got.get(name)
    )
    print(
        f"{args.images} images, {killed[0]} drivers and {killed[1]} workers killed; undisturbed "
        f"{calm:.0f} s; {len(got)} files: "
        + (f"{len(differ)} differ: {differ[:5]}" if differ else "all equal byte for byte")
    )
    if not differ:
        shutil.rmtree(folder)
    return bool(differ)


if __name__ == "__main__":
    sys.exit(main())
