"""Tiled prediction on a mosaic of nuclei with known truth: AP, doubles, memory and speed.

The mosaic is made of validation images of 256 x 256 px, turned and flipped, in a .npy file. It is
predicted in tiles, with each of the statistics that GroupNorm may have, and, for comparison, its
pieces as images of their own. Objects of the mosaic are evaluated in the piece that holds the
centre of their box, and cut by it. One way after the other, in one process, each timed as a whole.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as coco_mask
import torch
from detectron2.structures import Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rdsnet.checkpoint.trained import prediction_config
from rdsnet.data.rle import segmentation_rle
from rdsnet.data.windows import LargeImage
from rdsnet.prediction import Predictor, predict_image, predict_tiled
from rdsnet.prediction.tiles import overlapping

PIECE, SCORE, MOST = 256, 0.05, 500
# Two objects are doubles when they are as sure as this, and share more than half of their pixels.
SURE, DOUBLE = 0.5, 0.5
HEAD = """
| seen | GroupNorm's statistics | mask AP | of whole nuclei | doubles | Mpx per CPU s | peak MB |
| --- | --- | --- | --- | --- | --- | --- |"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, nargs=2, default=[1280, 1280], metavar=("W", "H"))
    parser.add_argument("--tile", type=int, nargs="*", default=[1024])
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--statistics", nargs="+", default=["tile", "sample", "auto"])
    parser.add_argument("--alike", action="store_true", help="pieces in the order of brightness")
    parser.add_argument("--gap", type=int, default=0, help="px of background between pieces")
    parser.add_argument("--pieces", type=int, help="so many, at random, are looked at alone")
    parser.add_argument("--singles", type=int, default=0, help="windows of a tile, seen alone")
    parser.add_argument("--output", type=Path, default=Path("output/tiles"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "mosaic.npy"
    try:
        compare(path, args)
    finally:
        path.unlink(missing_ok=True)


def compare(path: Path, args: argparse.Namespace) -> None:
    """Make the mosaic, and print a row for every way to see it."""
    mosaic = make_mosaic(path, args.size, args.gap, args.alike)
    options = ["MODEL.DEVICE", "cpu", "TEST.DETECTIONS_PER_IMAGE", str(MOST)]
    predictor = Predictor(prediction_config(None, "nuclei", SCORE, options))
    width, height = mosaic.size
    chosen = np.arange(len(mosaic.corners))
    if args.pieces:
        chosen = np.sort(np.random.default_rng(1).choice(chosen, args.pieces, replace=False))
    with LargeImage(str(path)) as image:
        predict_image(predictor, mosaic.piece(image, 0), SCORE)  # warm
        print(
            f"{width} x {height} px, {len(mosaic.corners)} pieces, {len(mosaic.annotations)} "
            f"nuclei; AP on {len(chosen)} pieces; overlap {args.overlap} px; "
            f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}; "
            f"{Clock().stopped()[1]} MB before"
        )
        print(HEAD)
        clock, found, pairs = Clock(), [], 0
        for number in chosen.tolist():
            instances = predict_image(predictor, mosaic.piece(image, number), SCORE)
            found += results(number, instances.scores, instances.pred_masks.rle())
            pairs += doubles(instances)
        row(
            "pieces alone",
            "its own",
            mosaic.aps(found, chosen),
            pairs,
            clock,
            len(chosen) * PIECE**2,
        )
        for tile in args.tile:
            if args.singles:
                clock, pixels = Clock(), 0
                for window in spread(mosaic.size, tile, args.singles):
                    single = image.read(window)
                    predict_tiled(single, predictor, tile=tile, score_threshold=SCORE)
                    pixels += single.shape[0] * single.shape[1]
                row(
                    f"{args.singles} windows of {tile} px alone", "its own", None, "", clock, pixels
                )
            for statistics in args.statistics:
                clock = Clock()
                how = {"tile": tile, "overlap": args.overlap, "statistics": statistics}
                instances = predict_tiled(image, predictor, score_threshold=SCORE, **how)
                clock.stop()
                aps = mosaic.aps(mosaic.in_pieces(instances, chosen), chosen)
                seen = f"tiles of {tile} px"
                row(seen, statistics, aps, doubles(instances), clock, width * height)


class Clock:
    """CPU seconds of this process, and the most memory that it has had meanwhile, MB (Linux)."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # forget the highest resident size
        self._start, self._end = time.process_time(), None

    def stop(self) -> None:
        self._end, self.peak = time.process_time() - self._start, peak()

    def stopped(self) -> tuple[float, int]:
        if self._end is None:
            self.stop()
        return self._end, self.peak


def row(
    seen: str,
    statistics: str,
    aps: Sequence[float] | None,
    pairs: int | str,
    clock: Clock,
    pixels: int,
) -> None:
    seconds, most = clock.stopped()
    of_masks = " | ".join(f"{ap:.1f}" for ap in aps) if aps else " | "
    speed = pixels / 1e6 / seconds
    print(f"| {seen} | {statistics} | {of_masks} | {pairs} | {speed:.3f} | {most} |", flush=True)


@dataclass
class Mosaic:
    """What is known of a mosaic.

    Attributes:
        size: (W, H), pixels.
        corners: (x, y) of every piece.
        annotations: as COCO has them; a piece is an image. ``is_cut``: by the border of its piece.
    """

    size: tuple[int, int]
    corners: list[tuple[int, int]]
    annotations: list[dict]

    def piece(self, image: LargeImage, number: int) -> np.ndarray:
        x, y = self.corners[number]
        return np.ascontiguousarray(image.read((x, y, x + PIECE, y + PIECE)))

    def aps(self, found: list[dict], chosen: np.ndarray) -> tuple[float, float]:
        """Mask AP of all nuclei, and of those that no border of a piece cuts, the others and what
        lies on them being ignored; percent.
        """
        numbers = set(chosen.tolist())
        truth = [dict(a) for a in self.annotations if a["image_id"] in numbers]
        of_all = mask_ap(truth, found, numbers)
        for annotation in truth:
            annotation["iscrowd"] = int(annotation["is_cut"])
        return of_all, mask_ap(truth, found, numbers)

    def in_pieces(self, instances: Instances, chosen: np.ndarray) -> list[dict]:
        """Results of the mosaic as those of the chosen pieces, which cut their masks."""
        found, numbers = [], set(chosen.tolist())
        pitch = self.corners[1][0] - self.corners[0][0]
        columns, rows = (side // pitch for side in self.size)
        for n, (cx, cy) in enumerate(instances.pred_boxes.get_centers().tolist()):
            column, row_ = min(int(cx) // pitch, columns - 1), min(int(cy) // pitch, rows - 1)
            number = row_ * columns + column
            if number not in numbers:
                continue
            x1, y1, x2, y2 = instances.pred_masks.windows[n].tolist()
            left, top = self.corners[number]
            own = np.zeros((PIECE, PIECE), np.uint8)
            mask = instances.pred_masks.crop(n).numpy()
            xs, ys = np.clip((x1, x2), left, left + PIECE), np.clip((y1, y2), top, top + PIECE)
            inside = mask[ys[0] - y1 : ys[1] - y1, xs[0] - x1 : xs[1] - x1]
            own[ys[0] - top : ys[1] - top, xs[0] - left : xs[1] - left] = inside
            rle = coco_mask.encode(np.asfortranarray(own))
            found += results(number, [instances.scores[n]], [rle])
        return found


def make_mosaic(path: Path, size: Sequence[int], gap: int, alike: bool) -> Mosaic:
    """Write as many whole pieces as ``size`` (W, H) has room for, BGR, piece by piece.

    Args:
        gap: pixels right of and below every piece, of its background (the median of its border).
        alike: whether pieces lie in the order of their brightness.
    """
    folder = Path(os.environ["RDSNET_DATA"]) / "nuclei"
    content = json.loads((folder / "val.json").read_text())
    pictures = {}
    for info in content["images"]:
        if (info["height"], info["width"]) == (PIECE, PIECE):
            pictures[info["id"]] = cv2.imread(str(folder / "images" / info["file_name"]))
    masks = {id_: [] for id_ in pictures}
    for annotation in content["annotations"]:
        if annotation["image_id"] in masks:
            rle = segmentation_rle(annotation["segmentation"], (PIECE, PIECE))
            masks[annotation["image_id"]].append(coco_mask.decode(rle))
    pitch = PIECE + gap
    columns, rows = (side // pitch for side in size)
    count, shape = columns * rows, (rows * pitch, columns * pitch, 3)
    ids = list(pictures)
    order = [(ids[number % len(ids)], number // len(ids)) for number in range(count)]
    if alike:
        order.sort(key=lambda one: pictures[one[0]].mean())
    mosaic = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    corners, annotations = [], []
    for number, (id_, turns) in enumerate(order):

        def turned(array: np.ndarray, turns: int = turns) -> np.ndarray:
            return np.rot90(array[:, ::-1] if turns // 4 % 2 else array, turns)

        y, x = (pitch * k for k in divmod(number, columns))
        picture = turned(pictures[id_])
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        mosaic[y : y + pitch, x : x + pitch] = np.median(border, 0)
        mosaic[y : y + PIECE, x : x + PIECE] = picture
        corners.append((x, y))
        for mask in masks[id_]:
            mask = turned(mask)
            rle = coco_mask.encode(np.asfortranarray(mask))
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": 1}
            annotation |= {"segmentation": rle, "area": float(mask.sum()), "iscrowd": 0}
            is_cut = any(side.any() for side in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
            annotation |= {"bbox": coco_mask.toBbox(rle).tolist(), "is_cut": is_cut}
            annotations.append(annotation)
    mosaic.flush()
    return Mosaic((shape[1], shape[0]), corners, annotations)


def spread(size: tuple[int, int], side: int, count: int) -> list[tuple[int, int, int, int]]:
    """Windows (x1, y1, x2, y2) of a side at random."""
    chance = np.random.default_rng(2)
    windows = []
    for _ in range(count):
        x, y = (int(chance.integers(max(length - side, 0) + 1)) for length in size)
        windows.append((x, y, min(x + side, size[0]), min(y + side, size[1])))
    return windows


def doubles(instances: Instances) -> int:
    """Pairs of sure objects that share more than half of their pixels."""
    instances = instances[instances.scores >= SURE]
    rles = instances.pred_masks.rle()
    return sum(
        float(coco_mask.iou([rles[i]], [rles[j]], [0])[0, 0]) > DOUBLE
        for i, j in overlapping(instances.pred_boxes.tensor)
    )


def results(image_id: int, scores, rles) -> list[dict]:
    head = {"image_id": image_id, "category_id": 1}
    return [
        {**head, "score": float(score), "segmentation": rle}
        for score, rle in zip(scores, rles, strict=True)
    ]


def mask_ap(annotations: list[dict], found: list[dict], numbers: set[int]) -> float:
    """Mask AP in percent, up to 500 detections of a piece."""
    truth = {
        "images": [{"id": number, "height": PIECE, "width": PIECE} for number in sorted(numbers)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "nucleus"}],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([dict(one) for one in found]), "segm")
        evaluation.params.maxDets = [1, 10, MOST]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    return 100 * float(precision[precision > -1].mean())


def peak() -> int:
    """The most memory that this process has had since it was forgotten, MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 // 1_000_000
    raise OSError("/proc/self/status has no VmHWM: this runs on Linux")


if __name__ == "__main__":
    main()
