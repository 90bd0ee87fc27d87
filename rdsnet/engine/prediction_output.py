"""The formats that predictions are written in, one writer each.

A writer is a context manager with ``write(frame, instances)`` for every image, the objects on the
CPU. ``files`` says what it writes, relative to the output folder. The files of the whole run are
written as they grow, and complete also when the run is interrupted.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import pycocotools.mask as coco_mask
from detectron2.structures import Instances

from rdsnet.engine.prediction_input import Frame
from rdsnet.evaluation import instances_to_coco_json
from rdsnet.visualization import draw_objects, objects_from_instances
from rdsnet.visualization.objects import class_name

# What labelme's own files say; it reads files of other versions too.
LABELME_VERSION = "5.0.0"
# How far a labelme outline may leave the mask's, in pixels: fewer points are easier to edit.
OUTLINE_TOLERANCE = 0.7


def build_writers(
    formats: Sequence[str],
    output: str | Path,
    classes: tuple[list[str] | None, list[int]],
) -> list[Writer]:
    """Writers into the folder ``output``.

    Args:
        formats: keys of :data:`WRITERS`.
        output: made if missing.
        classes: names (None: unknown) and category id of every class.

    Raises:
        ValueError: for an unknown format.
    """
    unknown = [name for name in formats if name not in WRITERS]
    if unknown:
        raise ValueError(f"formats must be among {', '.join(WRITERS)}; got {', '.join(unknown)}")
    writers = dict.fromkeys(WRITERS[name] for name in formats)  # "png" and "mp4" are one
    return [writer(Path(output), *classes) for writer in writers]


class Writer:
    """What the writers have in common."""

    files: tuple[str, ...]

    def __init__(self, output: Path, names: list[str] | None, category_ids: list[int]) -> None:
        self.output, self.names, self.category_ids = output, names, category_ids

    def __enter__(self) -> Writer:
        self.output.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the files."""

    def write(self, frame: Frame, instances: Instances) -> None:
        raise NotImplementedError


class PictureWriter(Writer):
    """``overlays/NAME.png``: the image with its objects drawn; of a video ``overlays/NAME.mp4``."""

    files = ("overlays/",)

    def __enter__(self) -> PictureWriter:
        super().__enter__()
        self._video: tuple[str, cv2.VideoWriter] | None = None
        return self

    def __exit__(self, *error: object) -> None:
        self._close_video()

    def write(self, frame: Frame, instances: Instances) -> None:
        folder = self.output / "overlays"
        folder.mkdir(exist_ok=True)
        file = folder / f"{frame.video or frame.name}{'.mp4' if frame.video else '.png'}"
        if frame.index == 0 and file.exists() and frame.path.exists() and file.samefile(frame.path):
            raise ValueError(
                f"'{file}' would be overwritten by its own overlay: choose another --output, or "
                "other --input files."
            )
        objects = objects_from_instances(instances, self.names)
        picture = draw_objects(frame.image[:, :, ::-1], objects)[:, :, ::-1]
        if frame.video:
            self._add_to_video(file, frame, picture)
        else:
            encoded = cv2.imencode(".png", picture)[1]
            file.write_bytes(encoded.tobytes())  # cv2.imwrite would report no error

    def _add_to_video(self, file: Path, frame: Frame, picture: np.ndarray) -> None:
        height, width = (side // 2 * 2 for side in picture.shape[:2])  # as video formats want it
        if self._video is None or self._video[0] != frame.video:
            self._close_video()
            # MPEG-4: OpenCV as pip installs it cannot write H.264.
            code = cv2.VideoWriter_fourcc(*"mp4v")
            video = cv2.VideoWriter(str(file), code, frame.frames_per_second, (width, height))
            if not video.isOpened():
                raise OSError(f"OpenCV cannot write the video {file}")
            self._video = frame.video, video
        self._video[1].write(np.ascontiguousarray(picture[:height, :width]))

    def _close_video(self) -> None:
        if self._video is not None:
            self._video[1].release()
            self._video = None


class MaskWriter(Writer):
    """``masks/NAME/000.png``, ...: per object its mask, 255 on it and 0 elsewhere.

    The numbers are those of ``objects.csv``: the surest object is 0.
    """

    files = ("masks/",)

    def write(self, frame: Frame, instances: Instances) -> None:
        folder = self.output / "masks" / frame.name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("[0-9][0-9][0-9]*.png"):  # of an earlier run with more objects
            old.unlink()
        objects = objects_from_instances(instances, self.names)
        for n in range(len(objects)):
            encoded = cv2.imencode(".png", objects.mask(n) * np.uint8(255))[1]
            (folder / f"{n:03d}.png").write_bytes(encoded.tobytes())


class CsvWriter(Writer):
    """``objects.csv``: one row per object.

    Boxes in pixels of the image, from its left or upper border; ``area`` is the number of pixels of
    the mask. ``frame`` is empty for image files.
    """

    files = ("objects.csv",)
    columns = "file frame object class score x1 y1 x2 y2 width height area".split()

    def __enter__(self) -> CsvWriter:
        super().__enter__()
        self._file = open(self.output / "objects.csv", "w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file)
        self._rows.writerow(self.columns)
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, frame: Frame, instances: Instances) -> None:
        objects = objects_from_instances(instances, self.names)
        for n, (x1, y1, x2, y2) in enumerate(objects.boxes.tolist()):
            label = class_name(self.names, int(instances.pred_classes[n]))
            score = f"{float(instances.scores[n]):.4f}"
            box = [f"{value:.2f}" for value in (x1, y1, x2, y2, x2 - x1, y2 - y1)]
            area = int(coco_mask.area(objects.rles[n])) if objects.rles is not None else ""
            number = frame.index if frame.video else ""
            self._rows.writerow([frame.path, number, n, label, score, *box, area])


class CocoWriter(Writer):
    """``coco_instances_results.json``, COCO results, and ``images.json``, what their ids mean.

    ``image_id`` counts the predicted images from 0; an image of a video has its number as
    ``frame``. pycocotools loads both:
    ``COCO("images.json").loadRes("coco_instances_results.json")``.
    """

    files = ("coco_instances_results.json", "images.json")

    def __enter__(self) -> Writer:
        super().__enter__()
        categories = [
            {"id": id_, "name": class_name(self.names, k)}
            for k, id_ in enumerate(self.category_ids)
        ]
        head = f'{{"categories": {json.dumps(categories)},\n"images": '
        self.results = JsonList(self.output / "coco_instances_results.json")
        self.images = JsonList(self.output / "images.json", head, "}")
        return self

    def __exit__(self, *error: object) -> None:
        self.results.close()
        self.images.close()

    def write(self, frame: Frame, instances: Instances) -> None:
        height, width = frame.image.shape[:2]
        image_id = len(self.images)
        entry = {"id": image_id, "file_name": str(frame.path), "height": height, "width": width}
        self.images.append({**entry, "frame": frame.index} if frame.video else entry)
        for result in instances_to_coco_json(instances, image_id):
            result["category_id"] = self.category_ids[result["category_id"]]
            self.results.append(result)


class LabelmeWriter(Writer):
    """``labelme/NAME.json``: outlines as polygons, to be opened with the program labelme.

    Coordinates are continuous: pixel column i reaches from x = i to i + 1. Parts of one object
    share a ``group_id``; holes are lost, since labelme's polygons have none.
    """

    files = ("labelme/",)

    def write(self, frame: Frame, instances: Instances) -> None:
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
            "version": LABELME_VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": os.path.relpath(frame.path, folder),
            "imageData": None,
            "imageHeight": frame.image.shape[0],
            "imageWidth": frame.image.shape[1],
        }
        (folder / f"{frame.name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


WRITERS: dict[str, type[Writer]] = {
    "png": PictureWriter,
    "mp4": PictureWriter,
    "coco": CocoWriter,
    "labelme": LabelmeWriter,
    "masks": MaskWriter,
    "csv": CsvWriter,
}


class JsonList:
    """A JSON list in a file that grows by one entry at a time."""

    def __init__(self, path: Path, head: str = "", tail: str = "") -> None:
        self._file = open(path, "w", encoding="utf-8")
        self._file.write(head + "[")
        self._tail = tail
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, entry: dict) -> None:
        self._file.write((",\n" if self._length else "\n") + json.dumps(entry))
        self._length += 1

    def close(self) -> None:
        self._file.write("\n]" + self._tail + "\n")
        self._file.close()


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Outer outlines of a mask's connected parts, along the edges of its pixels.

    Args:
        mask: (H, W) uint8, non-zero = object.

    Returns:
        Per part (P, 2) points x, y in continuous pixel coordinates, P >= 3.
    """
    # OpenCV's contours run through pixel centres. In a mask of twice the size, every pixel has a
    # first and a second half; the outline of the pixel is where they begin and end.
    doubled = mask.repeat(2, axis=0).repeat(2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    polygons = []
    for contour in contours:
        points = ((contour[:, 0] + 1) // 2).astype(np.float32)
        simple = cv2.approxPolyDP(points[:, None], OUTLINE_TOLERANCE, True)[:, 0]
        polygons.append(simple if len(simple) >= 3 else points)
    return polygons
