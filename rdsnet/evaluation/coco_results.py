"""Detections of the model in COCO's result format."""

from __future__ import annotations

from detectron2.evaluation.coco_evaluation import instances_to_coco_json as detectron2_to_coco_json
from detectron2.structures import BoxMode, Instances
from torch import Tensor


def instances_to_coco_json(instances: Instances, image_id: int | str) -> list[dict]:
    """One entry of a COCO result file per object.

    Args:
        instances: detections on the CPU: pred_boxes, scores, pred_classes and, where there are,
            regressed_boxes (boxes before MBRM) and pred_masks, a (N, H, W) tensor or
            :class:`~rdsnet.ops.CompactMasks`, which are never made dense.
        image_id: written into every entry.

    Returns:
        Per object ``image_id``, ``category_id`` (the contiguous class number), ``bbox`` and
        ``bbox_regressed`` (x, y, width, height in pixels), ``score`` and ``segmentation`` (COCO's
        compressed RLE). pycocotools loads such a file; it does not look at ``bbox_regressed``.
    """
    fields = instances.get_fields()
    masks = fields.get("pred_masks")
    compact = masks is not None and not isinstance(masks, Tensor)
    left_to_detectron2 = Instances(
        instances.image_size,
        **{name: value for name, value in fields.items() if not (compact and name == "pred_masks")},
    )
    results = detectron2_to_coco_json(left_to_detectron2, image_id)
    if compact:
        for result, rle in zip(results, masks.rle(), strict=True):
            result["segmentation"] = rle
    if "regressed_boxes" in fields:
        boxes = fields["regressed_boxes"].tensor
        boxes = BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
        for result, box in zip(results, boxes, strict=True):
            result["bbox_regressed"] = box
    return results
