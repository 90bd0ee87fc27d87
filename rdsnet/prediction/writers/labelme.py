"""The format "labelme": outlines to open and correct in the program labelme."""

from __future__ import annotations

import base64
import json
import os

import cv2
import numpy as np
from detectron2.structures import Instances

from rdsnet.data.channels import picture_of
from rdsnet.prediction.sources import Frame
from rdsnet.prediction.writers.writer import Writer
from rdsnet.visualization import objects_from_instances
from rdsnet.visualization.objects import class_name

# What labelme's own files say; it reads files of other versions too.
_LABELME_VERSION = "5.0.0"
# How far a labelme outline may leave the mask's, in pixels: fewer points are easier to edit.
_OUTLINE_TOLERANCE = 0.7


class LabelmeWriter(Writer):
    """``labelme/NAME.json``: outlines as polygons, to be opened with the program labelme.

    Coordinates are continuous: pixel column i reaches from x = i to i + 1. Parts of one object
    share a ``group_id``; holes are lost, since labelme's polygons have none.
    """

    files = ("labelme/",)

    def add(self, frame: Frame, instances: Instances) -> None:
        folder = self.output / "labelme"
        folder.mkdir(exist_ok=True)
        objects = objects_from_instances(instances, self.names)
        shapes = []
        for n in range(len(objects)):
            label = class_name(self.names, int(instances.pred_classes[n]))
            polygons = outlines(objects.mask(n))
            for polygon in polygons:
                shapes.append(
                    {
                        "label": label,
                        "points": polygon.tolist(),
                        "group_id": n if len(polygons) > 1 else None,
                        "description": f"score {float(instances.scores[n]):.3f}",
                        "shape_type": "polygon",
                        "flags": {},
                    }
                )
        content = {
            "version": _LABELME_VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": os.path.relpath(frame.path, folder),
            # labelme opens the first image of a file alone: others go into its own file.
            "imageData": _embedded(picture_of(frame.image)) if frame.index else None,
            "imageHeight": frame.image.shape[0],
            "imageWidth": frame.image.shape[1],
        }
        (folder / f"{frame.name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def _embedded(image: np.ndarray) -> str:
    """A (H, W, 3) BGR image as labelme keeps it inside its json: PNG in base 64."""
    return base64.b64encode(cv2.imencode(".png", image)[1].tobytes()).decode("ascii")


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Outer outlines of a mask's connected parts, along the edges of its pixels.

    Args:
        mask: (H, W) uint8, non-zero = object.

    Returns:
        Per part (P, 2) points x, y in continuous pixel coordinates, P >= 3.
    """
    return [_simpler(rings[0]) for rings in _rings(mask)]


def exact_outlines(mask: np.ndarray) -> list[list[np.ndarray]]:
    """Valid polygons whose area is that of the mask: corner by corner, with holes.

    Args:
        mask: as of :func:`outlines`.

    Returns:
        Per part its outer outline and those of its holes. Pixels that touch at a corner alone are
        two parts: one ring around both would touch itself.
    """
    count, labels = cv2.connectedComponents(mask, connectivity=4)
    return [rings for k in range(1, count) for rings in _rings((labels == k).astype(np.uint8))]


def _rings(mask: np.ndarray) -> list[list[np.ndarray]]:
    """Per connected part its outer outline and those of its holes, (P, 2) each."""
    # OpenCV's contours run through pixel centres. In a mask of twice the size, every pixel has a
    # first and a second half; the outline of the pixel is where they begin and end. Contours of
    # holes run through the pixels around them: likewise.
    doubled = mask.repeat(2, axis=0).repeat(2, axis=1)
    contours, tree = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parts: dict[int, list[np.ndarray]] = {}
    for k, (_, _, _, parent) in enumerate(tree[0] if contours else []):
        points = ((contours[k][:, 0] + 1) // 2).astype(np.float32)
        is_new = (points != np.roll(points, 1, axis=0)).any(1)  # corners of holes come twice
        parts.setdefault(k if parent < 0 else parent, []).append(points[is_new])
    return list(parts.values())


def _simpler(points: np.ndarray) -> np.ndarray:
    simple = cv2.approxPolyDP(points[:, None], _OUTLINE_TOLERANCE, True)[:, 0]
    return simple if len(simple) >= 3 else points
