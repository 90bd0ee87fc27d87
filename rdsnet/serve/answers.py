"""The formats of answers, and which one a request wants."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from detectron2.structures import Instances

from rdsnet.data.channels import picture_of
from rdsnet.evaluation import instances_to_coco_json
from rdsnet.prediction.sources import Frame
from rdsnet.prediction.uploads import Upload
from rdsnet.prediction.writers import WRITERS
from rdsnet.prediction.writers.coco import coco_document
from rdsnet.visualization import draw_objects, objects_from_instances


@dataclass(frozen=True)
class Answer:
    """What was found in an image.

    Attributes:
        upload: the image.
        instances: N objects on the CPU, best first.
        is_cut_off: whether there were more than the model may find.
        class_names: of the model; None: unknown.
        category_ids: of its classes.
    """

    upload: Upload
    instances: Instances
    is_cut_off: bool
    class_names: list[str] | None
    category_ids: Sequence[int]

    def headers(self) -> dict[str, str]:
        """What those formats do not say that know objects alone."""
        return {
            "X-RDSNet-Objects": str(len(self.instances)),
            "X-RDSNet-Cut-Off": str(self.is_cut_off).lower(),
            "X-RDSNet-Pages": str(self.upload.pages),
        }


def as_coco(answer: Answer) -> bytes:
    """A COCO data set of one image; annotations also have ``score`` and ``bbox_regressed``."""
    results = instances_to_coco_json(answer.instances, image_id=1)
    upload = answer.upload
    classes = answer.class_names, answer.category_ids
    document = coco_document(upload.name, upload.image.shape[:2], results, *classes)
    document["info"] = {"pages": upload.pages, "is_cut_off": answer.is_cut_off}
    return json.dumps(document).encode()


def as_png(answer: Answer) -> bytes:
    """The image with its objects drawn, as ``rdsnet predict --format png`` has it."""
    objects = objects_from_instances(answer.instances, answer.class_names)
    picture = draw_objects(picture_of(answer.upload.image)[:, :, ::-1], objects)[:, :, ::-1]
    return cv2.imencode(".png", np.ascontiguousarray(picture))[1].tobytes()


def as_geojson(answer: Answer) -> bytes:
    """A FeatureCollection, as ``rdsnet predict --format geojson`` has it."""
    frame = Frame("image", Path(answer.upload.name), answer.upload.image)
    with tempfile.TemporaryDirectory() as folder:
        classes = answer.class_names, list(answer.category_ids)
        with WRITERS["geojson"](Path(folder), *classes) as writer:
            writer.write(frame, answer.instances)
        (file,) = Path(folder).rglob("*.geojson")
        return file.read_bytes()


@dataclass(frozen=True)
class Format:
    """How an answer is written, and the media type that it has."""

    media_type: str
    write: Callable[[Answer], bytes]


# The first is what comes without a wish.
FORMATS = {
    "coco": Format("application/json", as_coco),
    "png": Format("image/png", as_png),
    "geojson": Format("application/geo+json", as_geojson),
}


def accepted(header: str) -> str | None:
    """The format that an Accept header likes best, the earlier of equals; None: it takes none."""
    wishes = []
    for number, part in enumerate(header.split(",")):
        media_type, *parameters = (word.strip().lower() for word in part.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            wishes.append((-float(quality), number, media_type))
        except ValueError:
            continue
    for quality, _, media_type in sorted(wishes):
        for name, format in FORMATS.items():
            kind = format.media_type.partition("/")[0] + "/*"
            if quality < 0 and media_type in ("", "*/*", kind, format.media_type):
                return name
    return None
