"""RDSNet as the authors' code computes it; input and output are in Detectron2's convention."""

from __future__ import annotations

import math

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import Tensor

from rdsnet.data.masks import dense_ground_truth_masks
from rdsnet.modeling import Positives, RDSNet
from rdsnet.modeling.mask_loss import mask_targets
from rdsnet.modeling.object_stream import batch_object_index, matched_boxes
from rdsnet.ops import CompactMasks, assemble_masks, mask_ohem_loss

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

    def losses(self, objects, psi: Tensor, gt_instances: list[Instances]) -> dict[str, Tensor]:
        """As in the base class; gt_boxes are continuous.

        A window ends with the image's own padded area. The box around which it lies is the ground
        truth decoded from its own regression target, as the authors have it at hand there.
        """
        gt_instances = [inclusive_ground_truth(gt) for gt in gt_instances]
        losses, positives = self.object_stream.losses(objects, gt_instances)
        masks = [dense_ground_truth_masks(gt) for gt in gt_instances]
        positives = self.positives_with_masks(positives, gt_instances, masks)
        phi = self.object_stream.represent(objects, positives.image_index, positives.places)
        size = tuple(psi.shape[2:])
        targets = [mask_targets(m, size, self.strides(size)) for m in masks]
        per_object = mask_ohem_loss(
            psi,
            phi,
            positives.image_index,
            self.training_windows(objects, positives, gt_instances),
            torch.cat(targets),
            batch_object_index(positives, gt_instances),
            self.negatives_per_positive,
        )
        # Objects of this process alone, as in the authors' code; see update_normalizer.
        loss_mask = per_object.sum() / (len(per_object) + 1)
        return {**losses, "loss_mask": loss_mask * self.mask_loss_weight}

    def positives_with_masks(
        self, positives: Positives, gt_instances: list[Instances], masks: list[Tensor]
    ) -> Positives:
        """The anchors that learn masks: of objects that are large enough, a sample per image."""
        area = torch.cat([m.flatten(1).sum(dim=1) for m in masks])
        large = area[batch_object_index(positives, gt_instances)] > self.min_mask_area
        large_positives = Positives(
            positives.image_index[large], positives.places[large], positives.object_index[large]
        )
        return large_positives.sample(self.max_train_masks)

    def training_windows(
        self, objects, positives: Positives, gt_instances: list[Instances]
    ) -> Tensor:
        """Windows (N, 4) on the grid of psi around the ground truth of every positive anchor."""
        boxes = self.training_boxes(objects, positives, gt_instances) / self.pixel_stream.stride
        windows = torch.zeros(len(boxes), 4, dtype=torch.int64, device=boxes.device)
        for i, gt in enumerate(gt_instances):
            own = positives.image_index == i
            windows[own] = padded_windows(boxes[own], self.train_padding, self.grid(gt.image_size))
        return windows

    def training_boxes(
        self, objects, positives: Positives, gt_instances: list[Instances]
    ) -> Tensor:
        """Ground truth (N, 4) of every positive anchor, coded, decoded and clipped to its image.

        The detour moves a box by rounding errors, which can move a window by a cell.
        """
        anchors = Boxes.cat(objects.anchors).tensor[positives.places]
        transform = self.object_stream.box2box_transform
        deltas = transform.get_deltas(anchors, matched_boxes(positives, gt_instances))
        boxes = transform.apply_deltas(deltas, anchors)
        for i, gt in enumerate(gt_instances):
            own = positives.image_index == i
            boxes[own] = clip_inclusive(boxes[own], gt.image_size)
        return boxes

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) cells of an image's own padded area."""
        divisor, stride = self.backbone.size_divisibility, self.pixel_stream.stride
        height, width = (-(-side // divisor) * divisor // stride for side in image_size)
        return height, width

    def output_boxes(self, boxes: Tensor) -> Tensor:
        return to_continuous(boxes)

    def detect(
        self, objects, image_sizes: list[tuple[int, int]], batched_inputs: list[dict]
    ) -> list[Instances]:
        """Detections in inclusive pixels of the output."""
        output_sizes, scale_factors = [], []
        for x, size in zip(batched_inputs, image_sizes, strict=True):
            output_size = (x.get("height", size[0]), x.get("width", size[1]))
            given = x.get("scale_factor")
            output_sizes.append(output_size)
            scale_factors.append(
                scale_factor(size, output_size, self.max_elongation)
                if given is None
                else (float(given), float(given))
            )
        detections = self.object_stream.detect(objects, image_sizes, scale_factors)
        return [
            Instances(size, **d.get_fields())
            for size, d in zip(output_sizes, detections, strict=True)
        ]

    def assemble(
        self,
        phi: Tensor,
        psi: Tensor,
        boxes: Tensor,
        image_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> CompactMasks:
        """As in the base class; boxes are inclusive."""
        height, width = self.grid(image_size)
        taps_y, taps_x = (
            two_resize_taps(output, image, cells, self.pixel_stream.stride, device=psi.device)
            for output, image, cells in zip(output_size, image_size, (height, width), strict=True)
        )
        windows = self.windows(boxes, output_size)
        own_psi = psi[:, :height, :width]
        return assemble_masks(own_psi, phi, windows, taps_y, taps_x, self.mask_threshold)

    def windows(self, boxes: Tensor, output_size: tuple[int, int]) -> Tensor:
        return padded_windows(boxes, self.test_padding, output_size)


def inclusive_ground_truth(instances: Instances) -> Instances:
    """A copy of an image's ground truth with gt_boxes in inclusive pixels."""
    fields = {**instances.get_fields()}
    fields["gt_boxes"] = Boxes(to_inclusive(instances.gt_boxes.tensor))
    return Instances(instances.image_size, **fields)
