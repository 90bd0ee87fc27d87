"""Masks: a black and white picture per object."""

from __future__ import annotations

import numpy as np
from detectron2.structures import Instances

from rdsnet.engine.prediction_frames import Frame
from rdsnet.engine.writers.pictures import write_png
from rdsnet.engine.writers.writer import Writer
from rdsnet.visualization import objects_from_instances


class MaskWriter(Writer):
    """``masks/NAME/000.png``, ...: per object its mask, 255 on it and 0 elsewhere.

    The numbers are those of ``objects.csv``: the surest object is 0.
    """

    files = ("masks/",)

    def write(self, frame: Frame, instances: Instances) -> None:
        folder = self.folder("masks", frame.name)
        for old in folder.glob("[0-9][0-9][0-9]*.png"):  # of an earlier run with more objects
            old.unlink()
        objects = objects_from_instances(instances, self.names)
        for n in range(len(objects)):
            write_png(folder / f"{n:03d}.png", objects.mask(n) * np.uint8(255))
