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
from rdsnet.modeling import Positives, RDSNet
from rdsnet.modeling.mask_loss import kept_pixels, mask_targets, training_windows
from rdsnet.modeling.object_stream import batch_object_index, matched_boxes
from rdsnet.modeling.processes import divisor_for
from rdsnet.ops import mask_ohem_loss


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

    def ground_truth(
        self, batched_inputs: list[dict], image_sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        gt_instances = super().ground_truth(batched_inputs, image_sizes)
        return [resized(gt, size) for gt, size in zip(gt_instances, image_sizes)]

    def strides(self, grid: tuple[int, int]) -> tuple[float, float]:
        """The grid divides the input evenly: 550 px / 138 cells = 3.986."""
        if not self.input_size:
            return super().strides(grid)
        return self.input_size / grid[0], self.input_size / grid[1]

    def losses(self, objects, psi: Tensor, gt_instances: list[Instances]) -> dict[str, Tensor]:
        """Losses of the detector, and the mean of the mask loss over the positive anchors.

        At most ``max_train_masks`` anchors of an image, drawn at random, learn masks; they count
        for all of its positive anchors.
        """
        losses, positives = self.object_stream.losses(objects, gt_instances)
        learning = positives.sample(self.max_train_masks)
        per_anchor = self.mask_losses(objects, psi, learning, gt_instances)
        num_images = len(gt_instances)
        counts, learning_counts = (
            torch.bincount(p.image_index, minlength=num_images) for p in (positives, learning)
        )
        stands_for = (counts / learning_counts.clamp(min=1))[learning.image_index]
        loss_mask = (per_anchor * stands_for).sum() / divisor_for(len(positives), psi.device)
        return {**losses, "loss_mask": loss_mask * self.mask_loss_weight}

    def mask_losses(
        self, objects, psi: Tensor, positives: Positives, gt_instances: list[Instances]
    ) -> Tensor:
        """Cross-entropy in each anchor's window, summed, / area of its object's box: (N,).

        Both areas are in cells of the grid of psi.
        """
        grid = tuple(psi.shape[2:])
        stride_y, stride_x = strides = self.strides(grid)
        phi = self.object_stream.represent(objects, positives.image_index, positives.places)
        targets = torch.cat(
            [mask_targets(dense_ground_truth_masks(gt), grid, strides) for gt in gt_instances]
        )
        target_index = batch_object_index(positives, gt_instances)
        boxes = matched_boxes(positives, gt_instances)
        image_sizes = [gt.image_size for gt in gt_instances]
        windows = training_windows(
            boxes, positives.image_index, image_sizes, self.train_expand, strides
        )
        losses = mask_ohem_loss(
            psi,
            phi,
            positives.image_index,
            windows,
            targets,
            target_index,
            self.negatives_per_positive,
        )
        kept = kept_pixels(windows, targets, target_index, self.negatives_per_positive)
        areas = Boxes(boxes).area() / (stride_y * stride_x)
        return losses * (kept + 1) / areas


def resized(gt: Instances, size: tuple[int, int]) -> Instances:
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
