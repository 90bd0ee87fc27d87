"""The model in the box as people use it: exported files beside PyTorch, and ``rdsnet predict``.

On made-up pictures of nuclei, bright ellipses on a dark ground, in which the model ``nuclei`` finds
about as many objects as there are. In turn, in one process, on a CPU:

* one picture, on one thread by CPU time, from the array to masks of its size: PyTorch in float32
  and bfloat16, and the files of ``rdsnet export``: ONNX by onnxruntime, OpenVINO's in float32 and
  with convolutions in 8 bits. Peak memory is that of a process of its own, which loads one of them
  and predicts the picture. What cannot be written or run is named with the reason;
* a folder of JPEGs by the clock: the model alone on inputs that were prepared before, and
  :func:`rdsnet.prediction.pipeline.predict` as the command runs it, less what it takes for a folder
  of one picture (loading the model).
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
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
from rdsnet.modeling.precision import chosen_precision
from rdsnet.prediction.exported import build_predictor
from rdsnet.prediction.pipeline import predict
from rdsnet.prediction.quantizing import export_int8

WEIGHTS = "nuclei"
SCORE = 0.4
PYTORCH = "PyTorch, float32"
_CALIBRATION_PICTURES = 8
_PIXELS_PER_NUCLEUS = 2400
_WRITERS = ("onnx", "onnxscript")
FILES = {  # way: file, packages that write and run it, the extra that brings them
    "onnxruntime, float32": ("model.onnx", (*_WRITERS, "onnxruntime"), "export"),
    "OpenVINO, float32": ("model.xml", (*_WRITERS, "openvino"), "export,openvino"),
    "OpenVINO, convolutions in 8 bits": (
        "int8.xml",
        (*_WRITERS, "openvino", "nncf"),
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
    threads: int,
    files: Sequence[str] = tuple(FILES),
    progress: Callable[[str], None] = print,
) -> dict:
    """Measure both.

    Args:
        folder: for pictures, files and results; what is in it may be overwritten.
        size: (H, W) of the pictures, pixels.
        images: of the folder that is predicted.
        rounds: of either measurement.
        threads: of prediction by the clock; files are measured on one.
        files: which of :data:`FILES` to write and measure.

    Returns:
        ``size``; ``files``: see :func:`compare_files`; ``left_out``: {way: reason}; ``versions`` of
        the packages; ``predict``: see :func:`compare_predict`.
    """
    pictures = write_pictures(folder / "pictures", size, images)
    ways: dict[str, tuple[Path | None, str]]
    ways = {PYTORCH: (None, "float32"), "PyTorch, bfloat16": (None, "bf16")}
    left_out = {}
    with measure.threads(1):
        for way in files:
            progress(f"{way}: writing the file ...")
            try:
                ways[way] = (write_file(way, folder, pictures), "float32")
            except (ImportError, OSError, RuntimeError, ValueError) as error:
                left_out[way] = str(error)
        # A picture that no file was quantized by.
        of_files = compare_files(ways, picture(images, size), rounds)
    progress("files are measured")
    with measure.threads(threads):
        predicted = compare_predict(folder, pictures, rounds)
    return {
        "size": list(size),
        "files": of_files,
        "left_out": left_out,
        "versions": _versions("onnxruntime", "openvino", "nncf"),
        "predict": {**predicted, "threads": threads},
    }


def write_pictures(folder: Path, size: tuple[int, int], images: int) -> list[Path]:
    """JPEGs in the folder and, one of them, in a folder of its own beside it."""
    files = [folder / f"{seed:04d}.jpg" for seed in range(images)]
    for file in (*files, folder.with_name("one") / files[0].name):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(int(file.stem), size)).save(file, quality=92)
    return files


def write_file(way: str, folder: Path, pictures: Sequence[Path]) -> Path:
    """The exported file of one of :data:`FILES`.

    Raises:
        ModuleNotFoundError: naming the packages that are missing and the extra that brings them.
        OSError, RuntimeError, ValueError: of the export.
    """
    name, packages, extra = FILES[way]
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{' and '.join(missing)} not installed: pip install 'rdsnet[{extra}]'"
        )
    write: Callable = export
    if name == "int8.xml":
        write = partial(export_int8, [str(file) for file in pictures[:_CALIBRATION_PICTURES]])
    write(None, WEIGHTS, folder / name, score_threshold=SCORE)
    return folder / name


def compare_files(
    ways: dict[str, tuple[Path | None, str]], image: np.ndarray, rounds: int
) -> dict[str, dict]:
    """{way: ``objects``, times, ``peak_mb`` of a process, ``files_mb``}; a way is a file, None: the
    checkpoint, and a precision.
    """
    calls = {way: call_of(*how, image) for way, how in ways.items()}
    results = {way: {"objects": len(call())} for way, call in calls.items()}
    times = measure.alternate(calls, "cpu", 0, (rounds, rounds), time.process_time)
    for way, (file, precision) in ways.items():
        peak = peak_mb(file, precision, image.shape[:2])
        size = megabytes(file) if file else None
        results[way].update(times[way], peak_mb=peak, files_mb=size)
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


def peak_mb(file: Path | None, precision: str, size: tuple[int, int]) -> float | None:
    """Highest resident memory of a process that predicts one picture on one thread; None where the
    system does not tell.
    """
    code = (
        "import sys, torch; torch.set_num_threads(1); from pathlib import Path; "
        "from rdsnet.benchmark import in_use, measure; file, precision, *size = sys.argv[1:]; "
        "image = in_use.picture(0, tuple(map(int, size))); "
        "in_use.call_of(Path(file) if file else None, precision, image)(); "
        "print(measure.peak_mb())"
    )
    words = [str(file or ""), precision, *map(str, size)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def compare_predict(folder: Path, pictures: Sequence[Path], rounds: int) -> dict:
    """``model_images_per_second`` of the model alone, ``predict_images_per_second`` (None: too few
    pictures to tell), ``loading_seconds``: what ``predict`` took for one picture, and the
    ``precision`` that the command chooses. Medians of the rounds.
    """
    options = ["MODEL.DEVICE", "cpu", "MODEL.RDSNET.INFERENCE.PRECISION", "auto"]
    predictor = build_predictor(prediction_config(None, WEIGHTS, SCORE, options))
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
    further = seconds["all"] - seconds["one"]
    return {
        "images": len(pictures),
        "precision": chosen_precision("auto", "cpu")[0],
        "model_images_per_second": len(pictures) / seconds["model"],
        "predict_images_per_second": (len(pictures) - 1) / further if further > 0 else None,
        "loading_seconds": seconds["one"],
    }


def _versions(*names: str) -> dict[str, str]:
    """Of the packages that are installed under these names."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
