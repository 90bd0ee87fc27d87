"""A trained model in PyTorch and as exported files, side by side.

    pip install 'rdsnet[export,int8]'
    python benchmarks/models/exported.py --calibration photos/ --image another.png

PyTorch as `rdsnet predict` has it, in float32 and bfloat16; the ONNX file by onnxruntime; the
OpenVINO files by OpenVINO, in float32 and in 8 bits. All are given the same image and make masks of
its size; they take turns in one process, on one thread, by CPU time. Peak memory is that of a
process which loads one of them and predicts the image. What 8 bits cost in AP, `rdsnet eval` tells.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
import time
from pathlib import Path

import torch

from rdsnet.benchmark import measure
from rdsnet.checkpoint.exported import is_ir, weights_of
from rdsnet.checkpoint.trained import prediction_config
from rdsnet.cli import main as rdsnet
from rdsnet.data.images import read_image
from rdsnet.prediction.exported import build_predictor

_WAYS = {  # name: file or None, precision
    "PyTorch, float32": (None, "float32"),
    "PyTorch, bfloat16": (None, "bf16"),
    "onnxruntime, float32": ("model.onnx", "float32"),
    "OpenVINO, float32": ("model.xml", "float32"),
    "OpenVINO, convolutions in 8 bits": ("int8.xml", "float32"),
}


def write_files(args: argparse.Namespace, folder: Path) -> None:
    """Those that are not there yet."""
    for name, more in (("model.onnx", []), ("model.xml", []), ("int8.xml", args.calibration)):
        if not (folder / name).is_file():
            words = ["export", "--weights", args.weights, "--output", str(folder / name)]
            words += ["--score-threshold", str(args.score_threshold)]
            if rdsnet([*words, *(["--int8", *more] if more else [])]):
                raise SystemExit(f"'{folder / name}' could not be written")


def call_of(way: str, args: argparse.Namespace, folder: Path):
    """What predicts the image."""
    file, precision = _WAYS[way]
    weights = str(folder / file) if file else args.weights
    options = ["MODEL.RDSNET.INFERENCE.PRECISION", precision, "MODEL.DEVICE", "cpu"]
    predictor = build_predictor(prediction_config(None, weights, args.score_threshold, options))
    image = read_image(args.image, "BGR")
    return lambda: predictor(image)["instances"]


def size_of(path: Path) -> int:
    """Bytes of an exported model; OpenVINO's are two files."""
    parts = (path, weights_of(path)) if is_ir(path) else (path,)
    return sum(part.stat().st_size for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", default="nuclei")
    parser.add_argument("--image", required=True, metavar="FILE")
    parser.add_argument("--calibration", nargs="+", required=True, metavar="IMAGES")
    parser.add_argument(
        "--files", default="output/exported", help="folder of the exported files, kept"
    )
    parser.add_argument("--score-threshold", type=float, default=0.4, metavar="P")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--memory-of", choices=_WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(args.files) / f"{Path(args.weights).stem}-{args.score_threshold}"
    folder.mkdir(parents=True, exist_ok=True)
    if args.memory_of:
        call_of(args.memory_of, args, folder)()
        # Not getrusage's, which begins with that of the process that started this one.
        status = Path("/proc/self/status").read_text().split()
        print(int(status[status.index("VmHWM:") + 1]) / 1024)  # KiB
        return
    write_files(args, folder)
    calls = {way: call_of(way, args, folder) for way in _WAYS}
    objects = {way: len(call()) for way, call in calls.items()}
    times = measure.alternate(calls, "cpu", 1, (args.rounds, args.rounds), time.process_time)
    facts = measure.describe_machine("cpu")
    height, width = read_image(args.image, "BGR").shape[:2]
    print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items()))
    names = "onnxruntime", "openvino", "nncf"
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in names))
    print(
        f"\n{args.weights}, {height} x {width} px, score threshold {args.score_threshold}, one "
        f"thread, {args.rounds} rounds in turn\n"
    )
    print("| | objects | ms, least | median | times PyTorch's float32 | peak MiB | files, MB |")
    print("| --- " * 7 + "|")
    own = times["PyTorch, float32"]["min_ms"]
    for way, (file, _) in _WAYS.items():
        command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", way]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peak = float(done.stdout.split()[-1])
        size = f"{size_of(folder / file) / 1e6:.1f}" if file else ""
        least, median = times[way]["min_ms"], times[way]["median_ms"]
        cells = [way, objects[way], f"{least:.0f}", f"{median:.0f}", f"{own / least:.2f}x"]
        print(f"| {' | '.join(map(str, [*cells, f'{peak:.0f}', size]))} |", flush=True)


if __name__ == "__main__":
    main()
