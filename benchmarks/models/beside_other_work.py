"""How fast a prediction is beside processes that keep a CPU busy, by how torch's threads wait.

    python benchmarks/models/beside_other_work.py --busy 0 1 2

Predicts one image again and again with random weights of the lite model, in a process of its own
for every way of waiting: torch's own, what the rdsnet commands set (rdsnet/openmp.py), and one
thread, which waits for nobody. The ways take turns, round by round, beside so many more processes
that only count. Whatever else the machine does is busy, too: the load at the start is printed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys

from rdsnet import openmp

# Runs in a process of its own: prints the milliseconds of the median image and the threads.
PREDICT = """
import statistics, sys, time, warnings
warnings.filterwarnings("ignore")
import torch
from detectron2.modeling import build_model
from rdsnet import model_zoo
from rdsnet.modeling import prepare_for_inference
cfg = model_zoo.get_config("lite/rdsnet_lite0_96.yaml")
cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.RDSNET.DENSE_MASKS = "cpu", "", False
cfg.MODEL.RETINANET.NUM_CLASSES = 1
torch.manual_seed(0)
model = prepare_for_inference(build_model(cfg))
size, seconds = int(sys.argv[1]), float(sys.argv[2])
batch = [{"image": torch.randint(0, 256, (3, size, size * 3 // 2), dtype=torch.uint8)}]
times = []
with torch.no_grad():
    model(batch)
    start = time.perf_counter()
    while not times or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        model(batch)
        times.append(time.perf_counter() - begin)
print(1e3 * statistics.median(times), torch.get_num_threads())
"""


def settings() -> dict[str, dict[str, str]]:
    """{way of waiting: what the environment says}."""
    shipped: dict[str, str] = {}
    openmp.prepare(shipped)
    return {"torch's own": {}, "as shipped": shipped, "one thread": {"OMP_NUM_THREADS": "1"}}


def measure(environ: dict[str, str], size: int, seconds: float) -> float:
    """Milliseconds of the median image."""
    about_threads = ("OMP_", "GOMP_", "KMP_", "MKL_")
    others = {k: v for k, v in os.environ.items() if not k.startswith(about_threads)}
    words = [sys.executable, "-c", PREDICT, str(size), str(seconds)]
    run = subprocess.run(words, env=others | environ, capture_output=True, text=True, check=True)
    return float(run.stdout.split()[0])


def count() -> None:
    while True:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--size", type=int, default=320, metavar="PX", help="shorter side")
    parser.add_argument("--seconds", type=float, default=5, help="of every process")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    ways = settings()
    print(f"{openmp.usable_cpus()} CPUs, load at the start {os.getloadavg()[0]:.1f}\n")
    print("| busy processes | " + " | ".join(f"{way}, ms" for way in ways) + " | times as fast |")
    print("| --- " * (len(ways) + 2) + "|")
    for number in args.busy:
        others = [multiprocessing.Process(target=count, daemon=True) for _ in range(number)]
        for process in others:
            process.start()
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way, environ in ways.items():
                times[way].append(measure(environ, args.size, args.seconds))
        for process in others:
            process.terminate()
        medians = [statistics.median(own) for own in times.values()]
        cells = [f"{number}", *(f"{ms:.0f}" for ms in medians), f"{medians[0] / medians[1]:.1f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
