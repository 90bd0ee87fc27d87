"""The authors' RetinaNet: matching, loss normaliser, candidates and NMS in inclusive pixels."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import nms

from rdsnet.modeling import OBJECT_STREAM_REGISTRY, RetinaNetStream
from rdsnet.modeling.object_stream import DensePredictions
from rdsnet.modeling.padded import PaddedDetections

from .boxes import (
    InclusiveBox2BoxTransform,
    clip_inclusive,
    inclusive_iou,
    to_continuous,
    to_inclusive,
)


class OverwritingMatcher:
    """Match anchors to objects; the best anchors of an object are its own, whatever else they fit.

    Interface of Detectron2's ``Matcher``. Both give an object's best anchors to it even when the
    IoU is low. Detectron2 leaves such an anchor matched to the object that fits *it* best; here it
    is given to the object whose best anchor it is, and to the last one if there are several. For an
    object that overlaps no anchor all anchors are equally good: it takes them all, except the best
    ones of later objects.

    Args:
        low, high: below ``low`` an anchor is background (0), from ``high`` on it is foreground (1),
            between them it is ignored (-1).
    """

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, iou: Tensor) -> tuple[Tensor, Tensor]:
        """(M objects, R anchors) -> matched object (R,) int64 and label (R,) int8."""
        if iou.numel() == 0:
            background = torch.zeros(iou.shape[1], dtype=torch.int64, device=iou.device)
            return background, background.to(torch.int8)
        best, matched = iou.max(dim=0)
        labels = torch.full_like(matched, -1, dtype=torch.int8)
        labels[best < self.low] = 0
        labels[best >= self.high] = 1
        is_best = iou == iou.amax(dim=1, keepdim=True)
        number = torch.arange(1, len(iou) + 1, device=iou.device)[:, None]
        last = (is_best * number).amax(dim=0) - 1
        matched = torch.where(last >= 0, last, matched)
        labels[last >= 0] = 1
        return matched, labels


@OBJECT_STREAM_REGISTRY.register()
class AuthorsRetinaNetStream(RetinaNetStream):
    """:class:`~rdsnet.modeling.RetinaNetStream` on inclusive boxes, as the authors' code has it.

    Anchors, ``gt_boxes`` and detections are inclusive; use RoundedAnchorGenerator. What differs:

    - :class:`InclusiveBox2BoxTransform`, :class:`OverwritingMatcher`, and IoU with sides of
      x2 - x1 + 1;
    - anchors outside an image's own padded area have no loss, so that the batch's padding does not
      count;
    - both losses are divided by the sum over the process' own images of max(positives, 1), not by a
      running mean;
    - candidates are the classes above the score threshold of the best ``topk_candidates`` anchors
      of a level, while the core takes the best anchor-class pairs;
    - boxes are clipped to pixels 0..W-1, then brought to the output's scale before NMS.

    Args:
        size_divisibility: images are padded to a multiple of it.
        Others: as in the base class.
    """

    def __init__(self, *args, size_divisibility: int = 32, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.size_divisibility = size_divisibility

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        retinanet = cfg.MODEL.RETINANET
        if retinanet.IOU_LABELS != [0, -1, 1] or list(retinanet.BBOX_REG_WEIGHTS) != [1.0] * 4:
            raise ValueError(
                "AuthorsRetinaNetStream needs MODEL.RETINANET.IOU_LABELS [0, -1, 1] and "
                f"BBOX_REG_WEIGHTS (1.0, 1.0, 1.0, 1.0), got {retinanet.IOU_LABELS} and "
                f"{retinanet.BBOX_REG_WEIGHTS}"
            )
        return {
            **super().from_config(cfg, input_shape),
            "box2box_transform": InclusiveBox2BoxTransform(),
            "anchor_matcher": OverwritingMatcher(*retinanet.IOU_THRESHOLDS),
        }

    @torch.no_grad()
    def label_anchors(
        self, predictions: DensePredictions, gt_instances: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        anchors = Boxes.cat(predictions.anchors).tensor
        shape = (len(gt_instances), len(anchors))
        labels = torch.full(shape, -1, dtype=torch.int64, device=anchors.device)
        object_index = torch.zeros_like(labels)
        for i, gt in enumerate(gt_instances):
            inside = self.anchors_inside(predictions, gt.image_size)
            matched, label = self.anchor_matcher(inclusive_iou(gt.gt_boxes.tensor, anchors[inside]))
            classes = label.long()
            classes[label == 0] = self.num_classes
            if len(gt):
                classes[label == 1] = gt.gt_classes[matched[label == 1]]
            labels[i, inside], object_index[i, inside] = classes, matched
        return labels, object_index

    def anchors_inside(self, predictions: DensePredictions, image_size: tuple[int, int]) -> Tensor:
        """Which of the R anchors lie in cells of the padded area of an image of (H, W): (R,)."""
        padded = [
            -(-side // self.size_divisibility) * self.size_divisibility for side in image_size
        ]
        inside = []
        num_anchors = self.anchor_generator.num_anchors
        for features, stride, count in zip(
            predictions.rep_features, self.anchor_generator.strides, num_anchors, strict=True
        ):
            cells = torch.zeros(features.shape[-2:], dtype=torch.bool, device=features.device)
            cells[: -(-padded[0] // stride), : -(-padded[1] // stride)] = True
            inside.append(cells.flatten().repeat_interleave(count))
        return torch.cat(inside)

    @torch.no_grad()
    def update_normalizer(self, num_positives: Tensor) -> Tensor:
        """Sum over this process' images of max(positives, 1). Keeps no running mean.

        Not over those of all processes: the authors' code does not exchange counts either.
        """
        return num_positives.clamp(min=1).sum()

    def detect(
        self,
        predictions: DensePredictions,
        image_sizes: list[tuple[int, int]],
        scale_factors: list[tuple[float, float]] | None = None,
    ) -> list[Instances]:
        """Detections after NMS, best first; pred_boxes are inclusive.

        Args:
            predictions, image_sizes: as in the base class.
            scale_factors: (horizontal, vertical) of every image; boxes are divided by them, that
                is, given in pixels of the original image. None: in pixels of the network's input.
        """
        scale_factors = scale_factors or [(1.0, 1.0)] * len(image_sizes)
        return [
            self.detect_in_image(predictions, i, size, scale)
            for i, (size, scale) in enumerate(zip(image_sizes, scale_factors, strict=True))
        ]

    def detect_in_image(
        self,
        predictions: DensePredictions,
        image: int,
        image_size: tuple[int, int],
        scale_factor: tuple[float, float] = (1.0, 1.0),
    ) -> Instances:
        boxes, scores, places = [], [], []
        first_place = 0
        for logits, deltas, anchors in zip(
            predictions.logits, predictions.deltas, predictions.anchors, strict=True
        ):
            level_scores = logits[image].float().sigmoid()
            count = min(len(level_scores), self.topk_candidates)
            best = level_scores.amax(dim=1).topk(count).indices
            decoded = self.box2box_transform.apply_deltas(
                deltas[image][best].float(), anchors.tensor[best]
            )
            boxes.append(clip_inclusive(decoded, image_size))
            scores.append(level_scores[best])
            places.append(best + first_place)
            first_place += len(anchors)
        boxes, scores, places = torch.cat(boxes), torch.cat(scores), torch.cat(places)
        boxes = boxes / boxes.new_tensor(scale_factor).repeat(2)
        anchor, classes = (scores > self.score_threshold).nonzero(as_tuple=True)
        candidates = Instances(
            image_size,
            pred_boxes=Boxes(boxes[anchor]),
            scores=scores[anchor, classes],
            pred_classes=classes,
            places=places[anchor],
        )
        return candidates[self.nms(candidates)[: self.max_detections]]

    def detect_padded(
        self, predictions: DensePredictions, image_size: tuple[int, int]
    ) -> PaddedDetections:
        """As in the base class; boxes are inclusive."""
        levels = []
        first_place = 0
        for level, anchors in enumerate(predictions.anchors):
            scores = self.scores(predictions, level)
            count = torch.sym_min(scores.shape[0], self.topk_candidates)
            best = scores.amax(dim=1).topk(count).indices
            deltas = predictions.deltas[level][0, best].float()
            levels.append((deltas, anchors.tensor[best], scores[best], best + first_place))
            first_place += anchors.tensor.shape[0]
        deltas, anchors, scores, places = (torch.cat(parts) for parts in zip(*levels))
        boxes = clip_inclusive(self.box2box_transform.apply_deltas(deltas, anchors), image_size)
        scores = scores.masked_fill(scores <= self.score_threshold, 0)
        # A row for every class of every anchor.
        classes = torch.arange(self.num_classes, device=boxes.device).repeat(len(boxes))
        candidates = PaddedDetections(
            to_continuous(boxes).repeat_interleave(self.num_classes, dim=0),
            scores.flatten(),
            classes,
            places.repeat_interleave(self.num_classes),
        )
        detections = candidates.without_suppressed(self.nms_threshold).best(self.max_detections)
        return detections._replace(boxes=to_inclusive(detections.boxes))

    def nms(self, candidates: Instances) -> Tensor:
        """Indices of the detections that NMS per class keeps, best first.

        Class by class: shifting the boxes of each class away from the others, as Detectron2 does,
        rounds them.
        """
        boxes = to_continuous(candidates.pred_boxes.tensor)
        keep = []
        for category in candidates.pred_classes.unique():
            own = (candidates.pred_classes == category).nonzero().squeeze(1)
            keep.append(own[nms(boxes[own], candidates.scores[own], self.nms_threshold)])
        if not keep:
            return candidates.places
        keep = torch.cat(keep)
        return keep[candidates.scores[keep].argsort(descending=True, stable=True)]
