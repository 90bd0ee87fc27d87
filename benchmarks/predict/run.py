#!/usr/bin/env python3
"""Images per second of `rdsnet predict`, beside the model alone and one step after the other.

    export RDSNET_DATA=...   # the folder that holds nuclei/
    OMP_NUM_THREADS=1 python benchmarks/predict/run.py
    python benchmarks/predict/run.py --quick   # a few images: does it run?

The nuclei model in the box on a folder of JPEGs, which are copies of nuclei images. Three ways take
turns on a part of the images each, in one process:

  model     the model alone, on inputs that were read and resized before
  serial    an image is read, predicted and written before the next one
  predict   `rdsnet.prediction.predict`, as the command runs it

What serial and predict write must be equal byte for byte. The same again with a model that leaves
the processor alone, as one on a GPU does: it sleeps, and finds the same objects in every image.
Memory is the peak of processes of their own, with the model that sleeps. Writes predict.md and
predict.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import date
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from unittest import mock

HERE = Path(__file__).resolve().parent
SCORE = 0.5
WAYS = ("model", "serial", "predict")


def make_images(folder: Path, data: Path, number: int, size: tuple[int, int]) -> list[Path]:
    """JPEGs of ``size`` (width, height) from the images of a folder, again and again."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for k, source in enumerate(islice(cycle(sorted(data.iterdir())), number)):
        files.append(folder / f"{k:04d}.jpg")
        if not files[-1].exists():
            with Image.open(source) as image:
                image.convert("RGB").resize(size).save(files[-1], quality=92)
    return files


def folders_of_parts(files: list[Path], rounds: int) -> list[Path]:
    """Folders of links to the files, a part of them each."""
    parts = []
    for k in range(rounds):
        parts.append(files[0].parent.parent / f"part{k}")
        parts[-1].mkdir(exist_ok=True)
        for file in files[k::rounds]:
            (parts[-1] / file.name).symlink_to(file)
    return parts


def model_config(side: int) -> tuple:
    """The nuclei model for images whose shorter side is ``side`` px: cfg, names and ids."""
    from rdsnet.checkpoint.trained import names_and_ids, prediction_config

    opts = ["INPUT.MIN_SIZE_TEST", str(side), "MODEL.DEVICE", "cpu"]
    cfg = prediction_config(None, "nuclei", SCORE, opts)
    return cfg, names_and_ids(cfg)


class SleepingPredictor:
    """Sleeps instead of computing, and always finds what another predictor finds in one image."""

    def __init__(self, predictor, image: Path, seconds: float) -> None:
        from rdsnet.data.images import read_image

        self.cfg, self.prepare, self.seconds = predictor.cfg, predictor.prepare, seconds
        self.channels = predictor.channels
        self.max_detections, self.were_cut_off = predictor.max_detections, [False]
        (self.found,) = predictor.find([predictor.prepare(read_image(str(image), "BGR"))])

    def find(self, prepared: list[dict]) -> list[dict]:
        time.sleep(self.seconds * len(prepared))
        return [self.found] * len(prepared)

    def __call__(self, image) -> dict:
        return self.find([self.prepare(image)])[0]


def model_alone(predictor, part: Path) -> Callable[[], None]:
    from rdsnet.data.images import read_image

    inputs = [predictor.prepare(read_image(str(file), "BGR")) for file in sorted(part.iterdir())]

    def run() -> None:
        for prepared in inputs:
            predictor.find([prepared])

    return run


def serial(predictor, part: Path, output: Path, formats: list[str], metadata: tuple) -> None:
    """What :func:`predict` did before it became a pipeline."""
    from rdsnet.prediction import predict_image
    from rdsnet.prediction.sources import find_sources
    from rdsnet.prediction.writers import build_writers

    with ExitStack() as stack:
        writers = [stack.enter_context(w) for w in build_writers(formats, output, metadata)]
        for source in find_sources([str(part)]).sources:
            for frame in source.frames():
                instances = predict_image(predictor, frame.image, SCORE)
                for writer in writers:
                    writer.write(frame, instances)


def pipeline(predictor, part: Path, output: Path, formats: list[str]) -> None:
    """`rdsnet predict` with a model that is loaded already."""
    from rdsnet.prediction import pipeline as module
    from rdsnet.prediction import selection

    with (
        mock.patch.object(module, "build_predictor", return_value=predictor),
        mock.patch.object(selection, "prediction_config", return_value=predictor.cfg),
    ):
        module.predict(None, "nuclei", [str(part)], output, formats=formats)


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and of the processor."""
    start, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start, time.process_time() - processor


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def measure(predictor, metadata: tuple, parts: list[Path], formats: list[str]) -> dict[str, dict]:
    """{way: {"images_per_second", "processor_ms"}}; "rounds": images/s of each."""
    alone = model_alone(predictor, parts[0])
    for _ in range(2):  # the first images are slower
        alone()
    times: dict[str, list] = {way: [] for way in WAYS}
    for k, part in enumerate(parts):
        with tempfile.TemporaryDirectory() as work:
            one, other = Path(work) / "serial", Path(work) / "predict"
            runs = {
                "model": model_alone(predictor, part),
                "serial": partial(serial, predictor, part, one, formats, metadata),
                "predict": partial(pipeline, predictor, part, other, formats),
            }
            for way in (*WAYS[k % 3 :], *WAYS[: k % 3]):
                times[way].append((*timed(runs[way]), len(list(part.iterdir()))))
            if content(one) != content(other):
                raise RuntimeError(f"serial and predict wrote different results for {part}")
        print({way: f"{times[way][-1][2] / times[way][-1][0]:.2f} images/s" for way in WAYS})
    results = {}
    for way, of_way in times.items():
        seconds, processor, images = (sum(column) for column in zip(*of_way, strict=True))
        results[way] = {
            "images_per_second": images / seconds,
            "processor_ms": 1000 * processor / images,
            "rounds": [images / seconds for seconds, _, images in of_way],
        }
    return results


def peak_memory(args: argparse.Namespace, images: Path, work: Path, way: str) -> float:
    """MiB of a process that predicts a folder, at most."""
    formats, _, _ = args.formats.partition(" ")
    words = [sys.executable, __file__, "--child", way, "--images", str(images), "--work", str(work)]
    words += ["--side", str(args.side), "--sleep-ms", str(args.sleep_ms), "--formats", formats]
    printed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return float(printed.split()[-1])


def child(args: argparse.Namespace) -> None:
    from rdsnet.prediction.predictor import CountingPredictor

    cfg, metadata = model_config(args.side)
    images, formats, output = Path(args.images), args.formats.split(","), Path(args.work) / "memory"
    first = sorted(images.iterdir())[0]
    predictor = SleepingPredictor(CountingPredictor(cfg), first, args.sleep_ms / 1000)
    if args.child == "predict":
        pipeline(predictor, images, output, formats)
    else:
        serial(predictor, images, output, formats, metadata)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def speed_table(speed: dict[str, dict]) -> str:
    lines = [
        "| written | model alone | one after the other | `rdsnet predict` | of the model alone | "
        "processor per image |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for formats, ways in speed.items():
        model, one, all_ = (ways[way]["images_per_second"] for way in WAYS)
        rounds = (ways[way]["rounds"] for way in ("predict", "model"))
        shares = [predict / alone for predict, alone in zip(*rounds, strict=True)]
        cells = [formats, *(f"{value:.2f}" for value in (model, one, all_))]
        cells.append(f"{all_ / model:.0%} (rounds: {min(shares):.0%} to {max(shares):.0%})")
        cells.append(", ".join(f"{ways[way]['processor_ms']:.0f}" for way in WAYS) + " ms")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(results: dict) -> str:
    memory = ["| images | one after the other | `rdsnet predict` |", "| --- | --- | --- |"]
    for number, ways in results["memory"].items():
        memory.append(f"| {number} | {ways['serial']:.0f} | {ways['predict']:.0f} |")
    return "\n\n".join(
        (
            f"{results['machine']}, {results['date']}. {results['images']}. "
            f"{os.cpu_count()} cores, load average at the beginning {results['load']:.1f}.",
            "Images per second; last: milliseconds of processor of the three ways:",
            speed_table(results["speed"]),
            f"The same with a model that sleeps for {results['sleep_ms']:g} ms instead:",
            speed_table(results["sleeping"]),
            "Peak memory of a process with that model, MiB:",
            "\n".join(memory),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--number", type=int, default=1000, metavar="N", help="of images")
    parser.add_argument("--rounds", type=int, default=10, help="parts that the images fall into")
    parser.add_argument("--side", type=int, default=96, help="shorter side for the model, px")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 384), help="of the JPEGs, px")
    parser.add_argument("--sleep-ms", type=float, default=50, help="of the model that sleeps")
    parser.add_argument("--formats", default="coco,csv png", help="lists, separated by spaces")
    parser.add_argument("--quick", action="store_true", help="4 images in 2 rounds")
    parser.add_argument("--output", default=str(HERE), metavar="DIR")
    for hidden in ("--child", "--images", "--work"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.number, args.rounds = 4, 2
    import torch

    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if args.child:
        child(args)
        return
    results = run(args)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "predict.json").write_text(json.dumps(results, indent=1) + "\n")
    (output / "predict.md").write_text(report(results) + "\n")
    print(report(results))


def run(args: argparse.Namespace) -> dict:
    import torch

    from rdsnet.prediction.predictor import CountingPredictor
    from rdsnet.reports.machine import machine

    load, (width, height) = os.getloadavg()[0], args.size
    cfg, metadata = model_config(args.side)
    predictor = CountingPredictor(cfg)
    results = {
        "machine": f"{machine(cfg)}, torch {torch.__version__}",
        "date": str(date.today()),
        "images": f"{args.number} JPEGs of {width} x {height} px in {args.rounds} rounds, "
        f"{args.side} px on the shorter side for the model",
        "load": load,
        "sleep_ms": args.sleep_ms,
    }
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        data = Path(os.environ["RDSNET_DATA"]) / "nuclei" / "images"
        files = make_images(work / "images", data, args.number, tuple(args.size))
        parts = folders_of_parts(files, args.rounds)
        sleeping = SleepingPredictor(predictor, files[0], args.sleep_ms / 1000)
        for key, model in (("speed", predictor), ("sleeping", sleeping)):
            results[key] = {
                formats: measure(model, metadata, parts, formats.split(","))
                for formats in args.formats.split()
            }
        few = work / "few"
        few.mkdir()
        for file in files[: args.number // 10 or 1]:
            (few / file.name).symlink_to(file)
        results["memory"] = {
            len(list(folder.iterdir())): {
                way: peak_memory(args, folder, work, way) for way in WAYS[1:]
            }
            for folder in (few, work / "images")
        }
    return results


if __name__ == "__main__":
    main()
