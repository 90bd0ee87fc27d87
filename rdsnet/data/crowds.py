"""Objects that were exported as crowds (``iscrowd`` 1), which training leaves out.

In COCO a crowd is a region of many things that nobody has told apart. Some tools, such as CVAT,
write the masks of their brush as RLE with ``iscrowd`` 1, though each is one object.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pycocotools.mask as mask_util

from rdsnet.data.findings import Finding, printable
from rdsnet.data.ids import shown_id
from rdsnet.data.rle import segmentation_rle

REMEDY = (
    "If each is one object, as CVAT's brush writes them, make them objects: 'rdsnet check-data "
    "--fix OUT.json --crowds-are-objects', or DATASETS.CROWDS_ARE_OBJECTS True for training."
)


def crowds_as_objects(content: dict) -> tuple[dict, int]:
    """The content with every crowd made an object, and how many there were.

    Args:
        content: as :func:`rdsnet.data.coco_json.read_coco_json` returns it; not changed.
    """
    annotations, count = [], 0
    for annotation in content["annotations"]:
        if isinstance(annotation, dict) and annotation.get("iscrowd", 0) == 1:
            annotation = {**annotation, "iscrowd": 0}
            count += 1
        annotations.append(annotation)
    return {**content, "annotations": annotations}, count


def crowd_summary(crowds: int, annotations: int) -> str | None:
    """What to say about a data set of which at least half the annotations are crowds."""
    if crowds == 0 or 2 * crowds < annotations:
        return None
    share = f"all {annotations}" if crowds == annotations else f"{crowds} of {annotations}"
    return f"{share} annotations are crowds (iscrowd 1), which do not count as objects. {REMEDY}"


def crowd_findings(content: dict) -> Iterator[Finding]:
    """Crowds that may be objects: all where they are most annotations, else single regions.

    Args:
        content: its annotations are all usable.
    """
    crowds = [annotation for annotation in content["annotations"] if annotation.get("iscrowd", 0)]
    images = {image["id"]: image for image in content["images"]}
    are_most = crowd_summary(len(crowds), len(content["annotations"])) is not None
    for crowd in crowds:
        image = images[crowd["image_id"]]
        size = image["height"], image["width"]
        if are_most:
            message = f"a crowd, as are {len(crowds)} of {len(content['annotations'])} annotations"
        elif region_count(crowd["segmentation"], size) == 1:
            message = "a crowd that is one connected region"
        else:
            continue
        where = f"annotation {shown_id(crowd['id'])} of image {shown_id(crowd['image_id'])}"
        where += f" ('{printable(image['file_name'])}')"
        yield Finding("crowd", where, message)


def region_count(segmentation: list | dict, size: tuple[int, int]) -> int:
    """Connected regions of a mask; pixels that touch at a corner are connected.

    Args:
        segmentation: polygons or RLE, usable.
        size: height and width of the image.
    """
    rle = segmentation_rle(segmentation, size)
    x, y, width, height = mask_util.toBbox(rle).astype(int).tolist()
    mask = mask_util.decode(rle)[y : y + height, x : x + width]
    return cv2.connectedComponents(np.ascontiguousarray(mask))[0] - 1 if mask.size else 0
