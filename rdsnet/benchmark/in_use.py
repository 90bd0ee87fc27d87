"""The model in the box as people use it: exported files beside PyTorch, and ``rdsnet predict``.

On made-up pictures of nuclei, bright ellipses on a dark ground, in which the model ``nuclei`` finds
about as many objects as there are. In turn, in one process, on a CPU:

* one picture, on one thread by CPU time, from the array to masks of its size: PyTorch in float32
  and bfloat16, and the files of ``rdsnet export``: ONNX by onnxruntime, OpenVINO's in float32 and
  with convolutions in 8 bits. Packages that are not installed are named, and their files left out;
* a folder of JPEGs by the clock: the model alone on inputs that were prepared before, and
  :func:`rdsnet.prediction.pipeline.predict` as the command runs it, less what it takes for a folder
  of one picture (loading the model).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from detectron2.structures import Instances
from PIL import Image, ImageDraw, ImageFilter

from rdsnet.benchmark import measure
from rdsnet.checkpoint.exported import is_ir, weights_of
from rdsnet.checkpoint.trained import prediction_config
from rdsnet.data.images import read_image
from rdsnet.export import export
from rdsnet.prediction.exported import build_predictor
from rdsnet.prediction.pipeline import predict
from rdsnet.prediction.quantizing import export_int8

WEIGHTS = "nuclei"
SCORE = 0.4
PYTORCH = "PyTorch, float32"
_CALIBRATION_PICTURES = 8
_PIXELS_PER_NUCLEUS = 2400
_FILES = {  # way: file, packages that write and run it, the extra that brings them
    "onnxruntime, float32": ("model.onnx", ("onnx", "onnxscript", "onnxruntime"), "export"),
    "OpenVINO, float32": ("model.xml", ("onnx", "onnxscript", "openvino"), "export,openvino"),
    "OpenVINO, convolutions in 8 bits": (
        "int8.xml",
        ("onnx", "onnxscript", "openvino", "nncf"),
        "export,int8",
    ),
}


def picture(seed: int, size: tuple[int, int]) -> np.ndarray:
    """Made-up nuclei, (H, W, 3) uint8, about one per 2400 px."""
    height, width = size
    rng = np.random.default_rng(seed)
    image = Image.new("L", (width, height), 18)
    draw = ImageDraw.Draw(image)
    for _ in range(max(1, height * width // _PIXELS_PER_NUCLEUS)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        a, b = rng.uniform(7, 16, size=2)
        draw.ellipse([x - a, y - b, x + a, y + b], fill=int(rng.uniform(70, 200)))
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(1.2)), np.float32)
    noisy = blurred + rng.normal(0, 4, size=blurred.shape)
    return np.repeat(np.clip(noisy, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def run(
    folder: Path,
    size: tuple[int, int],
    images: int,
    rounds: int,
    progress: Callable[[str], None] = print,
) -> dict:
    """Measure both.

    Args:
        folder: for pictures, files and results; what is in it may be overwritten.
        size: (H, W) of the pictures, pixels.
        images: of the folder that is predicted.
        rounds: of either measurement.

    Returns:
        ``size``; ``files``: per way ``objects``, times, ``extra_peak_mb`` and ``files_mb``;
        ``left_out``: {way: reason}; ``versions`` of the packages; ``predict``: see
        :func:`compare_predict`.
    """
    report: dict = {"size": list(size), "files": {}, "left_out": {}, "versions": {}}
    report["versions"] = {
        name: version(name) for name in ("onnxruntime", "openvino", "nncf") if find_spec(name)
    }
    pictures = write_pictures(folder / "pictures", size, images)
    with measure.threads(1):
        ways = {PYTORCH: (None, "float32"), "PyTorch, bfloat16": (None, "bf16")}
        for way, (name, packages, extra) in _FILES.items():
            missing = [package for package in packages if find_spec(package) is None]
            if missing:
                report["left_out"][way] = (
                    f"{' and '.join(missing)} not installed: pip install 'rdsnet[{extra}]'"
                )
                continue
            progress(f"writing '{name}' ...")
            write = export_int8_by(pictures) if name == "int8.xml" else export
            write(None, WEIGHTS, folder / name, score_threshold=SCORE)
            ways[way] = (folder / name, "float32")
        report["files"] = compare_files(ways, size, rounds)
    progress("files are measured")
    report["predict"] = compare_predict(folder, pictures, rounds)
    return report


def write_pictures(folder: Path, size: tuple[int, int], images: int) -> list[Path]:
    """JPEGs in the folder and, one of them, in a folder of its own beside it."""
    files = [folder / f"{seed:04d}.jpg" for seed in range(images)]
    for file in (*files, folder.with_name("one") / files[0].name):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(int(file.stem), size)).save(file, quality=92)
    return files


def export_int8_by(pictures: list[Path]) -> Callable:
    """:func:`export_int8` with these pictures, some of them."""
    chosen = [str(file) for file in pictures[:_CALIBRATION_PICTURES]]
    return lambda *arguments, **options: export_int8(chosen, *arguments, **options)


def compare_files(
    ways: dict[str, tuple[Path | None, str]], size: tuple[int, int], rounds: int
) -> dict[str, dict]:
    """{way: objects, times, memory, size of its files}; ways are files, None: the checkpoint."""
    image = picture(0, size)
    calls = {way: call_of(*how, image) for way, how in ways.items()}
    results = {way: {"objects": len(call())} for way, call in calls.items()}
    for way, call in calls.items():
        results[way]["extra_peak_mb"] = measure.extra_peak_mb(call, "cpu", 1)
    times = measure.alternate(calls, "cpu", 0, (rounds, rounds), time.process_time)
    for way, (file, _) in ways.items():
        results[way].update(times[way], files_mb=megabytes(file) if file else None)
    return results


def call_of(file: Path | None, precision: str, image: np.ndarray) -> Callable[[], Instances]:
    """What predicts the image."""
    options = ["MODEL.RDSNET.INFERENCE.PRECISION", precision, "MODEL.DEVICE", "cpu"]
    cfg = prediction_config(None, str(file or WEIGHTS), SCORE, options)
    predictor = build_predictor(cfg)
    return lambda: predictor(image)["instances"]


def megabytes(path: Path) -> float:
    """Of an exported model; OpenVINO's are two files."""
    parts = (path, weights_of(path)) if is_ir(path) else (path,)
    return sum(part.stat().st_size for part in parts) / 1e6


def compare_predict(folder: Path, pictures: list[Path], rounds: int) -> dict[str, float]:
    """``model_images_per_second``, the model alone, ``predict_images_per_second`` and
    ``loading_seconds``: what ``predict`` took for one picture. Medians of the rounds.
    """
    options = ["MODEL.DEVICE", "cpu"]
    cfg = prediction_config(None, WEIGHTS, SCORE, options)
    predictor = build_predictor(cfg)
    inputs = [predictor.prepare(read_image(str(file), "BGR")) for file in pictures]

    def model_alone() -> None:
        for prepared in inputs:
            predictor.find([prepared])

    def command(source: Path) -> Callable[[], object]:
        return lambda: predict(
            None,
            WEIGHTS,
            [str(source)],
            folder / "predictions",
            formats=("coco", "csv"),
            score_threshold=SCORE,
            opts=options,
        )

    calls = {
        "model": model_alone,
        "one": command(folder / "one"),
        "all": command(pictures[0].parent),
    }
    times = measure.alternate(calls, "cpu", 0, (rounds, rounds))
    seconds = {name: own["median_ms"] / 1000 for name, own in times.items()}
    further = len(pictures) - 1
    return {
        "images": len(pictures),
        "model_images_per_second": len(pictures) / seconds["model"],
        "predict_images_per_second": further / max(seconds["all"] - seconds["one"], 1e-6),
        "loading_seconds": seconds["one"],
    }
