"""YOLACT's detector with representations: one shared head, softmax confidence, SSD box coding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from rdsnet.data.masks import dense_ground_truth_masks
from rdsnet.modeling import OBJECT_STREAM_REGISTRY, DensePredictions, ObjectStream, Positives
from rdsnet.modeling.lazy_conv import convolve_at
from rdsnet.modeling.object_stream import matched_boxes
from rdsnet.modeling.padded import PaddedDetections
from rdsnet.modeling.precision import widened
from rdsnet.modeling.processes import divisor_for
from rdsnet.ops import mask_targets

from .fast_nms import fast_nms, largest_overlap_before
from .layers import conv_block, initialize
from .matching import FOREGROUND, hard_negatives, match_anchors

# SSD's variances 0.1 and 0.2, by which offsets of centre and log size are divided.
SSD_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class YOLACTHead(nn.Module):
    """A 3x3 convolution, then one each for classes, boxes and representations; for all levels.

    Args:
        in_channels: of the features, and of the shared convolution.
        num_anchors: A.
        num_classes: K; the class K is background.
        representation_size: numbers per anchor.
        num_convs: shared convolutions (YOLACT: 1).
        norm: of the shared convolutions, "" (YOLACT) or "GN".
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_anchors: int,
        num_classes: int,
        representation_size: int,
        num_convs: int = 1,
        norm: str = "",
    ) -> None:
        super().__init__()
        self.shared = nn.Sequential(
            *(conv_block(in_channels, in_channels, norm) for _ in range(num_convs))
        )
        self.cls_pred = nn.Conv2d(in_channels, num_anchors * (num_classes + 1), 3, padding=1)
        self.box_pred = nn.Conv2d(in_channels, num_anchors * 4, 3, padding=1)
        self.rep_pred = nn.Conv2d(in_channels, num_anchors * representation_size, 3, padding=1)
        initialize(self)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """(B, C, Hi, Wi) per level -> class logits, deltas, and what ``rep_pred`` works on."""
        shared = [self.shared(feature) for feature in features]
        return [self.cls_pred(x) for x in shared], [self.box_pred(x) for x in shared], shared


@dataclass
class YOLACTPredictions(DensePredictions):
    """With ``logits`` (B, Hi * Wi * A, K + 1), the last one for background.

    Attributes:
        semantic: (B, K, Hi, Wi) logits on the first level; None at inference.
    """

    semantic: Tensor | None = None


@OBJECT_STREAM_REGISTRY.register()
class YOLACTStream(ObjectStream):
    """YOLACT (Bolya et al. 2019) as an object stream.

    Args:
        anchor_generator: a :class:`.anchors.SquareAnchorGenerator`.
        linear_combination: an anchor has D coefficients instead of 2 x D numbers. Correlated with
            (0, tanh(coefficients)) as (background, foreground), the prototypes give their linear
            combination.
        semantic_channels: channels of the first feature, on which a 1x1 convolution learns semantic
            segmentation.
        iou_thresholds: background below the first, foreground from the second on.
        crowd_threshold, negatives_per_positive, fast_nms_top_k: see the config keys.
        box_loss_weight, semantic_loss_weight: of the losses.
        Others: as in the base class.
    """

    @configurable
    def __init__(
        self,
        *,
        anchor_generator: nn.Module,
        linear_combination: bool,
        semantic_channels: int,
        iou_thresholds: tuple[float, float] = (0.4, 0.5),
        crowd_threshold: float = 0.7,
        negatives_per_positive: float = 3,
        box_loss_weight: float = 1.5,
        semantic_loss_weight: float = 1.0,
        fast_nms_top_k: int = 200,
        **kwargs,
    ) -> None:
        super().__init__(box2box_transform=Box2BoxTransform(weights=SSD_WEIGHTS), **kwargs)
        self.anchor_generator = anchor_generator
        self.linear_combination = linear_combination
        self.semantic_pred = nn.Conv2d(semantic_channels, self.num_classes, 1)
        initialize(self.semantic_pred)
        self.iou_thresholds = tuple(iou_thresholds)
        self.crowd_threshold = crowd_threshold
        self.negatives_per_positive = negatives_per_positive
        self.box_loss_weight = box_loss_weight
        self.semantic_loss_weight = semantic_loss_weight
        self.fast_nms_top_k = fast_nms_top_k

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        arguments = super().from_config(cfg, input_shape)
        shapes = [input_shape[name] for name in arguments["in_features"]]
        linear_combination = uses_linear_combination(cfg)
        anchor_generator = build_anchor_generator(cfg, shapes)
        dim = arguments["representation_dim"]
        retinanet, yolact = cfg.MODEL.RETINANET, cfg.MODEL.YOLACT
        head = YOLACTHead(
            in_channels=shapes[0].channels,
            num_anchors=anchor_generator.num_anchors[0],
            num_classes=arguments["num_classes"],
            representation_size=dim if linear_combination else 2 * dim,
            num_convs=retinanet.NUM_CONVS,
            norm=retinanet.NORM,
        )
        return {
            **arguments,
            "head": head,
            "anchor_generator": anchor_generator,
            "linear_combination": linear_combination,
            "semantic_channels": shapes[0].channels,
            "iou_thresholds": retinanet.IOU_THRESHOLDS,
            "crowd_threshold": yolact.CROWD_THRESHOLD,
            "negatives_per_positive": yolact.NEGATIVES_PER_POSITIVE,
            "box_loss_weight": cfg.MODEL.RDSNET.BOX_LOSS_WEIGHT,
            "semantic_loss_weight": yolact.SEMANTIC_LOSS_WEIGHT,
            "fast_nms_top_k": max(yolact.FAST_NMS_TOP_K, 2 * cfg.TEST.DETECTIONS_PER_IMAGE),
        }

    def forward(self, features: dict[str, Tensor]) -> YOLACTPredictions:
        chosen = [features[name] for name in self.in_features]
        logits, deltas, rep_features = self.head(chosen)
        return YOLACTPredictions(
            [permute_to_N_HWA_K(x, self.num_classes + 1) for x in logits],
            [permute_to_N_HWA_K(x, 4) for x in deltas],
            rep_features,
            self.anchor_generator(chosen),
            self.semantic_pred(chosen[0]) if self.training else None,
        )

    def represent(
        self, predictions: DensePredictions, image_index: Tensor, places: Tensor
    ) -> Tensor:
        if not self.linear_combination:
            return super().represent(predictions, image_index, places)
        num_anchors = self.anchor_generator.num_anchors[0]
        coefficients = convolve_at(
            self.head.rep_pred, predictions.rep_features, image_index, places, num_anchors
        ).tanh()
        return torch.stack([torch.zeros_like(coefficients), coefficients], dim=1)

    # ------------------------------------------------------------------ training

    def losses(
        self, predictions: YOLACTPredictions, gt_instances: list[Instances]
    ) -> tuple[dict[str, Tensor], Positives]:
        """Confidence and box loss divided by the positives of the batch; semantic loss."""
        anchors = Boxes.cat(predictions.anchors).tensor
        labels, object_index = self.label_anchors(predictions, gt_instances)
        image_index, places = (labels == FOREGROUND).nonzero(as_tuple=True)
        positives = Positives(image_index, places, object_index[image_index, places])
        normalizer = divisor_for(len(positives), anchors.device)
        deltas = widened(torch.cat(predictions.deltas, dim=1)[image_index, places])
        targets = self.box2box_transform.get_deltas(
            anchors[places], matched_boxes(positives, gt_instances)
        )
        loss_box_reg = F.smooth_l1_loss(deltas, targets, reduction="sum")
        losses = {
            "loss_cls": self.confidence_loss(predictions, labels, positives, gt_instances)
            / normalizer,
            "loss_box_reg": loss_box_reg * (self.box_loss_weight / normalizer),
            "loss_semantic": self.semantic_loss(predictions, gt_instances)
            * self.semantic_loss_weight,
        }
        return losses, positives

    @torch.no_grad()
    def label_anchors(
        self, predictions: YOLACTPredictions, gt_instances: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        """Labels (B, R) of all anchors as in :mod:`.matching`, matched objects (B, R)."""
        anchors = Boxes.cat(predictions.anchors)
        labels, object_index = [], []
        for gt in gt_instances:
            crowd = is_crowd(gt)
            label, matched = match_anchors(
                gt.gt_boxes[~crowd],
                anchors,
                gt.gt_boxes[crowd],
                thresholds=self.iou_thresholds,
                crowd_threshold=self.crowd_threshold,
            )
            objects = (~crowd).nonzero().squeeze(1)
            labels.append(label)
            object_index.append(objects[matched] if len(objects) else matched)
        return torch.stack(labels), torch.stack(object_index)

    def confidence_loss(
        self,
        predictions: YOLACTPredictions,
        labels: Tensor,
        positives: Positives,
        gt_instances: list[Instances],
    ) -> Tensor:
        """Cross-entropy of all foreground and the hardest background anchors, summed."""
        log_probabilities = widened(torch.cat(predictions.logits, dim=1)).log_softmax(dim=2)
        negative = hard_negatives(
            -log_probabilities[..., -1].detach(), labels, self.negatives_per_positive
        )
        classes = [
            gt.gt_classes[positives.object_index[positives.image_index == i]]
            for i, gt in enumerate(gt_instances)
        ]
        of_objects = log_probabilities[positives.image_index, positives.places, torch.cat(classes)]
        return -(of_objects.sum() + log_probabilities[..., -1][negative].sum())

    def semantic_loss(
        self, predictions: YOLACTPredictions, gt_instances: list[Instances]
    ) -> Tensor:
        """Binary cross-entropy per class: mean over cells and images, sum over classes."""
        logits = widened(predictions.semantic)
        grid = logits.shape[2:]
        spacing = self.anchor_generator.spacing(0, grid)
        targets = torch.zeros_like(logits)
        for target, gt in zip(targets, gt_instances):
            gt = gt[~is_crowd(gt)]
            masks = mask_targets(dense_ground_truth_masks(gt), grid, spacing)
            target.index_add_(0, gt.gt_classes, masks.to(target.dtype)).clamp_(max=1)
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        return loss / (grid[0] * grid[1] * max(len(gt_instances), 1))

    # ----------------------------------------------------------------- inference

    def candidates(
        self, predictions: DensePredictions, level: int, image: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All anchor-class pairs of a level above the threshold; Fast NMS limits them."""
        scores = predictions.logits[level][image].float().softmax(dim=1)[:, :-1]
        anchor, category = (scores > self.score_threshold).nonzero(as_tuple=True)
        return scores[anchor, category], anchor, category

    def scores(self, predictions: DensePredictions, level: int) -> Tensor:
        return predictions.logits[level][0].float().softmax(dim=1)[:, :-1]

    def detect_padded(
        self, predictions: DensePredictions, image_size: tuple[int, int]
    ) -> PaddedDetections:
        """As in the base class; Fast NMS on the best anchors of every class."""
        levels = range(len(predictions.logits))
        scores = torch.cat([self.scores(predictions, level) for level in levels])
        scores = scores.masked_fill(scores <= self.score_threshold, 0)
        best, places = scores.topk(torch.sym_min(self.fast_nms_top_k, scores.shape[0]), dim=0)
        best, places = best.t(), places.t().flatten()  # (K, k) and (K * k,)
        boxes = self.box2box_transform.apply_deltas(
            torch.cat(predictions.deltas, dim=1)[0, places].float(),
            Boxes.cat(predictions.anchors).tensor[places],
        )
        boxes = boxes.masked_fill((best == 0).flatten()[:, None], 0)  # without area: overlaps none
        overlap = largest_overlap_before(boxes.view(*best.shape, 4))
        best = best.masked_fill(overlap > self.nms_threshold, 0)
        classes = torch.arange(self.num_classes, device=boxes.device)
        classes = classes[:, None].expand_as(best).flatten()
        detections = PaddedDetections(boxes, best.flatten(), classes, places)
        return detections.best(self.max_detections).clipped(image_size)

    def nms(self, detections: Instances) -> Tensor:
        """Fast NMS."""
        return fast_nms(
            detections.pred_boxes.tensor,
            detections.scores,
            detections.pred_classes,
            self.nms_threshold,
            self.fast_nms_top_k,
        )


def is_crowd(gt: Instances) -> Tensor:
    """Which entries of the ground truth stand for many objects, (M,) bool."""
    if gt.has("gt_is_crowd"):
        return gt.gt_is_crowd
    return torch.zeros(len(gt), dtype=torch.bool, device=gt.gt_boxes.device)


def uses_linear_combination(cfg: CfgNode) -> bool:
    """Read ``MODEL.RDSNET.MASK_ASSEMBLY``.

    Raises:
        ValueError: for an unknown value.
    """
    assembly = cfg.MODEL.RDSNET.MASK_ASSEMBLY
    if assembly not in ("linear_combination", "correlation"):
        raise ValueError(
            "MODEL.RDSNET.MASK_ASSEMBLY must be linear_combination (YOLACT) or correlation "
            f"(RDSNet_s), got '{assembly}'"
        )
    return assembly == "linear_combination"
