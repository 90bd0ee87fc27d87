"""The objects of one image, for those who look at them or compute with them in Python."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pycocotools.mask as coco_mask
from detectron2.structures import Instances
from PIL import Image

from rdsnet.data.findings import counted
from rdsnet.visualization import draw_objects, objects_from_instances
from rdsnet.visualization.objects import class_name
from rdsnet.visualization.page import picture_uri

if TYPE_CHECKING:
    import pandas
    import supervision


class Result:
    """N objects, best first.

    Args:
        image: (H, W, 3) uint8 RGB.
        instances: on the CPU, as the model gives them; masks dense or compact.
        class_names: of the model; None: unknown.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        boxes: (N, 4) float32 x1, y1, x2, y2 after MBRM, in pixels, continuous coordinates.
        scores: (N,) float32.
        classes: (N,) int64, 0 .. K-1.
        names: N texts, of the classes.
        instances: all of it as Detectron2 has it, with ``regressed_boxes``, before MBRM.
    """

    def __init__(
        self, image: np.ndarray, instances: Instances, class_names: Sequence[str] | None
    ) -> None:
        self.image, self.instances = image, instances
        self.boxes = instances.pred_boxes.tensor.numpy()
        self.scores, self.classes = instances.scores.numpy(), instances.pred_classes.numpy()
        self.names = [class_name(class_names, k) for k in self.classes.tolist()]
        self._objects = objects_from_instances(instances, class_names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"<Result: {self.text()}>"

    def text(self) -> str:
        """How many objects there are, and of which classes."""
        height, width = self.image.shape[:2]
        text = f"{counted(len(self), 'object')} in {width} x {height} pixels"
        kinds = ", ".join(f"{n} {name}" for name, n in Counter(self.names).most_common())
        return f"{text}: {kinds}" if kinds else text

    @cached_property
    def masks(self) -> np.ndarray:
        """(N, H, W) bool."""
        masks = [self._objects.mask(n) for n in range(len(self))]
        return np.array(masks, bool).reshape(-1, *self.image.shape[:2])

    def plot(self) -> Image.Image:
        """The image with its objects drawn, as RGB; small images are enlarged.

        A notebook shows it; ``plot().save("overlay.png")`` keeps it.
        """
        return Image.fromarray(draw_objects(self.image, self._objects))

    def _repr_html_(self) -> str:
        """What a notebook shows: the overlay and how many there are."""
        uri = picture_uri(np.asarray(self.plot()))
        text = html.escape(self.text())
        return f'<figure><img src="{uri}" alt="{text}"><figcaption>{text}</figcaption></figure>'

    def to_pandas(self) -> pandas.DataFrame:
        """One row per object: class, score, x1, y1, x2, y2 and area (of the mask), in pixels."""
        pandas = _wanted("pandas", "to_pandas")
        # Text also where there are no objects, so that tables of many images fit together.
        columns = {"class": pandas.Series(self.names, dtype=str), "score": self.scores}
        columns |= dict(zip(("x1", "y1", "x2", "y2"), self.boxes.T))
        # One by one: of more than 255 masks at once pycocotools fails with NumPy 2.
        columns["area"] = np.array([coco_mask.area(r) for r in self._objects.rles], np.int64)
        return pandas.DataFrame(columns)

    def to_supervision(self) -> supervision.Detections:
        """As Roboflow's supervision has them; the names are its data "class_name"."""
        return _wanted("supervision", "to_supervision").Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.classes,
            data={"class_name": np.array(self.names, str)},
        )


def _wanted(package: str, method: str) -> ModuleType:
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ModuleNotFoundError(
            f"{method}() needs {package}, which is not installed: pip install {package}",
            name=package,
        ) from error
