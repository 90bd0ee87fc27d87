"""The object stream: a one-stage detector that also gives every anchor a representation phi.

:class:`ObjectStream` is what RDSNet asks of a detector; :class:`RetinaNetStream` is Detectron2's
RetinaNet with a third branch, in parallel with classification and regression (paper, Sec. 3.1).

Shapes: B images, Hi x Wi locations on level i, A anchors per location, R anchors per image over all
levels (order: level, y, x, anchor), K classes, D representation dimensions. A *place* is an index
into those R anchors.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, batched_nms
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.registry import Registry
from fvcore.nn import sigmoid_focal_loss_jit
from torch import Tensor, nn
from torch.nn import functional as F

from rdsnet.modeling.lazy_conv import convolve_at

OBJECT_STREAM_REGISTRY = Registry("OBJECT_STREAM")
OBJECT_STREAM_REGISTRY.__doc__ = """
:class:`ObjectStream` classes. Called with ``(cfg, input_shape)``.
"""


@dataclass
class Positives:
    """Anchors matched to an object: only their representations learn masks.

    Attributes:
        image_index: (N,) int64, image of the batch.
        places: (N,) int64, index of the anchor among the R of its image.
        object_index: (N,) int64, index of the matched object in its image's ground truth.
    """

    image_index: Tensor
    places: Tensor
    object_index: Tensor

    def __len__(self) -> int:
        return len(self.places)

    def sample(self, per_image: int) -> Positives:
        """At most ``per_image`` of every image, drawn at random."""
        order = torch.randperm(len(self), device=self.places.device)
        shuffled = self.image_index[order]
        kept = [order[shuffled == i][:per_image] for i in shuffled.unique().tolist()]
        chosen = torch.cat(kept).sort().values if kept else order
        return Positives(self.image_index[chosen], self.places[chosen], self.object_index[chosen])


class ObjectStream(nn.Module):
    """A regression-based detector whose anchors (or locations) carry representations.

    ``forward`` computes dense predictions of any type; the other methods take them back.
    """

    def forward(self, features: dict[str, Tensor]) -> Any:
        """FPN features {name: (B, C, Hi, Wi)} -> dense predictions."""
        raise NotImplementedError

    def losses(
        self, predictions: Any, gt_instances: list[Instances]
    ) -> tuple[dict[str, Tensor], Positives]:
        """Detection losses (scalars by name) and the anchors that matched an object."""
        raise NotImplementedError

    def detect(self, predictions: Any, image_sizes: list[tuple[int, int]]) -> list[Instances]:
        """Detections after NMS, best first, one Instances per image.

        Fields: pred_boxes (pixels of the network's input), scores, pred_classes and ``places``
        (N,) int64, the anchors that they come from.
        """
        raise NotImplementedError

    def represent(self, predictions: Any, image_index: Tensor, places: Tensor) -> Tensor:
        """Representations phi of chosen anchors, (N, 2, D): background, foreground."""
        raise NotImplementedError


class RetinaNetPredictions(NamedTuple):
    """Dense predictions of one batch.

    Attributes:
        logits: per level (B, Hi * Wi * A, K).
        deltas: per level (B, Hi * Wi * A, 4).
        rep_features: per level (B, C, Hi, Wi), the input of the last representation convolution.
        anchors: per level Boxes of Hi * Wi * A anchors.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    rep_features: list[Tensor]
    anchors: list[Boxes]


class RDSNetHead(RetinaNetHead):
    """RetinaNet's head with a third branch for representations.

    ``rep_subnet`` has the same structure as the other two branches; ``rep_pred`` maps it to
    A x 2 x D channels (per anchor: D numbers for background, then D for foreground).
    """

    @configurable
    def __init__(self, *, num_anchors: int, representation_dim: int, **kwargs) -> None:
        super().__init__(num_anchors=num_anchors, **kwargs)
        self.rep_subnet = copy.deepcopy(self.cls_subnet)
        self.rep_pred = nn.Conv2d(
            kwargs["conv_dims"][-1], num_anchors * 2 * representation_dim, 3, padding=1
        )
        for layer in [*self.rep_subnet.modules(), self.rep_pred]:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
        if kwargs.get("norm"):
            # A normalisation follows, with a bias of its own.
            for branch in (self.cls_subnet, self.bbox_subnet, self.rep_subnet):
                for layer in branch.modules():
                    if isinstance(layer, nn.Conv2d):
                        layer.register_parameter("bias", None)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        arguments = super().from_config(cfg, input_shape)
        if arguments["norm"] == "GN":
            arguments["norm"] = group_norm
        return {**arguments, "representation_dim": cfg.MODEL.RDSNET.REPRESENTATION_DIM}

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """(B, C, Hi, Wi) per level -> logits, deltas and the features of the representations.

        ``rep_pred`` is left to be evaluated at chosen anchors (:meth:`RetinaNetStream.represent`).
        """
        logits, deltas = super().forward(features)
        return logits, deltas, [self.rep_subnet(feature) for feature in features]


def group_norm(channels: int) -> nn.GroupNorm:
    """Detectron2's "GN" (32 groups), which its 0.6 release tries on a single channel first."""
    return nn.GroupNorm(32 if channels % 32 == 0 else 1, channels)


@OBJECT_STREAM_REGISTRY.register()
class RetinaNetStream(ObjectStream):
    """RetinaNet (Lin et al. 2017) with representations, in Detectron2's conventions.

    Args:
        head: maps a list of FPN features to logits (B, A * K, Hi, Wi), deltas (B, A * 4, Hi, Wi)
            and representation features.
        in_features: names of the FPN features that the head works on.
        anchor_generator, box2box_transform, anchor_matcher: as in Detectron2's RetinaNet.
        num_classes: K.
        representation_dim: D.
        focal_loss_alpha, focal_loss_gamma, smooth_l1_beta, box_reg_loss_type: of the losses.
        box_loss_weight: lambda_r of Eq. 8.
        score_threshold: detections below it are dropped before NMS.
        topk_candidates: best anchor-class pairs per level that go to NMS.
        nms_threshold: IoU above which the lower-scored of two boxes of a class is dropped.
        max_detections: per image.
    """

    @configurable
    def __init__(
        self,
        *,
        head: nn.Module,
        in_features: list[str],
        anchor_generator: nn.Module,
        box2box_transform: Box2BoxTransform,
        anchor_matcher: Matcher,
        num_classes: int,
        representation_dim: int,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        smooth_l1_beta: float = 0.11,
        box_reg_loss_type: str = "smooth_l1",
        box_loss_weight: float = 1.0,
        score_threshold: float = 0.05,
        topk_candidates: int = 1000,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.head = head
        self.in_features = in_features
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.anchor_matcher = anchor_matcher
        self.num_classes = num_classes
        self.representation_dim = representation_dim
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.smooth_l1_beta = smooth_l1_beta
        self.box_reg_loss_type = box_reg_loss_type
        self.box_loss_weight = box_loss_weight
        self.score_threshold = score_threshold
        self.topk_candidates = topk_candidates
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        # Detectron2's running mean of positive anchors, as a buffer so that it survives resuming.
        self.register_buffer("loss_normalizer", torch.tensor(100.0))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        retinanet = cfg.MODEL.RETINANET
        shapes = [input_shape[name] for name in retinanet.IN_FEATURES]
        return {
            "head": RDSNetHead(cfg, shapes),
            "in_features": retinanet.IN_FEATURES,
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "box2box_transform": Box2BoxTransform(weights=retinanet.BBOX_REG_WEIGHTS),
            "anchor_matcher": Matcher(
                retinanet.IOU_THRESHOLDS, retinanet.IOU_LABELS, allow_low_quality_matches=True
            ),
            "num_classes": retinanet.NUM_CLASSES,
            "representation_dim": cfg.MODEL.RDSNET.REPRESENTATION_DIM,
            "focal_loss_alpha": retinanet.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": retinanet.FOCAL_LOSS_GAMMA,
            "smooth_l1_beta": retinanet.SMOOTH_L1_LOSS_BETA,
            "box_reg_loss_type": retinanet.BBOX_REG_LOSS_TYPE,
            "box_loss_weight": cfg.MODEL.RDSNET.BOX_LOSS_WEIGHT,
            "score_threshold": retinanet.SCORE_THRESH_TEST,
            "topk_candidates": retinanet.TOPK_CANDIDATES_TEST,
            "nms_threshold": retinanet.NMS_THRESH_TEST,
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    def forward(self, features: dict[str, Tensor]) -> RetinaNetPredictions:
        chosen = [features[name] for name in self.in_features]
        logits, deltas, rep_features = self.head(chosen)
        return RetinaNetPredictions(
            [permute_to_N_HWA_K(x, self.num_classes) for x in logits],
            [permute_to_N_HWA_K(x, 4) for x in deltas],
            rep_features,
            self.anchor_generator(chosen),
        )

    def represent(
        self, predictions: RetinaNetPredictions, image_index: Tensor, places: Tensor
    ) -> Tensor:
        num_anchors = self.anchor_generator.num_anchors[0]
        numbers = convolve_at(
            self.head.rep_pred, predictions.rep_features, image_index, places, num_anchors
        )
        return numbers.view(-1, 2, self.representation_dim)

    # ------------------------------------------------------------------ training

    def losses(
        self, predictions: RetinaNetPredictions, gt_instances: list[Instances]
    ) -> tuple[dict[str, Tensor], Positives]:
        """L_cls (focal loss) and lambda_r L_reg, both divided by the number of positives."""
        anchors = Boxes.cat(predictions.anchors)
        labels, object_index = self.label_anchors(predictions, gt_instances)
        image_index, places = ((labels >= 0) & (labels < self.num_classes)).nonzero(as_tuple=True)
        positives = Positives(image_index, places, object_index[image_index, places])
        normalizer = self.update_normalizer(
            torch.bincount(image_index, minlength=len(gt_instances))
        )

        valid = labels >= 0
        one_hot = F.one_hot(labels[valid], self.num_classes + 1)[:, :-1]
        logits = torch.cat(predictions.logits, dim=1)[valid].float()
        loss_cls = sigmoid_focal_loss_jit(
            logits,
            one_hot.to(logits.dtype),
            alpha=self.focal_loss_alpha,
            gamma=self.focal_loss_gamma,
            reduction="sum",
        )
        deltas = torch.cat(predictions.deltas, dim=1)[image_index, places].float()
        loss_box_reg = _dense_box_regression_loss(
            [anchors[places]],
            self.box2box_transform,
            [deltas[None]],
            [matched_boxes(positives, gt_instances)],
            torch.ones(1, len(positives), dtype=torch.bool, device=deltas.device),
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        losses = {
            "loss_cls": loss_cls / normalizer,
            "loss_box_reg": loss_box_reg * (self.box_loss_weight / normalizer),
        }
        return losses, positives

    @torch.no_grad()
    def label_anchors(
        self, predictions: RetinaNetPredictions, gt_instances: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        """Match all R anchors of every image.

        Returns:
            labels (B, R): class, K = background, -1 = ignored; object_index (B, R): the matched
            object (of no meaning where the label is not a class).
        """
        anchors = Boxes.cat(predictions.anchors)
        labels, object_index = [], []
        for gt in gt_instances:
            matched, anchor_labels = self.anchor_matcher(pairwise_iou(gt.gt_boxes, anchors))
            label = torch.full_like(matched, self.num_classes)
            if len(gt):
                label[anchor_labels == 1] = gt.gt_classes[matched[anchor_labels == 1]]
            label[anchor_labels == -1] = -1
            labels.append(label)
            object_index.append(matched)
        return torch.stack(labels), torch.stack(object_index)

    @torch.no_grad()
    def update_normalizer(self, num_positives: Tensor) -> Tensor:
        """Divisor of both losses from the positive anchors of every image, (B,).

        A running mean (momentum 0.9, from 100) of the positives of a batch, at least 1.
        """
        self.loss_normalizer.mul_(0.9).add_(0.1 * num_positives.sum().clamp(min=1))
        return self.loss_normalizer.clone()

    # ----------------------------------------------------------------- inference

    def detect(
        self, predictions: RetinaNetPredictions, image_sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        return [self.detect_in_image(predictions, i, size) for i, size in enumerate(image_sizes)]

    def detect_in_image(
        self, predictions: RetinaNetPredictions, image: int, image_size: tuple[int, int]
    ) -> Instances:
        """Decode, per-class NMS, best ``max_detections``."""
        boxes, scores, classes, places = [], [], [], []
        first_place = 0
        for logits, deltas, anchors in zip(
            predictions.logits, predictions.deltas, predictions.anchors
        ):
            level_scores, place, level_classes = self.candidates(logits[image].float())
            boxes.append(
                self.box2box_transform.apply_deltas(
                    deltas[image][place].float(), anchors.tensor[place]
                )
            )
            scores.append(level_scores)
            classes.append(level_classes)
            places.append(place + first_place)
            first_place += len(anchors)
        detections = Instances(
            image_size,
            pred_boxes=Boxes(torch.cat(boxes)),
            scores=torch.cat(scores),
            pred_classes=torch.cat(classes),
            places=torch.cat(places),
        )
        keep = batched_nms(
            detections.pred_boxes.tensor,
            detections.scores,
            detections.pred_classes,
            self.nms_threshold,
        )
        return detections[keep[: self.max_detections]]

    def candidates(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Best anchor-class pairs of a level: logits (R_i, K) -> scores, anchors, classes."""
        # sigmoid(z) > t is z > logit(t): only the few that pass need a sigmoid.
        threshold = torch.logit(torch.tensor(self.score_threshold, dtype=torch.float64)).item()
        anchor, category = (logits > threshold).nonzero(as_tuple=True)
        best = logits[anchor, category].topk(min(len(anchor), self.topk_candidates))
        return best.values.sigmoid(), anchor[best.indices], category[best.indices]


def matched_boxes(positives: Positives, gt_instances: list[Instances]) -> Tensor:
    """Ground-truth box of every positive anchor, (N, 4)."""
    index = batch_object_index(positives, gt_instances)
    return torch.cat([gt.gt_boxes.tensor for gt in gt_instances])[index]


def batch_object_index(positives: Positives, gt_instances: list[Instances]) -> Tensor:
    """Index of every positive's object among the objects of all images in a row, (N,)."""
    counts = torch.tensor([len(gt) for gt in gt_instances], device=positives.places.device)
    return positives.object_index + (counts.cumsum(0) - counts)[positives.image_index]


def build_object_stream(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> ObjectStream:
    """Build the object stream that ``MODEL.RDSNET.OBJECT_STREAM`` names."""
    return OBJECT_STREAM_REGISTRY.get(cfg.MODEL.RDSNET.OBJECT_STREAM)(cfg, input_shape)
