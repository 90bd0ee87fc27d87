"""Predict many images in one process and watch memory and open files; then two large ones.

    python tests/reliability/load.py --images 10000

A small model with random weights on images of 48 x 64 made on the way. Prints resident memory and
open files along the way; the exit status is 1 when either grows. Then, each in a process of its
own: one image of 10,000 x 8,000 px, and one with 1,000 detections, with their peak memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tiny
import torch

GROWTH = 24  # MiB that memory may grow after the first tenth
LARGE_BOUND, MANY_BOUND = 1536, 1024  # MiB, of the whole process


def resident() -> float:
    """MiB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def predictor(folder: Path, *more: str):
    """A predictor with random weights and a low threshold, so that there are detections."""
    from detectron2.modeling import build_model

    from rdsnet.checkpoint import load_config
    from rdsnet.prediction.predictor import Predictor

    data = tiny.make_data(folder / "data", images=1)
    options = tiny.options(data, folder, 1, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", *more)
    cfg = load_config(tiny.SMALL, [*options, "MODEL.RDSNET.DENSE_MASKS", "False"])
    torch.manual_seed(0)
    cfg.MODEL.WEIGHTS = str(folder / "weights.pth")
    torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    return Predictor(cfg)


def many_images(number: int, folder: Path) -> bool:
    from PIL import Image

    from rdsnet.data.images import read_image

    predict = predictor(folder, "INPUT.MIN_SIZE_TEST", "48", "TEST.DETECTIONS_PER_IMAGE", "10")
    rng, path = np.random.default_rng(0), folder / "image.png"
    history, start = [], time.monotonic()
    for i in range(number):
        height, width = (48, 64) if i % 2 else (64, 48)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        instances = predict(read_image(str(path), "BGR"))["instances"]
        instances.pred_masks.rle()
        if (i + 1) % max(number // 10, 1) == 0:
            history.append((resident(), open_files()))
            print(f"{i + 1} images: {history[-1][0]:.0f} MiB, {history[-1][1]} open files")
    memory = [m for m, _ in history]
    grown, files = max(memory) - memory[0], history[-1][1] - history[0][1]
    print(
        f"{number} images in {time.monotonic() - start:.0f} s: memory grew by {grown:.1f} MiB "
        f"after the first tenth, open files by {files}"
    )
    return grown < GROWTH and files <= 0


def one_image(folder: Path, size: tuple[int, int], detections: int, bound: int) -> bool:
    """Peak memory of one prediction, in a child."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            predict = predictor(
                folder,
                *("TEST.DETECTIONS_PER_IMAGE", str(detections)),
                *("INPUT.MIN_SIZE_TEST", "256", "INPUT.MAX_SIZE_TEST", "512"),
                *("MODEL.RETINANET.NMS_THRESH_TEST", "1.0"),
            )
            before, start = resident(), time.monotonic()
            image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
            instances = predict(image)["instances"]
            masks = instances.pred_masks.rle()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            good = peak < bound and len(masks) == detections
            print(
                f"{size[1]} x {size[0]} px, {len(instances)} detections: {peak:.0f} MiB at most "
                f"({before:.0f} before), {time.monotonic() - start:.1f} s; bound {bound} MiB"
            )
            sys.stdout.flush()
            status = 0 if good else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    import rdsnet.training  # noqa: F401  (once, for the children too)

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        good = one_image(folder, (8_000, 10_000), 100, LARGE_BOUND)
        good &= one_image(folder, (480, 640), 1_000, MANY_BOUND)
        good &= many_images(args.images, folder)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
