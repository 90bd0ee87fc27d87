"""A stub in place of a model: every connected bright region of its input is an object."""

from types import SimpleNamespace

import cv2
import numpy as np
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from torch import nn

import rdsnet
from rdsnet.ops import CompactMasks
from rdsnet.ops.masks import run_lengths_from_window


def compact(windows, crops, size):
    """CompactMasks, without maxima, of crops (h, w) bool in their windows (x1, y1, x2, y2)."""
    runs = [
        run_lengths_from_window(torch.as_tensor(np.ascontiguousarray(crop)), window, size)
        for window, crop in zip(windows, crops)
    ]
    return CompactMasks(
        size,
        torch.tensor(windows, dtype=torch.int64).reshape(-1, 4),
        torch.tensor([int(crop.sum()) for crop in crops], dtype=torch.int64),
        torch.zeros(len(runs), 0),
        torch.zeros(len(runs), 0),
        torch.cat(runs) if runs else torch.zeros(0, dtype=torch.int64),
        torch.tensor([0, *np.cumsum([len(r) for r in runs])], dtype=torch.int64),
    )


class Blobs(nn.Module):
    """Finds what is bright, of at least ``least`` px a side in the network's input.

    The class is 1 where blue is brighter than red, else 0. ``seen`` has the sizes of all inputs.
    """

    size_divisibility = 32

    def __init__(self, least=3):
        super().__init__()
        self.least, self.seen = least, []
        self.backbone = SimpleNamespace(output_shape=lambda: {"p5": ShapeSpec(stride=32)})
        self.object_stream = SimpleNamespace(max_detections=100, topk_candidates=100)

    def forward(self, batch):
        (inputs,) = batch
        image = inputs["image"].numpy()
        self.seen.append(image.shape[1:])
        height, width = size = inputs["height"], inputs["width"]
        _, labels, stats, _ = cv2.connectedComponentsWithStats(np.uint8(image.max(0) > 100))
        large = cv2.resize(np.float32(labels), (width, height), interpolation=cv2.INTER_NEAREST)
        rows, columns = (n / side for n, side in zip(size, labels.shape))
        windows, crops, classes = [], [], []
        for label, (x, y, w, h, _) in list(enumerate(stats.tolist()))[1:]:
            if min(w, h) >= self.least:
                inside = labels[y : y + h, x : x + w] == label
                blue, _, red = (channel[y : y + h, x : x + w][inside].mean() for channel in image)
                classes.append(int(blue > red))
                x1, y1 = round(x * columns), round(y * rows)
                x2, y2 = round((x + w) * columns), round((y + h) * rows)
                windows.append((x1, y1, x2, y2))
                crops.append(large[y1:y2, x1:x2] == label)
        masks = compact(windows, crops, size)
        boxes = Boxes(masks.windows.float())
        found = Instances(size, pred_boxes=boxes, regressed_boxes=boxes, pred_masks=masks)
        found.scores = torch.linspace(0.9, 0.8, len(windows))
        found.pred_classes = torch.tensor(classes, dtype=torch.int64)
        return [{"instances": found[: self.object_stream.max_detections]}]


def blob_predictor(least=3):
    cfg = rdsnet.get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.RDSNET.INFERENCE.PRECISION = "cpu", "float32"
    return SimpleNamespace(model=Blobs(least), cfg=cfg, ordered=lambda image: image)
