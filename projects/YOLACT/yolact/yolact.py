"""YOLACT and RDSNet_s: rdsnet's method with a fixed input size and YOLACT's mask loss."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.backbone import FPN
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor
from torch.nn import functional as F

from rdsnet.data.masks import dense_ground_truth_masks
from rdsnet.modeling import DensePredictions, Positives, RDSNet
from rdsnet.modeling.object_stream import batch_object_index, matched_boxes
from rdsnet.modeling.processes import divisor_for
from rdsnet.modeling.rdsnet import Size
from rdsnet.ops import mask_ohem_loss, mask_targets


@META_ARCH_REGISTRY.register()
class YOLACT(RDSNet):
    """:class:`~rdsnet.modeling.RDSNet` on images of one size, with YOLACT's mask loss.

    The model itself resizes images of any size (and ground truth, in training) to ``input_size``,
    so Detectron2's DefaultPredictor and data loaders serve it as they are. Results come in the
    ``height`` and ``width`` of each input, by default those of its ``image``.

    YOLACT and RDSNet_s are the same class: linear combination is a correlation with (0,
    coefficients), see :class:`.object_stream.YOLACTStream`.

    Args:
        input_size: height and width of the network's input; 0: images keep their size and are
            padded.
        Others: as in the base class.
    """

    @configurable
    def __init__(self, *, input_size: int = 550, **kwargs) -> None:
        super().__init__(**kwargs)
        if self.mask_loss_resolution != "grid":
            raise ValueError(
                "YOLACT's mask loss counts cells: MODEL.RDSNET.MASK_LOSS.RESOLUTION must be grid, "
                f"got {self.mask_loss_resolution}"
            )
        divisor = self.backbone.size_divisibility
        if isinstance(self.backbone, FPN) and input_size % max(divisor, 1):
            raise ValueError(
                f"MODEL.YOLACT.INPUT_SIZE must be a multiple of {divisor} for this backbone, got "
                f"{input_size}. build_yolact_resnet_fpn_backbone takes any size."
            )
        self.input_size = input_size

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        if cfg.MODEL.RDSNET.MASK_PRIOR != "none":
            raise ValueError(
                "MODEL.META_ARCHITECTURE YOLACT has no prior for its masks: "
                f"MODEL.RDSNET.MASK_PRIOR must be none, got '{cfg.MODEL.RDSNET.MASK_PRIOR}'"
            )
        return {**super().from_config(cfg), "input_size": cfg.MODEL.YOLACT.INPUT_SIZE}

    @property
    def size_divisibility(self) -> int:
        return 0 if self.input_size else super().size_divisibility

    def network_input(self, image: Tensor) -> Tensor:
        """Normalise and, unless ``input_size`` is 0, resize bilinearly."""
        image = super().network_input(image)
        size = (self.input_size, self.input_size)
        if not self.input_size or image.shape[1:] == size:
            return image
        return F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]

    def ground_truth(self, batched_inputs: list[dict], image_sizes: list[Size]) -> list[Instances]:
        gt_instances = super().ground_truth(batched_inputs, image_sizes)
        return [resized(gt, size) for gt, size in zip(gt_instances, image_sizes)]

    def strides(self, grid: Size) -> tuple[float, float]:
        """The grid divides the input evenly: 550 px / 138 cells = 3.986."""
        if not self.input_size:
            return super().strides(grid)
        return self.input_size / grid[0], self.input_size / grid[1]

    def mask_losses(
        self,
        predictions: DensePredictions,
        psi: Tensor,
        positives: Positives,
        gt_instances: list[Instances],
    ) -> Tensor:
        """Cross-entropy in each anchor's window, summed, / area of its object's box: (N,).

        Both areas are in cells of the grid of psi.
        """
        grid = tuple(psi.shape[2:])
        strides = self.strides(grid)
        masks = [dense_ground_truth_masks(gt) for gt in gt_instances]
        targets = torch.cat([mask_targets(own, grid, strides) for own in masks])
        target_index = batch_object_index(positives, gt_instances)
        index, places = positives.image_index, positives.places
        windows = self.training_windows(predictions, positives, gt_instances, grid)
        losses = mask_ohem_loss(
            psi,
            self.object_stream.represent(predictions, index, places),
            index,
            windows,
            targets,
            target_index,
            self.negatives_per_positive,
        )
        kept = kept_pixels(windows, targets, target_index, self.negatives_per_positive)
        areas = Boxes(matched_boxes(positives, gt_instances)).area() / (strides[0] * strides[1])
        return losses * (kept + 1) / areas

    def mean_mask_loss(self, losses: Tensor, learning: Positives, positives: Positives) -> Tensor:
        """The mean over all positive anchors: those that learn masks count for all of an image."""
        counts = torch.bincount(positives.image_index)
        learning_counts = torch.bincount(learning.image_index, minlength=len(counts))
        stands_for = (counts / learning_counts.clamp(min=1))[learning.image_index]
        return (losses * stands_for).sum() / divisor_for(len(positives), losses.device)


def kept_pixels(
    windows: Tensor, targets: Tensor, target_index: Tensor, negatives_per_positive: float | None
) -> Tensor:
    """Pixels that :func:`rdsnet.ops.mask_ohem_loss` keeps for each object.

    Args:
        windows: (N, 4) int64, inside the grid.
        targets, target_index, negatives_per_positive: as in that function.

    Returns:
        (N,) int64: all pixels of the window, or its foreground and the mined background.
    """
    x1, y1, x2, y2 = windows.unbind(1)
    areas = (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)
    if negatives_per_positive is None:
        return areas
    # Sums over rectangles from sums over everything above and to the left.
    sums = F.pad(targets.to(torch.int64).cumsum(1).cumsum(2), (1, 0, 1, 0))
    n = target_index
    foreground = sums[n, y2, x2] - sums[n, y1, x2] - sums[n, y2, x1] + sums[n, y1, x1]
    foreground = torch.where(areas > 0, foreground, 0)
    mined = (foreground.double() * negatives_per_positive).long()
    return foreground + torch.minimum(mined, areas - foreground)


def resized(gt: Instances, size: Size) -> Instances:
    """Ground truth of an image that is resized to ``size`` (H, W)."""
    if gt.image_size == size:
        return gt
    scale_y, scale_x = (new / old for new, old in zip(size, gt.image_size))
    fields = {**gt.get_fields()}
    boxes = gt.gt_boxes.clone()
    boxes.scale(scale_x, scale_y)
    fields["gt_boxes"] = boxes
    if gt.has("gt_masks"):
        masks = dense_ground_truth_masks(gt).float()
        masks = F.interpolate(masks[:, None], size, mode="bilinear", align_corners=False)
        fields["gt_masks"] = BitMasks(masks[:, 0] > 0.5)
    return Instances(size, **fields)
