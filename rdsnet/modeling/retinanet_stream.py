"""RetinaNet as an object stream: the detector of the paper (Sec. 3.1), in Detectron2's conventions.

A third branch, in parallel with classification and regression, gives every anchor a representation.
Shapes as in :mod:`rdsnet.modeling.object_stream`.
"""

from __future__ import annotations

import copy

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.structures.boxes import matched_pairwise_iou
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn
from torch.nn import functional as F

from rdsnet.modeling.atss import match_adaptively
from rdsnet.modeling.lazy_conv import is_local
from rdsnet.modeling.mask_prior import object_dim
from rdsnet.modeling.object_stream import (
    OBJECT_STREAM_REGISTRY,
    DensePredictions,
    ObjectStream,
    Positives,
    matched_boxes,
)
from rdsnet.modeling.precision import widened
from rdsnet.modeling.processes import process_count, sum_over_processes
from rdsnet.modeling.quality import CLASSIFICATION_LOSSES, quality_focal_loss


class RDSNetHead(RetinaNetHead):
    """RetinaNet's head with a third branch for representations.

    ``rep_subnet`` has the same structure as the other two branches; ``rep_pred`` maps it to
    A x 2 x D channels (per anchor: D numbers for background, then D for foreground).

    Args:
        shared_tower: ``cls_subnet`` is the tower of all three branches, the only one.
        Others: as in the base class.
    """

    @configurable
    def __init__(
        self, *, num_anchors: int, representation_dim: int, shared_tower: bool = False, **kwargs
    ) -> None:
        super().__init__(num_anchors=num_anchors, **kwargs)
        add_representation_branch(self, num_anchors, representation_dim)
        self.shared_tower = shared_tower
        if shared_tower:
            self.bbox_subnet = self.rep_subnet = nn.Identity()
            self.lazy_subnet = False

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        arguments = super().from_config(cfg, input_shape)
        if arguments["norm"] == "GN":
            arguments["norm"] = group_norm
        return {
            **arguments,
            "representation_dim": object_dim(cfg),
            "shared_tower": cfg.MODEL.RDSNET.SHARED_TOWER,
        }

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """(B, C, Hi, Wi) per level -> logits, deltas and the features of the representations."""
        if self.shared_tower:
            shared = [self.cls_subnet(x) for x in features]
            logits, deltas = (
                [layer(x) for x in shared] for layer in (self.cls_score, self.bbox_pred)
            )
            return logits, deltas, shared
        logits, deltas = super().forward(features)
        return logits, deltas, representation_features(self, features)


def add_representation_branch(
    head: RetinaNetHead, num_anchors: int, representation_dim: int
) -> None:
    """Give Detectron2's head ``rep_subnet``, like ``cls_subnet``, ``rep_pred`` and ``lazy_subnet``.

    Convolutions that a normalisation follows lose their bias: it has one of its own.
    """
    head.rep_subnet = copy.deepcopy(head.cls_subnet)
    head.rep_pred = nn.Conv2d(
        head.cls_score.in_channels, num_anchors * 2 * representation_dim, 3, padding=1
    )
    for layer in [*head.rep_subnet, head.rep_pred]:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
    for branch in (head.cls_subnet, head.bbox_subnet, head.rep_subnet):
        for layer, following in zip(branch, branch[1:]):
            if isinstance(layer, nn.Conv2d) and not isinstance(following, nn.ReLU):
                layer.register_parameter("bias", None)
    head.lazy_subnet = is_local(head.rep_subnet)


def representation_features(head: nn.Module, features: list[Tensor]) -> list[Tensor]:
    """What of the representation branch has to be evaluated everywhere.

    ``rep_pred`` is left to be evaluated at chosen anchors (:meth:`ObjectStream.represent`), and
    ``rep_subnet`` too where it has no normalisation over the whole map, and in models prepared for
    inference.
    """
    return features if head.lazy_subnet else [head.rep_subnet(x) for x in features]


def group_norm(channels: int) -> nn.GroupNorm:
    """Detectron2's "GN" (32 groups), which its 0.6 release tries on a single channel first."""
    return nn.GroupNorm(32 if channels % 32 == 0 else 1, channels)


@OBJECT_STREAM_REGISTRY.register()
class RetinaNetStream(ObjectStream):
    """RetinaNet (Lin et al. 2017) with representations, in Detectron2's conventions.

    Args:
        head: maps a list of FPN features to logits (B, A * K, Hi, Wi), deltas (B, A * 4, Hi, Wi)
            and representation features.
        anchor_generator, anchor_matcher: as in Detectron2's RetinaNet.
        atss_candidates: nearest anchors per level that an object chooses its positives from
            (:func:`~rdsnet.modeling.atss.match_adaptively`); None: ``anchor_matcher`` decides.
        classification_loss: "focal", or "quality_focal": the scores learn the overlap of the boxes
            (:mod:`rdsnet.modeling.quality`).
        focal_loss_alpha, focal_loss_gamma, smooth_l1_beta, box_reg_loss_type: of the losses.
        box_loss_weight: lambda_r of Eq. 8.
        initial_normalizer: first value of the running mean of positive anchors per batch.
        Others: as in the base class.
    """

    @configurable
    def __init__(
        self,
        *,
        anchor_generator: nn.Module,
        anchor_matcher: Matcher | None,
        atss_candidates: int | None = None,
        classification_loss: str = "focal",
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        smooth_l1_beta: float = 0.11,
        box_reg_loss_type: str = "smooth_l1",
        box_loss_weight: float = 1.0,
        initial_normalizer: float = 100.0,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if classification_loss not in CLASSIFICATION_LOSSES:
            raise ValueError(
                f"MODEL.RDSNET.CLASSIFICATION_LOSS must be one of {CLASSIFICATION_LOSSES}, got "
                f"'{classification_loss}'"
            )
        self.classification_loss = classification_loss
        self.anchor_generator = anchor_generator
        self.anchor_matcher = anchor_matcher
        self.atss_candidates = atss_candidates
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.smooth_l1_beta = smooth_l1_beta
        self.box_reg_loss_type = box_reg_loss_type
        self.box_loss_weight = box_loss_weight
        # Detectron2's running mean of positive anchors, as a buffer so that it survives resuming.
        self.register_buffer("loss_normalizer", torch.tensor(initial_normalizer))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        retinanet = cfg.MODEL.RETINANET
        return {
            **super().from_config(cfg, input_shape),
            **cls.parts_from_config(cfg, [input_shape[name] for name in retinanet.IN_FEATURES]),
            "classification_loss": cfg.MODEL.RDSNET.CLASSIFICATION_LOSS,
            "focal_loss_alpha": retinanet.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": retinanet.FOCAL_LOSS_GAMMA,
            "smooth_l1_beta": retinanet.SMOOTH_L1_LOSS_BETA,
            "box_loss_weight": cfg.MODEL.RDSNET.BOX_LOSS_WEIGHT,
        }

    @classmethod
    def parts_from_config(cls, cfg: CfgNode, shapes: list[ShapeSpec]) -> dict:
        """Head, anchors, matching and box coding, for the shapes of ``in_features``."""
        retinanet = cfg.MODEL.RETINANET
        return {
            "head": RDSNetHead(cfg, shapes),
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "box2box_transform": Box2BoxTransform(weights=retinanet.BBOX_REG_WEIGHTS),
            "box_reg_loss_type": retinanet.BBOX_REG_LOSS_TYPE,
            "anchor_matcher": Matcher(
                retinanet.IOU_THRESHOLDS, retinanet.IOU_LABELS, allow_low_quality_matches=True
            ),
            "atss_candidates": atss_candidates(cfg),
        }

    def forward(self, features: dict[str, Tensor]) -> DensePredictions:
        chosen = [features[name] for name in self.in_features]
        logits, deltas, rep_features = self.head(chosen)
        return DensePredictions(
            [permute_to_N_HWA_K(x, self.num_classes) for x in logits],
            [permute_to_N_HWA_K(x, 4) for x in deltas],
            rep_features,
            self.anchor_generator(chosen),
        )

    # ------------------------------------------------------------------ training

    def losses(
        self, predictions: DensePredictions, gt_instances: list[Instances]
    ) -> tuple[dict[str, Tensor], Positives]:
        """L_cls (focal loss) and lambda_r L_reg, both divided by the number of positives."""
        anchors = Boxes.cat(predictions.anchors)
        labels, object_index = self.label_anchors(predictions, gt_instances)
        image_index, places = ((labels >= 0) & (labels < self.num_classes)).nonzero(as_tuple=True)
        positives = Positives(image_index, places, object_index[image_index, places])
        normalizer = self.update_normalizer(
            torch.bincount(image_index, minlength=len(gt_instances))
        )

        deltas = widened(torch.cat(predictions.deltas, dim=1)[image_index, places])
        gt_boxes = matched_boxes(positives, gt_instances)

        valid = labels >= 0
        one_hot = F.one_hot(labels[valid], self.num_classes + 1)[:, :-1]
        logits = widened(torch.cat(predictions.logits, dim=1)[valid])
        if self.classification_loss == "quality_focal":
            overlaps = torch.zeros_like(labels, dtype=logits.dtype)
            of_positives = self.overlaps(deltas, anchors[places], gt_boxes)
            overlaps[image_index, places] = of_positives.to(overlaps.dtype)
            loss_cls = quality_focal_loss(
                logits, one_hot * overlaps[valid][:, None], self.focal_loss_gamma
            )
        else:
            loss_cls = sigmoid_focal_loss(
                logits,
                one_hot.to(logits.dtype),
                alpha=self.focal_loss_alpha,
                gamma=self.focal_loss_gamma,
                reduction="sum",
            )
        loss_box_reg = _dense_box_regression_loss(
            [anchors[places]],
            self.box2box_transform,
            [deltas[None]],
            [gt_boxes],
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
    def overlaps(self, deltas: Tensor, anchors: Boxes, gt_boxes: Tensor) -> Tensor:
        """(N,) float32: IoU of what positive anchors predict with their objects' boxes (N, 4)."""
        predicted = self.box2box_transform.apply_deltas(deltas, anchors.tensor)
        return matched_pairwise_iou(Boxes(predicted), Boxes(gt_boxes))

    @torch.no_grad()
    def label_anchors(
        self, predictions: DensePredictions, gt_instances: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        """Match all R anchors of every image.

        Returns:
            labels (B, R): class, K = background, -1 = ignored; object_index (B, R): the matched
            object (of no meaning where the label is not a class).
        """
        labels, object_index = [], []
        for gt in gt_instances:
            matched, anchor_labels = self.match(predictions.anchors, gt.gt_boxes)
            label = torch.full_like(matched, self.num_classes)
            if len(gt):
                label[anchor_labels == 1] = gt.gt_classes[matched[anchor_labels == 1]]
            label[anchor_labels == -1] = -1
            labels.append(label)
            object_index.append(matched)
        return torch.stack(labels), torch.stack(object_index)

    def match(self, anchors: list[Boxes], gt_boxes: Boxes) -> tuple[Tensor, Tensor]:
        """For every anchor of an image the index of an object and 1 (it is the object's), 0
        (background) or -1 (ignored), (R,) each.
        """
        if self.atss_candidates is not None:
            return match_adaptively(anchors, gt_boxes, self.atss_candidates)
        return self.anchor_matcher(pairwise_iou(gt_boxes, Boxes.cat(anchors)))

    @torch.no_grad()
    def update_normalizer(self, num_positives: Tensor) -> Tensor:
        """Divisor of both losses from the positive anchors of every image, (B,).

        A running mean (momentum 0.9, from 100) of the positives of a batch, at least 1. The batch
        is that of all processes together.
        """
        positives = sum_over_processes(num_positives.sum())
        self.loss_normalizer.mul_(0.9).add_(0.1 * positives.clamp(min=1))
        return self.divisor()

    def divisor(self) -> Tensor:
        """This process' share of the running mean; see :mod:`rdsnet.modeling.processes`."""
        return self.loss_normalizer.clone() / process_count()

    # ----------------------------------------------------------------- inference

    def candidates(
        self, predictions: DensePredictions, level: int, image: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits = predictions.logits[level][image].float()
        # sigmoid(z) > t is z > logit(t): only the few that pass need a sigmoid.
        anchor, category = (logits > logit(self.score_threshold)).nonzero(as_tuple=True)
        best = logits[anchor, category].topk(min(len(anchor), self.topk_candidates))
        return best.values.sigmoid(), anchor[best.indices], category[best.indices]

    def scores(self, predictions: DensePredictions, level: int) -> Tensor:
        return predictions.logits[level][0].float().sigmoid()


def atss_candidates(cfg: CfgNode) -> int | None:
    """Candidates per level with ``MODEL.RDSNET.ASSIGNMENT.NAME`` "atss", None with "iou"."""
    name = cfg.MODEL.RDSNET.ASSIGNMENT.NAME
    if name not in ("iou", "atss"):
        raise ValueError(f"MODEL.RDSNET.ASSIGNMENT.NAME must be 'iou' or 'atss', got '{name}'")
    return cfg.MODEL.RDSNET.ASSIGNMENT.CANDIDATES_PER_LEVEL if name == "atss" else None


def logit(probability: float) -> float:
    """log(p / (1 - p)); -inf for 0, inf for 1."""
    return torch.logit(torch.tensor(probability, dtype=torch.float64)).item()
