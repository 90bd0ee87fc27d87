"""What an overlay draws, whether it was detected or annotated."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pycocotools.mask as coco_mask
from detectron2.structures import BoxMode, Instances

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Objects:
    """N objects in one image of H x W pixels.

    Attributes:
        boxes: (N, 4) XYXY in pixels, continuous coordinates.
        rles: per object COCO's compressed RLE of its mask, H x W; or None: no masks.
        labels: N short texts; "": none.
        colors: N colours, RGB in 0..255.
        regressed_boxes: (N, 4), the same before MBRM, or None.
    """

    boxes: np.ndarray
    rles: Sequence[dict] | None
    labels: Sequence[str]
    colors: Sequence[Color]
    regressed_boxes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def mask(self, index: int) -> np.ndarray:
        """(H, W) uint8, 1 on the object."""
        return coco_mask.decode(self.rles[index])


def strong_color(index: int) -> Color:
    """A strong colour; those of neighbouring indices are far apart."""
    hue = (0.58 + index * 0.381966) % 1.0
    saturation, value = ((0.85, 1.0), (0.7, 0.85), (0.55, 1.0))[index // 6 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def class_name(class_names: Sequence[str] | None, index: int) -> str:
    """The name of a class, or "class 3" where the names are not known."""
    if class_names is not None and index < len(class_names):
        return class_names[index]
    return f"class {index}"


def _label(class_names: Sequence[str] | None, index: int, score: float | None = None) -> str:
    """Class and score; of a model's only class the score alone, since all names are the same."""
    only = class_names is not None and len(class_names) == 1
    words = [] if only else [class_name(class_names, index)]
    return " ".join(words + ([] if score is None else [f"{score:.0%}"]))


def objects_from_instances(
    instances: Instances, class_names: Sequence[str] | None = None
) -> Objects:
    """Detections on the CPU, as the model returns them; labels are class and score.

    ``pred_masks`` may be a dense tensor or :class:`~rdsnet.ops.CompactMasks`, and may be missing,
    as may ``regressed_boxes``.
    """
    fields = instances.get_fields()
    rles = None
    if "pred_masks" in fields:
        masks = fields["pred_masks"]
        rles = masks.rle() if hasattr(masks, "rle") else [_encode(mask.numpy()) for mask in masks]
    regressed = fields.get("regressed_boxes")
    scored = zip(instances.pred_classes.tolist(), instances.scores.tolist(), strict=True)
    return Objects(
        boxes=instances.pred_boxes.tensor.detach().numpy(),
        rles=rles,
        labels=[_label(class_names, k, score) for k, score in scored],
        colors=[strong_color(n) for n in range(len(instances))],
        regressed_boxes=None if regressed is None else regressed.tensor.detach().numpy(),
    )


def objects_from_results(
    results: Sequence[dict], class_names: Sequence[str] | None = None
) -> Objects:
    """COCO results of one image with contiguous ``category_id``; labels are class and score."""
    regressed = [r["bbox_regressed"] for r in results if "bbox_regressed" in r]
    return Objects(
        boxes=_xyxy([r["bbox"] for r in results]),
        rles=[r["segmentation"] for r in results]
        if "segmentation" in (results or [{}])[0]
        else None,
        labels=[_label(class_names, r["category_id"], r["score"]) for r in results],
        colors=[strong_color(n) for n in range(len(results))],
        regressed_boxes=_xyxy(regressed) if regressed else None,
    )


def objects_from_annotations(
    dataset_dict: dict, class_names: Sequence[str] | None = None
) -> Objects:
    """Ground truth from an entry of a Detectron2 data set; labels are the classes.

    Crowd regions are left out: they are not single objects.
    """
    size = dataset_dict["height"], dataset_dict["width"]
    annotations = [a for a in dataset_dict["annotations"] if not a.get("iscrowd", 0)]
    boxes = [
        BoxMode.convert(a["bbox"], BoxMode(a["bbox_mode"]), BoxMode.XYXY_ABS) for a in annotations
    ]
    return Objects(
        boxes=np.asarray(boxes, dtype=np.float64).reshape(-1, 4),
        rles=[_annotation_rle(a.get("segmentation", []), size) for a in annotations],
        labels=[_label(class_names, a["category_id"]) for a in annotations],
        colors=[strong_color(n) for n in range(len(annotations))],
    )


def objects_from_masks(
    boxes: np.ndarray,
    masks: Sequence[np.ndarray],
    classes: Sequence[int],
    class_names: Sequence[str] | None = None,
) -> Objects:
    """Ground truth as a model is given it: (N, 4) XYXY, N masks (H, W), N classes."""
    return Objects(
        boxes=boxes,
        rles=[_encode(mask) for mask in masks],
        labels=[_label(class_names, k) for k in classes],
        colors=[strong_color(n) for n in range(len(boxes))],
    )


def match_colors(objects: Objects, reference: Objects, min_iou: float = 0.4) -> Objects:
    """Give objects the colours of the reference objects that their masks cover.

    So that one thing has one colour in two pictures of the same image. What covers nothing of the
    reference keeps to colours that the reference does not use.
    """
    if not len(objects) or objects.rles is None:
        return objects
    colors = [strong_color(len(reference) + n) for n in range(len(objects))]
    if len(reference):
        ious = coco_mask.iou(list(objects.rles), list(reference.rles), [0] * len(reference))
        for n, best in enumerate(ious.argmax(1)):
            if ious[n, best] >= min_iou:
                colors[n] = reference.colors[best]
    return replace(objects, colors=colors)


def _xyxy(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """(N, 4) XYXY from x, y, width, height."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _encode(mask: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def _annotation_rle(segmentation: list | dict, size: tuple[int, int]) -> dict:
    encode: Callable = coco_mask.frPyObjects
    if isinstance(segmentation, dict):
        compressed = not isinstance(segmentation["counts"], list)
        return segmentation if compressed else encode(segmentation, *size)
    if not segmentation:
        return _encode(np.zeros(size))
    return coco_mask.merge(encode(segmentation, *size))
