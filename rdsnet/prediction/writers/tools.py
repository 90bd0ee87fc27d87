"""The formats "cvat" and "label-studio": what annotation tools import, to be corrected there."""

from __future__ import annotations

import os
import uuid
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from detectron2.structures import Instances

from rdsnet.prediction.sources import Frame
from rdsnet.prediction.writers.coco import JsonList
from rdsnet.prediction.writers.labelme import outlines
from rdsnet.prediction.writers.writer import Writer
from rdsnet.visualization import objects_from_instances
from rdsnet.visualization.objects import class_name

# Ids are made of names and numbers: the same in every run.
_IDS = uuid.UUID("0c7a2a0e-6a2f-4c0c-8d27-3a0f4a6d9f11")


class CvatWriter(Writer):
    """``cvat.xml``: polygons in CVAT's own format, "CVAT for images 1.1".

    CVAT finds an image by its file's name; labels of the task must have the names of the classes.
    CVAT does not read those in the file's head, but datumaro does, and refuses a file without a
    head. Parts of one object share a ``group_id``. Holes and scores are lost: polygons have none,
    and an attribute that a task does not declare is refused. Objects lie above surer ones.
    """

    files = ("cvat.xml",)

    def begin(self) -> None:
        self._file = open(self.output / "cvat.xml", "w", encoding="utf-8")
        self._file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n')
        self._file.write("  <version>1.1</version>\n")
        named = "".join(f"<label><name>{escape(k)}</name></label>" for k in _labels(self))
        self._file.write(f"  <meta><task><labels>{named}</labels></task></meta>\n")
        self._count = self._groups = 0
        self._write("")

    def end(self) -> None:
        self._file.close()

    def add(self, frame: Frame, instances: Instances) -> None:
        height, width = frame.image.shape[:2]
        lines = [
            f'  <image id="{self._count}" name={quoteattr(_image_name(frame))} width="{width}" '
            f'height="{height}">'
        ]
        self._count += 1
        for n, (label, polygons) in enumerate(_named_polygons(instances, self.names)):
            self._groups += len(polygons) > 1
            group = f' group_id="{self._groups}"' if len(polygons) > 1 else ""
            for polygon in polygons:
                points = ";".join(f"{x:.2f},{y:.2f}" for x, y in polygon)
                lines.append(
                    f'    <polygon label={quoteattr(label)} source="auto" occluded="0" '
                    f'points="{points}" z_order="{n}"{group}/>'
                )
        lines.append("  </image>\n")
        self._file.seek(self._end)
        self._write("\n".join(lines))

    def _write(self, text: str) -> None:
        """Text and behind it the end of the file, which the next text replaces."""
        self._file.write(text)
        self._end = self._file.tell()
        self._file.write("</annotations>\n")
        self._file.flush()


class LabelStudioWriter(Writer):
    """``label_studio.json``: tasks with predictions, and ``label_studio.xml``: the labelling config
    of the project that takes them.

    Images stay where they are: their addresses are those by which Label Studio serves files of its
    own machine. Points are percents of the image. A region has the score of its object, and a
    prediction the lowest of them, by which Label Studio's list of tasks shows the uncertain images
    first. Parts of one object are regions ``ID-part1``, ``ID-part2`` ..., which
    :mod:`rdsnet.data.formats.label_studio` joins. Holes are lost, since its polygons have none.
    """

    files = ("label_studio.json", "label_studio.xml")

    def begin(self) -> None:
        labels = "".join(f"    <Label value={quoteattr(label)}/>\n" for label in _labels(self))
        (self.output / "label_studio.xml").write_text(
            '<View>\n  <Image name="image" value="$image"/>\n'
            f'  <PolygonLabels name="label" toName="image">\n{labels}  </PolygonLabels>\n</View>\n',
            encoding="utf-8",
        )
        self._tasks = JsonList(self.output / "label_studio.json")

    def end(self) -> None:
        self._tasks.close()

    def add(self, frame: Frame, instances: Instances) -> None:
        height, width = frame.image.shape[:2]
        scores = [round(score, 4) for score in instances.scores.tolist()]
        result = []
        for n, (label, polygons) in enumerate(_named_polygons(instances, self.names)):
            unique = uuid.uuid5(_IDS, f"{frame.name} {n}").hex[:10]
            for k, polygon in enumerate(polygons):
                points = [[100 * x / width, 100 * y / height] for x, y in polygon.tolist()]
                region = {
                    "id": f"{unique}-part{k + 1}" if len(polygons) > 1 else unique,
                    "type": "polygonlabels",
                    "from_name": "label",
                    "to_name": "image",
                    "original_width": width,
                    "original_height": height,
                    "image_rotation": 0,
                    "score": scores[n],
                    "value": {"points": points, "closed": True, "polygonlabels": [label]},
                }
                result.append(region)
        prediction = {"model_version": "rdsnet", "result": result}
        if scores:
            prediction["score"] = min(scores)
        image = _image_name(frame) if frame.is_one_of_many else _served(frame)
        self._tasks.extend([{"data": {"image": image}, "predictions": [prediction]}])


def _labels(writer: Writer) -> list[str]:
    """Names of all classes, in their order."""
    count = len(writer.category_ids)
    return list(dict.fromkeys(class_name(writer.names, k) for k in range(count)))


def _served(frame: Frame) -> str:
    """The address of a file that Label Studio serves when its document root is "/"."""
    return "/data/local-files/?d=" + quote(os.fsencode(os.path.abspath(frame.path)[1:]))


def _named_polygons(instances: Instances, names: list[str] | None) -> list[tuple[str, list]]:
    """Class name and outlines of every object that has pixels."""
    objects = objects_from_instances(instances, names)
    labels = [class_name(names, k) for k in instances.pred_classes.tolist()]
    return [(label, outlines(objects.mask(n))) for n, label in enumerate(labels)]


def _image_name(frame: Frame) -> str:
    """Of the file; of a page of several that of its outputs."""
    return frame.name if frame.is_one_of_many else frame.path.name
