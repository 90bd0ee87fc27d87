"""Tiled prediction on a mosaic of nuclei with known truth: AP, memory and speed.

The mosaic is made of validation images of 256 x 256 px, turned and flipped, in a .npy file. It is
predicted in tiles, with each of the statistics that GroupNorm may have, and, for comparison, every
piece as an image of its own. Objects of the mosaic are evaluated in the piece that holds the centre
of their box. One way after the other, in one process, each timed as a whole.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import time
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
from rdsnet.prediction import Predictor, predict_image, predict_tiled

PIECE, SCORE, MOST = 256, 0.05, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--side", type=int, default=2048, help="of the mosaic, pixels")
    parser.add_argument("--tile", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--statistics", nargs="+", default=["tile", "sample", "image"])
    parser.add_argument("--output", type=Path, default=Path("output/tiles"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    count = args.side // PIECE
    path = args.output / "mosaic.npy"
    truth = make_mosaic(path, count)
    options = ["MODEL.DEVICE", "cpu", "TEST.DETECTIONS_PER_IMAGE", str(MOST)]
    predictor = Predictor(prediction_config(None, "nuclei", SCORE, options))
    image = np.load(path, mmap_mode="r")
    predict_image(predictor, np.ascontiguousarray(image[:PIECE, :PIECE]), SCORE)  # warm
    pixels = (count * PIECE) ** 2 / 1e6
    objects = len(truth["annotations"])
    print(
        f"{pixels:.1f} Mpx, {objects} nuclei, {torch.get_num_threads()} threads, load "
        f"{os.getloadavg()[0]:.1f}; {peak()} MB before\n"
    )
    print("| tiles | GroupNorm's statistics | mask AP | Mpx per CPU s | Mpx per s | peak MB |")
    print("| --- | --- | --- | --- | --- | --- |")

    def row(tiles: str, statistics: str, found: list[dict], start: float, cpu: float) -> None:
        seconds, of_cpu = time.perf_counter() - start, time.process_time() - cpu
        speed = f"{pixels / of_cpu:.2f} | {pixels / seconds:.2f}"
        print(f"| {tiles} | {statistics} | {mask_ap(truth, found):.1f} | {speed} | {peak()} |")

    start, cpu, found = time.perf_counter(), time.process_time(), []
    for number in range(count**2):
        y, x = (PIECE * k for k in divmod(number, count))
        piece = np.ascontiguousarray(image[y : y + PIECE, x : x + PIECE])
        instances = predict_image(predictor, piece, SCORE)
        found += results(number, instances.scores, instances.pred_masks.rle())
    row("none: every piece alone", "its own", found, start, cpu)
    for tile in args.tile:
        for statistics in args.statistics:
            start, cpu = time.perf_counter(), time.process_time()
            how = {"tile": tile, "overlap": args.overlap, "statistics": statistics}
            instances = predict_tiled(image, predictor, score_threshold=SCORE, **how)
            row(f"{tile} px", statistics, in_pieces(instances, count), start, cpu)


def make_mosaic(path: Path, count: int) -> dict:
    """Write the mosaic, count x count pieces, BGR; returns their truth as COCO has it."""
    folder = Path(os.environ["RDSNET_DATA"]) / "nuclei"
    content = json.loads((folder / "val.json").read_text())
    size = {"height": PIECE, "width": PIECE}
    pictures = {}
    for info in content["images"]:
        if (info["height"], info["width"]) == (PIECE, PIECE):
            pictures[info["id"]] = cv2.imread(str(folder / "images" / info["file_name"]))
    masks = {id_: [] for id_ in pictures}
    for annotation in content["annotations"]:
        if annotation["image_id"] in masks:
            rle = segmentation_rle(annotation["segmentation"], (PIECE, PIECE))
            masks[annotation["image_id"]].append(coco_mask.decode(rle))
    shape = (count * PIECE, count * PIECE, 3)
    mosaic = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    images, annotations, ids = [], [], list(pictures)
    for number in range(count**2):
        id_, turns = ids[number % len(ids)], number // len(ids)

        def turned(array: np.ndarray, turns: int = turns) -> np.ndarray:
            return np.rot90(array[:, ::-1] if turns // 4 % 2 else array, turns)

        y, x = (PIECE * k for k in divmod(number, count))
        mosaic[y : y + PIECE, x : x + PIECE] = turned(pictures[id_])
        images.append({"id": number, **size})
        for mask in masks[id_]:
            rle = coco_mask.encode(np.asfortranarray(turned(mask)))
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": 1}
            annotation |= {"segmentation": rle, "area": float(mask.sum()), "iscrowd": 0}
            annotations.append(annotation | {"bbox": coco_mask.toBbox(rle).tolist()})
    mosaic.flush()
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "n"}]}


def in_pieces(instances: Instances, count: int) -> list[dict]:
    """Results of the mosaic as those of its pieces, which cut their masks."""
    found = []
    centres = instances.pred_boxes.get_centers().tolist()
    for n, (cx, cy) in enumerate(centres):
        row, column = (min(max(int(c) // PIECE, 0), count - 1) for c in (cy, cx))
        mask = instances.pred_masks.crop(n).numpy().astype(np.uint8)
        x, y = instances.pred_masks.windows[n, :2].tolist()
        piece = np.zeros((3 * PIECE, 3 * PIECE), np.uint8)  # with its neighbours
        y, x = y - (row - 1) * PIECE, x - (column - 1) * PIECE
        mask = mask[max(-y, 0) :, max(-x, 0) :]
        y, x = max(y, 0), max(x, 0)
        inside = mask[: 3 * PIECE - y, : 3 * PIECE - x]
        piece[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
        own = np.asfortranarray(piece[PIECE : 2 * PIECE, PIECE : 2 * PIECE])
        found += results(row * count + column, [instances.scores[n]], [coco_mask.encode(own)])
    return found


def results(image_id: int, scores, rles) -> list[dict]:
    head = {"image_id": image_id, "category_id": 1}
    return [
        {**head, "score": float(score), "segmentation": rle}
        for score, rle in zip(scores, rles, strict=True)
    ]


def mask_ap(truth: dict, found: list[dict]) -> float:
    """Mask AP in percent, up to 500 detections of a piece."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "segm")
        evaluation.params.maxDets = [1, 10, MOST]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    return 100 * float(precision[precision > -1].mean())


def peak() -> int:
    """The most memory that this process has had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


if __name__ == "__main__":
    main()
