"""The format "masks": a black and white picture per object."""

from __future__ import annotations

import cv2
import numpy as np
from detectron2.structures import Instances
from torch import Tensor

from rdsnet.ops import CompactMasks
from rdsnet.prediction.sources import Frame
from rdsnet.prediction.writers.writer import Writer
from rdsnet.visualization import objects_from_instances


def bits_in_window(masks: CompactMasks | Tensor, n: int) -> tuple[np.ndarray, int, int]:
    """One mask as (h, w) bool, and the x and y of its upper left corner in the image."""
    if isinstance(masks, CompactMasks):
        x, y = masks.windows[n, :2].tolist()
        return masks.crop(n).numpy(), x, y
    return masks[n].numpy(), 0, 0


class MaskWriter(Writer):
    """``masks/NAME/000.png``, ...: per object its mask, 255 on it and 0 elsewhere.

    The numbers are those of ``objects.csv``: the surest object is 0.
    """

    files = ("masks/",)

    def add(self, frame: Frame, instances: Instances) -> None:
        folder = self.output / "masks" / frame.name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("[0-9][0-9][0-9]*.png"):  # of an earlier run with more objects
            old.unlink()
        objects = objects_from_instances(instances, self.names)
        for n in range(len(objects)):
            encoded = cv2.imencode(".png", objects.mask(n) * np.uint8(255))[1]
            (folder / f"{n:03d}.png").write_bytes(encoded.tobytes())
