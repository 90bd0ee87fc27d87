"""Predict many images in one process and watch memory and open files; then two large ones.

    python tests/reliability/load.py --images 10000

A small model with random weights on images of 48 x 64 made on the way. Prints memory and open files
along the way; the exit status is 1 when anything is kept of the images of the second half. Before
that, each in a process of its own: one image of 10,000 x 8,000 px, and one with 1,000 detections,
with their peak memory.

The limits follow from what there is to keep: of an image at least the profile of a mask, of a large
one a copy in float32, of many objects their masks as arrays.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tiny
import torch

SIZE = (48, 64)
FLOAT = 4  # bytes


def resident() -> float:
    """MiB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class HeapStatistics(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def allocated() -> int | None:
    """Bytes that are allocated and not freed, however the allocator holds them; None: unknown."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except AttributeError:  # not glibc
        return None
    mallinfo.restype = HeapStatistics
    statistics = mallinfo()
    return statistics.uordblks + statistics.hblkhd


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
        height, width = SIZE if i % 2 else SIZE[::-1]
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        instances = predict(read_image(str(path), "BGR"))["instances"]
        instances.pred_masks.rle()
        if (i + 1) % max(number // 10, 1) == 0:
            gc.collect()
            history.append((allocated(), len(gc.get_objects()), open_files()))
            print(
                f"{i + 1} images: {resident():.0f} MiB, {history[-1][1]} Python objects, "
                f"{history[-1][2]} open files"
            )
    (memory, objects, files), last = history[len(history) // 2 - 1], history[-1]
    grown = 0 if memory is None else last[0] - memory
    limit = number // 2 * min(SIZE) * FLOAT
    print(
        f"{number} images in {time.monotonic() - start:.0f} s: of the second half {grown} bytes "
        f"were kept (limit {limit}), {last[1] - objects} objects and {last[2] - files} open files"
    )
    return grown < limit and last[1] <= objects and last[2] <= files


def one_image(folder: Path, size: tuple[int, int], detections: int, limit: int) -> bool:
    """Whether a prediction, in a child, needs fewer bytes than the limit, the image included."""
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
            good = peak - before < limit / 2**20 and len(masks) == detections
            print(
                f"{size[1]} x {size[0]} px, {len(instances)} detections: {peak - before:.0f} MiB "
                f"more than before, {time.monotonic() - start:.1f} s; limit {limit / 2**20:.0f} MiB"
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
        # The image, and the same in float32.
        good = one_image(folder, (8_000, 10_000), 100, 8_000 * 10_000 * 3 * (1 + FLOAT))
        # Masks as arrays.
        good &= one_image(folder, (480, 640), 1_000, 1_000 * 480 * 640)
        good &= many_images(args.images, folder)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
