"""RDSNet as the authors' code computes it; input and output are in Detectron2's convention."""

from __future__ import annotations

import math

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import Tensor

from rdsnet.data.masks import dense_ground_truth_masks
from rdsnet.modeling import DensePredictions, Positives, RDSNet
from rdsnet.modeling.object_stream import batch_object_index, matched_boxes
from rdsnet.modeling.rdsnet import Size, requested_size
from rdsnet.ops import CompactMasks, Taps

from .boxes import clip_inclusive, padded_windows, to_continuous, to_inclusive
from .mbrm import InclusiveMBRM
from .resize import scale_factor, two_resize_taps


@META_ARCH_REGISTRY.register()
class AuthorsRDSNet(RDSNet):
    """:class:`~rdsnet.modeling.RDSNet` with the arithmetic of the authors' code.

    Input and output are those of RDSNet: images (3, H, W) in 0..255 in the channel order of
    ``INPUT.FORMAT`` (RGB here), ``gt_boxes``, ``pred_boxes`` and ``regressed_boxes`` in continuous
    coordinates. Inside, boxes are inclusive pixels. Inference also takes ``scale_factor`` (a
    number: network input / original image) per image, which is otherwise worked out from the
    sizes, see :func:`.resize.scale_factor`.

    Args:
        min_mask_area: objects whose mask has at most so many pixels in the network's input have no
            mask loss.
        max_elongation: limit of the longer side of the network's input / size of the shorter one.
        Others: as in the base class.
    """

    @configurable
    def __init__(
        self, *, min_mask_area: int = 100, max_elongation: float = 1333 / 800, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        if self.mask_loss_resolution != "grid":
            raise ValueError(
                "AuthorsRDSNet takes the mask loss as the authors do: "
                f"MODEL.RDSNET.MASK_LOSS.RESOLUTION must be grid, got {self.mask_loss_resolution}"
            )
        self.min_mask_area = min_mask_area
        self.max_elongation = max_elongation
        # The share of a box's side that is added on each side.
        self.train_padding = (self.train_expand - 1) / 2
        self.test_padding = (self.test_expand - 1) / 2

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        arguments = super().from_config(cfg)
        mbrm = cfg.MODEL.RDSNET.MBRM
        if arguments["mbrm"] is not None:
            if (mbrm.METHOD, mbrm.READOUT) != ("mbrm", "argmax"):
                raise ValueError(
                    "AuthorsRDSNet refines boxes with MODEL.RDSNET.MBRM.METHOD mbrm and READOUT "
                    f"argmax only (or METHOD none), got {mbrm.METHOD} and {mbrm.READOUT}"
                )
            arguments["mbrm"] = InclusiveMBRM(mbrm.GAMMA, mbrm.RADIUS)
        short, long = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        return {
            **arguments,
            "min_mask_area": cfg.MODEL.AUTHORS_COMPAT.MIN_MASK_AREA,
            # A size of 0 means that images are not resized.
            "max_elongation": long / short if short > 0 else math.inf,
        }

    # ------------------------------------------------------------------ training

    def ground_truth(self, batched_inputs: list[dict], image_sizes: list[Size]) -> list[Instances]:
        """As in the base class, with gt_boxes in inclusive pixels."""
        gt_instances = super().ground_truth(batched_inputs, image_sizes)
        return [with_inclusive_boxes(gt) for gt in gt_instances]

    def positives_with_masks(
        self, positives: Positives, gt_instances: list[Instances]
    ) -> Positives:
        """A sample of those whose object has more than ``min_mask_area`` pixels."""
        masks = [dense_ground_truth_masks(gt) for gt in gt_instances]
        areas = torch.cat([m.flatten(1).sum(dim=1) for m in masks])
        large = areas[batch_object_index(positives, gt_instances)] > self.min_mask_area
        return super().positives_with_masks(positives[large], gt_instances)

    def training_windows(
        self,
        predictions: DensePredictions,
        positives: Positives,
        gt_instances: list[Instances],
        grid: Size,
    ) -> Tensor:
        """As in the base class, but a window ends with the image's own padded area."""
        boxes = self.training_boxes(predictions, positives, gt_instances) / self.pixel_stream.stride
        windows = torch.zeros(len(boxes), 4, dtype=torch.int64, device=boxes.device)
        for i, gt in enumerate(gt_instances):
            own = positives.image_index == i
            own_grid = self.own_grid(gt.image_size)
            windows[own] = padded_windows(boxes[own], self.train_padding, own_grid)
        return windows

    def training_boxes(
        self, predictions: DensePredictions, positives: Positives, gt_instances: list[Instances]
    ) -> Tensor:
        """Ground truth (N, 4) of every positive anchor, decoded from its own regression target.

        That is what the authors have at hand there, clipped to the image. The detour moves a box
        by rounding errors, which can move a window by a cell.
        """
        anchors = Boxes.cat(predictions.anchors).tensor[positives.places]
        transform = self.object_stream.box2box_transform
        deltas = transform.get_deltas(anchors, matched_boxes(positives, gt_instances))
        boxes = transform.apply_deltas(deltas, anchors)
        for i, gt in enumerate(gt_instances):
            own = positives.image_index == i
            boxes[own] = clip_inclusive(boxes[own], gt.image_size)
        return boxes

    def mean_mask_loss(self, losses: Tensor, learning: Positives, positives: Positives) -> Tensor:
        """Over the objects of this process alone, as is the divisor of the other losses."""
        return losses.sum() / (len(losses) + 1)

    # ----------------------------------------------------------------- inference

    def detect(
        self, predictions: DensePredictions, image_sizes: list[Size], inputs: list[dict]
    ) -> list[Instances]:
        """Detections in inclusive pixels of the output."""
        output_sizes = [requested_size(x) for x in inputs]
        scale_factors = [
            (float(x["scale_factor"]),) * 2
            if x.get("scale_factor") is not None
            else scale_factor(size, output_size, self.max_elongation)
            for x, size, output_size in zip(inputs, image_sizes, output_sizes, strict=True)
        ]
        detections = self.object_stream.detect(predictions, image_sizes, scale_factors)
        return [
            Instances(size, **d.get_fields())
            for size, d in zip(output_sizes, detections, strict=True)
        ]

    def assemble(
        self, phi: Tensor, psi: Tensor, boxes: Tensor, image_size: Size, output_size: Size
    ) -> CompactMasks:
        """As in the base class, from the image's own padded area; boxes are inclusive."""
        height, width = self.own_grid(image_size)
        return super().assemble(phi, psi[:, :height, :width], boxes, image_size, output_size)

    def windows(self, boxes: Tensor, output_size: Size) -> Tensor:
        return padded_windows(boxes, self.test_padding, output_size)

    def taps(
        self, output_size: Size, image_size: Size, grid: Size, device: torch.device
    ) -> tuple[Taps, Taps]:
        sizes = zip(output_size, image_size, grid, self.strides(grid), strict=True)
        taps_y, taps_x = (two_resize_taps(*of_axis, device=device) for of_axis in sizes)
        return taps_y, taps_x

    def output_boxes(self, boxes: Tensor) -> Tensor:
        return to_continuous(boxes)

    def own_grid(self, image_size: Size) -> Size:
        """(h, w) cells of an image's own padded area."""
        divisor, stride = self.backbone.size_divisibility, self.pixel_stream.stride
        height, width = (-(-side // divisor) * divisor // stride for side in image_size)
        return height, width


def with_inclusive_boxes(instances: Instances) -> Instances:
    """A copy of an image's ground truth with gt_boxes in inclusive pixels."""
    fields = {**instances.get_fields()}
    fields["gt_boxes"] = Boxes(to_inclusive(instances.gt_boxes.tensor))
    return Instances(instances.image_size, **fields)
