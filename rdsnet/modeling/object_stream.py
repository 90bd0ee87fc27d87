"""The object stream: a one-stage detector that also gives every anchor a representation phi.

:class:`ObjectStream` is what RDSNet asks of a detector, with the parts that detectors share. A
detector is one subclass of it: :class:`~rdsnet.modeling.retinanet_stream.RetinaNetStream` is the
first; ``docs/another-detector.md`` writes another one from nothing.

Shapes: B images, Hi x Wi locations on level i, A anchors per location (1 where a detector has
locations only), R anchors per image over all levels (order: level, y, x, anchor), K classes, D
representation dimensions. The *place* of an anchor is its index among those R.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, batched_nms
from detectron2.structures import Boxes, Instances
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from rdsnet.modeling.lazy_conv import convolve_at
from rdsnet.modeling.mask_prior import object_dim
from rdsnet.modeling.padded import PaddedDetections
from rdsnet.modeling.precision import widened

OBJECT_STREAM_REGISTRY = Registry("OBJECT_STREAM")
OBJECT_STREAM_REGISTRY.__doc__ = """
:class:`ObjectStream` classes. Called with ``(cfg, input_shape)``.
"""


@dataclass
class Positives:
    """Anchors matched to an object: only their representations learn masks.

    Attributes:
        image_index: (N,) int64, image of the batch.
        places: (N,) int64, of the anchors.
        object_index: (N,) int64, index of the matched object in its image's ground truth.
    """

    image_index: Tensor
    places: Tensor
    object_index: Tensor

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, chosen: Tensor) -> Positives:
        """Those that an index (K,) int64 or a selection (N,) bool chooses."""
        return Positives(self.image_index[chosen], self.places[chosen], self.object_index[chosen])

    def sample(self, per_image: int) -> Positives:
        """At most ``per_image`` of every image, drawn at random."""
        order = torch.randperm(len(self), device=self.places.device)
        shuffled = self.image_index[order]
        kept = [order[shuffled == i][:per_image] for i in shuffled.unique().tolist()]
        return self[torch.cat(kept).sort().values if kept else order]


@dataclass
class DensePredictions:
    """Dense predictions of one batch. A detector that has more adds fields in a subclass.

    Attributes:
        logits: per level (B, Hi * Wi * A, K), whatever scores are made of.
        deltas: per level (B, Hi * Wi * A, 4), the box relative to its anchor.
        rep_features: per level (B, C, Hi, Wi), the input of that part of the representation branch
            which :meth:`ObjectStream.represent` evaluates.
        anchors: per level Boxes of Hi * Wi * A anchors, the same for all images.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    rep_features: list[Tensor]
    anchors: list[Boxes]


class ObjectStream(nn.Module):
    """A regression-based detector whose anchors (or locations) carry representations.

    RDSNet calls :meth:`forward`, :meth:`losses`, :meth:`detect` and :meth:`represent`. A detector
    writes the first two and :meth:`candidates`; the others build on these. What ``forward`` returns
    is handed back to the other methods. A detector that shares nothing may override all four.

    Args:
        head: has ``rep_pred``, the "same" convolution to A x 2 x D channels that ends the
            representation branch (per anchor D numbers for background, then D for foreground). It
            is evaluated at chosen anchors only, by :meth:`represent`. So is ``rep_subnet``, the
            layers before it, if the head has ``lazy_subnet`` True.
        in_features: names of the FPN features that the head works on.
        box2box_transform: has ``apply_deltas(deltas (N, 4), anchors (N, 4)) -> boxes (N, 4)``.
        num_classes: K.
        representation_dim: D, or more where a mask prior adds numbers (:mod:`.mask_prior`).
        score_threshold: detections below it are dropped before NMS.
        topk_candidates: best anchor-class pairs per level that go to NMS.
        nms_threshold: IoU above which the lower-scored of two boxes of a class is dropped.
        max_detections: per image.
    """

    def __init__(
        self,
        *,
        head: nn.Module,
        in_features: list[str],
        box2box_transform: Any,
        num_classes: int,
        representation_dim: int,
        score_threshold: float = 0.05,
        topk_candidates: int = 1000,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.head = head
        self.in_features = in_features
        self.box2box_transform = box2box_transform
        self.num_classes = num_classes
        self.representation_dim = representation_dim
        self.score_threshold = score_threshold
        self.topk_candidates = topk_candidates
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """The arguments that mean the same for every detector, from ``MODEL.RETINANET``."""
        shared = cfg.MODEL.RETINANET
        return {
            "in_features": shared.IN_FEATURES,
            "num_classes": shared.NUM_CLASSES,
            "representation_dim": object_dim(cfg),
            "score_threshold": shared.SCORE_THRESH_TEST,
            "topk_candidates": shared.TOPK_CANDIDATES_TEST,
            "nms_threshold": shared.NMS_THRESH_TEST,
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    # ------------------------------------------------------- for a detector to write

    def forward(self, features: dict[str, Tensor]) -> DensePredictions:
        """FPN features {name: (B, C, Hi, Wi)} -> dense predictions."""
        raise NotImplementedError

    def losses(
        self, predictions: DensePredictions, gt_instances: list[Instances]
    ) -> tuple[dict[str, Tensor], Positives]:
        """Detection losses (scalars by name) and the anchors that matched an object."""
        raise NotImplementedError

    def candidates(
        self, predictions: DensePredictions, level: int, image: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best anchor-class pairs of one level of one image.

        Returns:
            scores (N,), anchors (N,) int64 as indices into the level, classes (N,) int64; those
            above ``score_threshold``, at most ``topk_candidates``.
        """
        raise NotImplementedError

    def scores(self, predictions: DensePredictions, level: int) -> Tensor:
        """Scores of all anchor-class pairs of a level of the first image, (Hi * Wi * A, K).

        What :meth:`candidates` chooses from. Only export asks for it.
        """
        raise NotImplementedError

    # ------------------------------------------------------------ shared by detectors

    def represent(
        self, predictions: DensePredictions, image_index: Tensor, places: Tensor
    ) -> Tensor:
        """Representations phi of chosen anchors, (N, 2, D): background, foreground."""
        conv = self.head.rep_pred
        num_anchors = conv.out_channels // (2 * self.representation_dim)
        tower = self.head.rep_subnet if getattr(self.head, "lazy_subnet", False) else None
        numbers = convolve_at(
            conv, predictions.rep_features, image_index, places, num_anchors, tower
        )
        return numbers.view(-1, 2, self.representation_dim)

    @torch.no_grad()
    def boxes_at(
        self, predictions: DensePredictions, image_index: Tensor, places: Tensor
    ) -> Tensor:
        """Boxes (N, 4) that chosen anchors predict, in pixels of the network's input."""
        deltas = widened(torch.cat(predictions.deltas, dim=1)[image_index, places])
        anchors = Boxes.cat(predictions.anchors).tensor[places]
        return self.box2box_transform.apply_deltas(deltas, anchors)

    def detect(
        self, predictions: DensePredictions, image_sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        """Detections after NMS, best first, one Instances per image.

        Fields: pred_boxes (pixels of the network's input), scores, pred_classes and ``places``
        (N,) int64, the anchors that they come from.
        """
        return [self.detect_in_image(predictions, i, size) for i, size in enumerate(image_sizes)]

    def detect_in_image(
        self, predictions: DensePredictions, image: int, image_size: tuple[int, int]
    ) -> Instances:
        """Candidates of all levels, decoded; NMS; best ``max_detections``."""
        levels = []
        first_place = 0
        for level, anchors in enumerate(predictions.anchors):
            scores, anchor, classes = self.candidates(predictions, level, image)
            deltas = predictions.deltas[level][image, anchor].float()
            boxes = self.box2box_transform.apply_deltas(deltas, anchors.tensor[anchor])
            levels.append((boxes, scores, classes, anchor + first_place))
            first_place += len(anchors)
        boxes, scores, classes, places = (torch.cat(parts) for parts in zip(*levels))
        detections = Instances(
            image_size,
            pred_boxes=Boxes(boxes),
            scores=scores,
            pred_classes=classes,
            places=places,
        )
        return detections[self.nms(detections)[: self.max_detections]]

    def detect_padded(
        self, predictions: DensePredictions, image_size: tuple[int, int]
    ) -> PaddedDetections:
        """:meth:`detect` for the first image, clipped to it, in a form that export can trace."""
        levels = []
        first_place = 0
        for level, anchors in enumerate(predictions.anchors):
            scores = self.scores(predictions, level).flatten()
            best, pair = scores.topk(torch.sym_min(scores.shape[0], self.topk_candidates))
            anchor = pair // self.num_classes
            deltas = predictions.deltas[level][0, anchor].float()
            places = anchor + first_place
            levels.append((deltas, anchors.tensor[anchor], best, pair % self.num_classes, places))
            first_place += anchors.tensor.shape[0]  # len() would be that of the traced image
        deltas, anchors, scores, classes, places = (torch.cat(parts) for parts in zip(*levels))
        boxes = self.box2box_transform.apply_deltas(deltas, anchors)
        scores = scores.masked_fill(scores <= self.score_threshold, 0)
        candidates = PaddedDetections(boxes, scores, classes, places)
        detections = candidates.without_suppressed(self.nms_threshold).best(self.max_detections)
        return detections.clipped(image_size)

    def nms(self, detections: Instances) -> Tensor:
        """Indices of the detections that are kept, best first: greedy NMS per class."""
        return batched_nms(
            detections.pred_boxes.tensor,
            detections.scores,
            detections.pred_classes,
            self.nms_threshold,
        )


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
