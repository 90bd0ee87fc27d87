"""RDSNet as a whole on a GPU against itself on the CPU; a part of ``tools/gpu_check.py``.

The model of nuclei in projects/Nuclei predicts images: on the CPU in float32, and on the GPU in
every precision. Then two models are trained there for a few steps, in float32 and with automatic
mixed precision, as `rdsnet train` does. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "projects" / "Nuclei" / "nuclei" / "nuclei.pth"
# As MODEL.RDSNET.INFERENCE.PRECISION, with TensorFloat-32 in float32's convolutions or without.
VARIANTS = {
    "float32": ("float32", False),
    "float32, TF32": ("float32", True),
    "bf16": ("bf16", True),
    "fp16": ("fp16", True),
}


def images(count: int) -> list[np.ndarray]:
    """Real nuclei where RDSNET_DATA has them, else blobs: the model finds them, too."""
    from PIL import Image

    folder = Path(os.environ.get("RDSNET_DATA", "")) / "nuclei"
    if (folder / "val.json").is_file():
        names = [i["file_name"] for i in json.loads((folder / "val.json").read_text())["images"]]
        return [np.array(Image.open(folder / "images" / n).convert("RGB")) for n in names[:count]]
    generator = np.random.default_rng(0)
    return [blobs(generator) for _ in range(count)]


def blobs(generator: np.random.Generator, side: int = 256, number: int = 24) -> np.ndarray:
    """Bright ellipses on black, (side, side, 3) uint8 RGB."""
    y, x = np.mgrid[:side, :side]
    image = np.zeros((side, side))
    for _ in range(number):
        (cy, cx), (ry, rx) = generator.uniform(0, side, 2), generator.uniform(6, 14, 2)
        distance = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2
        image = np.maximum(image, np.clip(1.3 - distance, 0, 1) * generator.uniform(0.4, 1))
    image = 255 * np.clip(image + generator.normal(0, 0.02, image.shape), 0, 1)
    return np.repeat(image.astype(np.uint8)[:, :, None], 3, axis=2)


def predictions(device: str, precision: str, tf32: bool, pictures: list[np.ndarray]) -> dict:
    """Objects of every picture, images per second after a first round, and GPU memory."""
    import rdsnet

    torch.backends.cudnn.allow_tf32 = tf32
    model = rdsnet.load(MODEL, device=device, precision=precision)
    found = [model.predict(picture) for picture in pictures]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for picture in pictures:
        model.predict(picture)
    seconds = time.perf_counter() - start
    memory = torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else None
    return {"found": found, "images/s": len(pictures) / seconds, "peak MB": memory}


def compare(mine, theirs) -> dict[str, float]:
    """How far the objects of two lists of results agree, matched by the IoU of their masks."""
    matched, total, ious, boxes = 0, 0, [], []
    for a, b in zip(mine, theirs):
        total += max(len(a.boxes), len(b.boxes))
        if not len(a.boxes) or not len(b.boxes):
            continue
        flat_a, flat_b = (np.asarray(x.masks).reshape(len(x.boxes), -1) for x in (a, b))
        flat_a, flat_b = flat_a.astype(np.float32), flat_b.astype(np.float32)
        common = flat_a @ flat_b.T
        union = flat_a.sum(1)[:, None] + flat_b.sum(1)[None] - common
        iou = common / np.maximum(union, 1)
        best = iou.argmax(1)
        good = iou.max(1) > 0.5
        matched += int(good.sum())
        ious += iou.max(1)[good].tolist()
        distance = np.abs(np.asarray(a.boxes) - np.asarray(b.boxes)[best]).max(1)
        boxes += distance[good].tolist()
    return {
        "objects": total,
        "matched": matched / max(total, 1),
        "mean mask IoU": float(np.mean(ious)) if ious else 0.0,
        "mean box difference, px": float(np.mean(boxes)) if boxes else float("inf"),
    }


def agreement(device: str, count: int) -> dict[str, dict]:
    pictures = images(count)
    reference = predictions("cpu", "float32", False, pictures)
    rows = {"CPU, float32": {"images/s": reference["images/s"], "peak MB": None}}
    for name, (precision, tf32) in VARIANTS.items():
        if device == "cpu" and precision == "fp16":
            continue  # not every processor has it
        other = predictions(device, precision, tf32, pictures)
        rows[f"{device.upper()}, {name}"] = {
            "images/s": other["images/s"],
            "peak MB": other["peak MB"],
            **compare(reference["found"], other["found"]),
        }
    return rows


def trainings(device: str, iterations: int, size: int) -> dict[str, dict]:
    """Losses of the first and last steps, seconds per step and peak memory of short trainings."""
    from detectron2.engine import default_argument_parser

    from rdsnet.data.shapes import make_shapes_dataset
    from rdsnet.training import setup
    from rdsnet.training.trainer import Trainer

    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        made = make_shapes_dataset(
            Path(folder) / "shapes", num_train=8, num_val=2, size=(size,) * 2
        )
        for name, config, amp in (
            ("RDSNet R-50, float32", "COCO-InstanceSegmentation/rdsnet_R_50_FPN_1x.yaml", False),
            ("RDSNet R-50, AMP", "COCO-InstanceSegmentation/rdsnet_R_50_FPN_1x.yaml", True),
            ("RDSNet-lite, float32", "lite/rdsnet_lite0_96.yaml", False),
            ("RDSNet-lite, AMP", "lite/rdsnet_lite0_96.yaml", True),
        ):
            files = ["gpu_train", str(made["train_json"]), str(made["train_images"])]
            options = {
                "DATASETS.COCO_FILES": [files],
                "DATASETS.TRAIN": "('gpu_train',)",
                "DATASETS.TEST": "()",
                "MODEL.RETINANET.NUM_CLASSES": -1,
                "MODEL.DEVICE": device,
                "MODEL.WEIGHTS": "",
                "INPUT.MIN_SIZE_TRAIN": f"({size},)",
                "SOLVER.AMP.ENABLED": amp,
                "SOLVER.IMS_PER_BATCH": 4,
                "SOLVER.MAX_ITER": iterations,
                "SOLVER.BASE_LR": 1e-3,
                "SOLVER.CHECKPOINT_PERIOD": 1_000_000,
                "DATALOADER.NUM_WORKERS": 2 if device == "cuda" else 0,
                "SEED": 1,
                "OUTPUT_DIR": f"{folder}/{len(rows)}",
            }
            words = ["--config-file", str(ROOT / "configs" / config)]
            words += [str(word) for pair in options.items() for word in pair]
            trainer = Trainer(setup(default_argument_parser().parse_args(words)))
            trainer.resume_or_load(resume=False)
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - start
            losses = [value for value, _ in trainer.storage.history("total_loss").values()]
            rows[name] = {
                "first losses": losses[:3],
                "last losses": losses[-3:],
                "s/iteration, reading included": seconds / iterations,
                "peak MB": torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else None,
            }
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--size", type=int, default=256, help="of the training's images, px")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no GPU", file=sys.stderr)
        return 1
    found = agreement(args.device, args.images)
    trained = trainings(args.device, args.iterations, args.size)
    print(json.dumps({"agreement": found, "training": trained}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
