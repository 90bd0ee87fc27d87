"""FCOS (Tian et al. 2019, 2020) as an object stream, as Detectron2 has it.

Every location of a level is one place, drawn as a square "anchor" whose side is the stride (A = 1).
It regresses its distances to the four edges in strides, and a centerness that lowers the score of
boxes found from their rim. All else is RetinaNet's: head, focal loss, normaliser, NMS.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.structures import Boxes, Instances, pairwise_point_box_distance
from torch import Tensor
from torch.nn import functional as F

from rdsnet.modeling import (
    OBJECT_STREAM_REGISTRY,
    DensePredictions,
    Positives,
    RetinaNetStream,
)
from rdsnet.modeling.mask_prior import object_dim
from rdsnet.modeling.object_stream import matched_boxes
from rdsnet.modeling.precision import widened
from rdsnet.modeling.retinanet_stream import (
    add_representation_branch,
    group_norm,
    logit,
    representation_features,
)


@dataclass
class FCOSPredictions(DensePredictions):
    """Dense predictions of one batch.

    Attributes:
        centerness: per level (B, Hi * Wi), logits.
        Others: as in the base class.
    """

    centerness: list[Tensor]


class RDSNetFCOSHead(FCOSHead):
    """Detectron2's FCOS head with a third branch for representations."""

    def __init__(self, *, representation_dim: int, **kwargs) -> None:
        super().__init__(**kwargs)
        add_representation_branch(self, 1, representation_dim)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], ...]:
        """(B, C, Hi, Wi) per level -> logits, deltas, centerness, representation features."""
        return *super().forward(features), representation_features(self, features)


@OBJECT_STREAM_REGISTRY.register()
class FCOSStream(RetinaNetStream):
    """FCOS with representations, in Detectron2's conventions.

    Args:
        center_sampling_radius: see :func:`match_locations`.
        Others: as in the base class; ``anchor_matcher`` is None.
    """

    @configurable
    def __init__(self, *, center_sampling_radius: float = 1.5, **kwargs) -> None:
        super().__init__(**kwargs)
        self.center_sampling_radius = center_sampling_radius

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        return {
            **super().from_config(cfg, input_shape),
            "center_sampling_radius": cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS,
            "initial_normalizer": 300.0,
        }

    @classmethod
    def parts_from_config(cls, cfg: CfgNode, shapes: list[ShapeSpec]) -> dict:
        retinanet = cfg.MODEL.RETINANET
        strides = [shape.stride for shape in shapes]
        return {
            "head": RDSNetFCOSHead(
                input_shape=shapes,
                num_classes=retinanet.NUM_CLASSES,
                conv_dims=[shapes[0].channels] * retinanet.NUM_CONVS,
                norm=group_norm if retinanet.NORM == "GN" else retinanet.NORM,
                prior_prob=retinanet.PRIOR_PROB,
                representation_dim=object_dim(cfg),
            ),
            "anchor_generator": DefaultAnchorGenerator(
                sizes=[[stride] for stride in strides], aspect_ratios=[1.0], strides=strides
            ),
            "box2box_transform": Box2BoxTransformLinear(normalize_by_size=True),
            "box_reg_loss_type": "giou",
            "anchor_matcher": None,
        }

    def forward(self, features: dict[str, Tensor]) -> FCOSPredictions:
        chosen = [features[name] for name in self.in_features]
        logits, deltas, centerness, rep_features = self.head(chosen)
        return FCOSPredictions(
            [permute_to_N_HWA_K(x, self.num_classes) for x in logits],
            [permute_to_N_HWA_K(x, 4) for x in deltas],
            rep_features,
            self.anchor_generator(chosen),
            [x.flatten(1) for x in centerness],
        )

    # ------------------------------------------------------------------ training

    def losses(
        self, predictions: FCOSPredictions, gt_instances: list[Instances]
    ) -> tuple[dict[str, Tensor], Positives]:
        """Focal loss, GIoU loss and the centerness' cross-entropy, all divided alike."""
        losses, positives = super().losses(predictions, gt_instances)
        locations = Boxes.cat(predictions.anchors).tensor[positives.places]
        distances = self.box2box_transform.get_deltas(
            locations, matched_boxes(positives, gt_instances)
        )
        centerness = torch.cat(predictions.centerness, dim=1)
        loss = F.binary_cross_entropy_with_logits(
            widened(centerness[positives.image_index, positives.places]),
            centerness_targets(distances),
            reduction="sum",
        )
        return {**losses, "loss_centerness": loss / self.divisor()}, positives

    @torch.no_grad()
    def label_anchors(
        self, predictions: FCOSPredictions, gt_instances: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        """As in the base class; no location is ignored."""
        labels, object_index = [], []
        for gt in gt_instances:
            matched = match_locations(predictions.anchors, gt.gt_boxes, self.center_sampling_radius)
            label = torch.full_like(matched, self.num_classes)
            label[matched >= 0] = gt.gt_classes[matched[matched >= 0]]
            labels.append(label)
            object_index.append(matched)
        return torch.stack(labels), torch.stack(object_index)

    # ----------------------------------------------------------------- inference

    def candidates(
        self, predictions: FCOSPredictions, level: int, image: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As in the base class; the score is sqrt(class probability x centerness)."""
        logits = predictions.logits[level][image].float()
        # The centerness is at most 1, so the score can only pass if the class alone does.
        location, category = (logits > logit(self.score_threshold**2)).nonzero(as_tuple=True)
        centerness = predictions.centerness[level][image, location].float().sigmoid()
        scores = (logits[location, category].sigmoid() * centerness).sqrt()
        passing = (scores > self.score_threshold).nonzero().squeeze(1)
        best = scores[passing].topk(min(len(passing), self.topk_candidates))
        chosen = passing[best.indices]
        return best.values, location[chosen], category[chosen]

    def scores(self, predictions: FCOSPredictions, level: int) -> Tensor:
        centerness = predictions.centerness[level][0, :, None].float().sigmoid()
        return (super().scores(predictions, level) * centerness).sqrt()


def match_locations(locations: list[Boxes], gt_boxes: Boxes, radius: float) -> Tensor:
    """The object that every location is responsible for.

    A location can take an object when it lies inside the object's box, less than ``radius`` strides
    from its centre along both axes, and its greatest distance to an edge belongs to its level:
    between 4 and 8 strides, without lower bound on the first level and without upper bound on the
    last. Of several such objects it takes the smallest. Detectron2's rule, except that its
    float32 ranking does not tell areas apart that differ by a few square pixels.

    Args:
        locations: per level, squares whose centres are the locations and whose sides the strides.
        gt_boxes: M objects.

    Returns:
        (R,) int64, index of the object; -1 for background.
    """
    squares = Boxes.cat(locations)
    if len(gt_boxes) == 0:
        return torch.full((len(squares),), -1, dtype=torch.int64, device=squares.device)
    stride = squares.tensor[:, 2] - squares.tensor[:, 0]
    nearest, farthest = 4 * stride, 8 * stride
    nearest[: len(locations[0])] = 0
    farthest[len(squares) - len(locations[-1]) :] = torch.inf

    centres = squares.get_centers()
    offset = (centres[:, None] - gt_boxes.get_centers()).abs().amax(dim=2)  # (R, M)
    distances = pairwise_point_box_distance(centres, gt_boxes)  # (R, M, 4)
    reach = distances.amax(dim=2)
    fits = (
        (distances.amin(dim=2) > 0)
        & (offset < radius * stride[:, None])
        & (reach > nearest[:, None])
        & (reach < farthest[:, None])
    )
    area, matched = gt_boxes.area().expand_as(fits).masked_fill(~fits, torch.inf).min(dim=1)
    return matched.masked_fill(area == torch.inf, -1)


def centerness_targets(distances: Tensor) -> Tensor:
    """sqrt(min(l, r) / max(l, r) x min(t, b) / max(t, b)) of distances (N, 4) = l, t, r, b > 0."""
    pairs = distances.view(-1, 2, 2)  # (l, t), (r, b)
    return (pairs.amin(dim=1) / pairs.amax(dim=1)).prod(dim=1).sqrt()
