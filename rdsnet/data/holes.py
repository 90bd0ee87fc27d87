"""Polygons that lie inside another polygon of the same object: holes, for some exporters.

COCO's polygons have no holes: a mask is all that any of its polygons covers. Exporters that take
outlines from masks, as ``cv2.findContours`` does, nevertheless write the outline of a hole as one
more polygon, and islands in the hole as further ones, in any order and direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pycocotools.mask as mask_util
import shapely

from rdsnet.data.findings import Finding, counted
from rdsnet.data.ids import shown_id


def hole_findings(content: dict) -> Iterator[Finding]:
    """Annotations with polygons inside of others; all annotations are usable."""
    for annotation in content["annotations"]:
        if count := inner_polygons(annotation["segmentation"]):
            where = f"annotation {shown_id(annotation['id'])} of image "
            where += shown_id(annotation["image_id"])
            polygons = counted(len(annotation["segmentation"]), "polygon")
            yield Finding("polygon inside another", where, f"{count} of its {polygons}")


def inner_polygons(segmentation: list | dict) -> int:
    """How many polygons of a usable segmentation lie inside another one."""
    if isinstance(segmentation, dict) or len(segmentation) < 2:
        return 0
    return len(np.unique(_containment(segmentation)[1]))


def inner_polygons_as_holes(content: dict) -> tuple[dict, int]:
    """The content with RLE instead of polygons inside of others, and how many objects that are.

    Args:
        content: its annotations are all usable; not changed.

    Returns:
        Objects that would have no pixel left, as of a ring thinner than a pixel, stay as they are.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    annotations, count = [], 0
    for annotation in content["annotations"]:
        if inner_polygons(annotation["segmentation"]):
            rle = with_holes(annotation["segmentation"], sizes[annotation["image_id"]])
            if area := int(mask_util.area(rle)):
                annotation = {**annotation, "segmentation": rle, "area": area}
                count += 1
        annotations.append(annotation)
    return {**content, "annotations": annotations}, count


def with_holes(polygons: Sequence[list[float]], size: tuple[int, int]) -> dict:
    """RLE of an object some of whose polygons are holes.

    A polygon in no other one is part of the object, one inside it a hole, one inside that an island
    again, and so on. Each is drawn as pycocotools draws it. A hole is cut out of the polygons that
    it lies in, not out of others that reach into it.

    Args:
        polygons: [x1, y1, x2, y2, ...] each, usable.
        size: height and width of the image.

    Returns:
        Compressed RLE, its counts a str.
    """
    outer, inner = _containment(polygons)
    depth = _depths(len(polygons), outer, inner)
    drawn = mask_util.frPyObjects(list(polygons), *size)
    mask = np.zeros(size, dtype=bool)
    for n in np.flatnonzero(depth % 2 == 0):
        part = mask_util.decode(drawn[n]).astype(bool)
        for hole in inner[(outer == n) & (depth[inner] % 2 == 1)]:
            part &= ~mask_util.decode(drawn[hole]).astype(bool)
        mask |= part
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(size), "counts": rle["counts"].decode("ascii")}


def _containment(polygons: Sequence[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (P,), (P,) of the indices of a polygon and of one that lies properly inside it.

    One that touches the border of the other does not: it is another part of the object.
    """
    shapes = [shapely.Polygon(np.reshape(polygon, (-1, 2))) for polygon in polygons]
    shapes = shapely.make_valid(shapes)  # some cross themselves
    return tuple(shapely.STRtree(shapes).query(shapes, predicate="contains_properly"))


def _depths(count: int, outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """(count,) in how many polygons, each inside the next, a polygon lies."""
    depth = np.zeros(count, dtype=int)
    while True:
        deeper = np.zeros(count, dtype=int)
        np.maximum.at(deeper, inner, depth[outer] + 1)
        if (deeper == depth).all():
            return depth
        depth = deeper
