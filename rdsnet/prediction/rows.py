"""Objects as rows of Arrow tables, one per image, and back; what prediction with Ray exchanges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pycocotools.mask as coco_mask
import torch
from detectron2.structures import Boxes, Instances

from rdsnet.data.rle import decoded_runs
from rdsnet.ops import CompactMasks
from rdsnet.prediction.sources import Frame

_BOXES = pa.list_(pa.list_(pa.float32(), 4))

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        # Of a video's frame or of a page of several, from 0.
        ("frame", pa.int32()),
        # Of an image that was predicted in tiles, from 0.
        ("part", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("objects", pa.int32()),
        ("boxes", _BOXES),
        ("regressed_boxes", _BOXES),
        ("scores", pa.list_(pa.float32())),
        ("classes", pa.list_(pa.int32())),
        # The counts of COCO's compressed RLE, whose size is (height, width).
        ("masks", pa.list_(pa.string())),
        ("cut_off", pa.bool_()),
        ("too_large", pa.int32()),
        ("error", pa.string()),
    ]
)
"""Columns of a row, described at :class:`rdsnet.prediction.ray_predictor.RayPredictor`."""


def row_of(frame: Frame, instances: Instances, cut_off: bool = False) -> dict:
    """The row of an image, or of a part of a large one, but for its path.

    Args:
        instances: on the CPU, with compact masks.
    """
    height, width = instances.image_size
    return {
        "frame": frame.index if frame.is_one_of_many else None,
        "part": frame.part,
        "height": height,
        "width": width,
        "objects": len(instances),
        "boxes": instances.pred_boxes.tensor.tolist(),
        "regressed_boxes": instances.regressed_boxes.tensor.tolist(),
        "scores": instances.scores.tolist(),
        "classes": instances.pred_classes.tolist(),
        "masks": [rle["counts"] for rle in instances.pred_masks.rle()],
        "cut_off": cut_off,
        "too_large": 0,
        "error": None,
    }


def failure_row(error: Exception) -> dict:
    """The row of a file that could not be read, but for its path."""
    return {"error": str(error) or type(error).__name__}


def instances_of(row: dict) -> Instances:
    """What :func:`row_of` was given, but for the maxima of the masks, and their windows, which are
    those of the foreground.
    """
    size = row["height"], row["width"]

    def boxes(name: str) -> Boxes:
        return Boxes(torch.tensor(row[name], dtype=torch.float32).reshape(-1, 4))

    return Instances(
        size,
        pred_boxes=boxes("boxes"),
        regressed_boxes=boxes("regressed_boxes"),
        scores=torch.tensor(row["scores"], dtype=torch.float32),
        pred_classes=torch.tensor(row["classes"], dtype=torch.int64),
        pred_masks=_masks(row["masks"], size),
    )


def _masks(counts: list[str], size: tuple[int, int]) -> CompactMasks:
    lengths, offsets = decoded_runs(counts)
    rles = [{"size": list(size), "counts": text} for text in counts]
    x, y, width, height = coco_mask.toBbox(rles).reshape(-1, 4).astype(np.int64).T
    windows = torch.from_numpy(np.stack([x, y, x + width, y + height], axis=1))
    # pycocotools counts the pixels of 255 masks at most at once.
    areas = torch.tensor([int(coco_mask.area(rle)) for rle in rles], dtype=torch.int64)
    nothing = torch.zeros(len(counts), 0)
    runs = torch.from_numpy(lengths), torch.from_numpy(offsets)
    return CompactMasks(size, windows, areas, nothing, nothing, *runs)


def frame_of(row: dict, path: Path | str) -> Frame:
    """The frame of a row, without a name and without its pixels."""
    return Frame(
        "",
        path,
        np.broadcast_to(np.uint8(0), (row["height"], row["width"], 3)),
        index=row["frame"] or 0,
        is_one_of_many=row["frame"] is not None,
        part=row["part"],
    )
