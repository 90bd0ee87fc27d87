"""RDSNet: reciprocal object detection and instance segmentation (Wang et al., AAAI 2020).

Two streams share one FPN backbone. The object stream detects boxes and gives every anchor a
representation phi of 2 x D numbers (background, foreground); the pixel stream gives every pixel a
representation Psi of D numbers. Then each stream helps the other:

    object -> pixel   correlation of phi with Psi, cropped to the expanded box, is the object's mask
    pixel  -> object  MBRM moves the edges of the regressed box to where the mask says they are

Shapes: B images, N objects, D = 32, (H, W) image, (h, w) = grid of Psi (stride 4 in the paper).
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from rdsnet.data.channels import Channels
from rdsnet.data.datasets import register_class_names, with_num_classes
from rdsnet.data.masks import dense_ground_truth_masks
from rdsnet.modeling.cropping import expanded_windows, training_windows
from rdsnet.modeling.loading import check_device, require_complete_weights
from rdsnet.modeling.mask_loss import mean_over_objects
from rdsnet.modeling.mask_prior import EllipsePrior, build_mask_prior, near, prior_numbers
from rdsnet.modeling.mbrm import MBRM
from rdsnet.modeling.object_stream import (
    DensePredictions,
    ObjectStream,
    Positives,
    build_object_stream,
    matched_boxes,
)
from rdsnet.modeling.pixel_stream import build_pixel_stream
from rdsnet.modeling.quality import mask_confidence
from rdsnet.modeling.refinement import EnclosingBoxes, build_refinement
from rdsnet.ops import (
    CompactMasks,
    Taps,
    as_vector,
    assemble_masks,
    object_losses,
    resize_taps,
)

Size = tuple[int, int]
"""Height and width."""
_MASK_LOSS_RESOLUTIONS = ("grid", "image")


@META_ARCH_REGISTRY.register()
class RDSNet(nn.Module):
    """The method, and below it the steps that a variant of it may override.

    Called as every Detectron2 model: with a list of dicts, one per image, of ``image`` (3, H, W) in
    the channel order of ``INPUT.FORMAT``, 0..255; for inference ``height`` and ``width`` of the
    output (default: of ``image``); for training ``instances`` with gt_boxes, gt_classes and
    gt_masks. Gives :meth:`losses` in training, else ``{"instances": Instances}`` per image, see
    :meth:`refine`.

    Args:
        backbone: image (B, 3, H, W) -> FPN features {name: (B, C, Hi, Wi)}.
        object_stream: the detector with representations.
        pixel_stream: features -> Psi (B, D, h, w).
        mbrm: boundary refinement (EnclosingBoxes: "direct"); None leaves boxes as regressed.
        pixel_mean, pixel_std: normalisation of the input, in its channel order.
        dense_masks: whether ``pred_masks`` is a (N, H, W) bool tensor, as Detectron2's users
            expect, or :class:`~rdsnet.ops.CompactMasks`.
        Others: explained at their config keys (``rdsnet/config.py``).
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        object_stream: ObjectStream,
        pixel_stream: nn.Module,
        mbrm: MBRM | EnclosingBoxes | None,
        pixel_mean: list[float],
        pixel_std: list[float],
        train_expand: float = 1.5,
        test_expand: float = 1.2,
        mask_threshold: float = 0.4,
        negatives_per_positive: float | None = 1,
        max_train_masks: int = 100,
        mask_loss_weight: float = 1.0,
        mask_loss_resolution: str = "grid",
        mask_scoring: bool = False,
        mask_prior: EllipsePrior | None = None,
        dense_masks: bool = True,
    ) -> None:
        super().__init__()
        if mask_loss_resolution not in _MASK_LOSS_RESOLUTIONS:
            raise ValueError(
                f"MODEL.RDSNET.MASK_LOSS.RESOLUTION must be one of {_MASK_LOSS_RESOLUTIONS}, "
                f"got '{mask_loss_resolution}'"
            )
        self.backbone = backbone
        self.object_stream = object_stream
        self.pixel_stream = pixel_stream
        self.mbrm = mbrm
        if mbrm is not None:
            mbrm.requires_grad_(False)  # fitted when all else is trained: rdsnet fit-mbrm
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.train_expand, self.test_expand = train_expand, test_expand
        self.mask_threshold = mask_threshold
        self.negatives_per_positive = negatives_per_positive
        self.max_train_masks = max_train_masks
        self.mask_loss_weight = mask_loss_weight
        self.mask_loss_resolution = mask_loss_resolution
        self.mask_scoring = mask_scoring
        self.mask_prior = mask_prior
        self.dense_masks = dense_masks
        self._register_load_state_dict_pre_hook(require_complete_weights, with_module=True)

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        predictions = self.object_stream(features)  # of every anchor: class, box, what phi needs
        if self.training:
            psi = self.pixel_stream(features)  # (B, D, h, w)
            gt_instances = self.ground_truth(batched_inputs, images.image_sizes)
            return self.losses(predictions, psi, gt_instances)
        return self.inference(predictions, features, images.image_sizes, batched_inputs)

    def losses(
        self, predictions: DensePredictions, psi: Tensor, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """L = L_cls + lambda_r L_reg + lambda_m L_mask (Eq. 8): its terms by name."""
        losses, positives = self.object_stream.losses(predictions, gt_instances)
        learning = self.positives_with_masks(positives, gt_instances)
        # object -> pixel: correlation, expanded cropping, cross-entropy with OHEM
        of_positives = self.mask_losses(predictions, psi, learning, gt_instances)
        loss_mask = self.mean_mask_loss(of_positives, learning, positives)
        return {**losses, "loss_mask": loss_mask * self.mask_loss_weight}

    def inference(
        self,
        predictions: DensePredictions,
        features: dict[str, Tensor],
        sizes: list[Size],
        inputs: list[dict],
    ) -> list[dict]:
        """Detect, keep what survives NMS, then give it masks and refined boxes.

        Args:
            features: of the backbone, for the pixel stream: images in which nothing was found need
                none.
            sizes: (H, W) of every image of the network's input before padding.
        """
        detections = self.represented(predictions, sizes, inputs)
        if any(len(found) for found in detections):
            psi = self.pixel_stream(features)  # (B, D, h, w)
        else:
            dim = self.object_stream.representation_dim - prior_numbers(self.mask_prior)
            psi = torch.stack([found.phi.new_zeros(dim, 1, 1) for found in detections])
        return [
            {"instances": self.refine(found, own_psi, size)}
            for found, own_psi, size in zip(detections, psi, sizes)
        ]

    def refine(self, detections: Instances, psi: Tensor, image_size: Size) -> Instances:
        """The reciprocal part, at the output's own resolution.

        Args:
            detections: pred_boxes in output pixels, scores, pred_classes, phi (N, 2, D).
            psi: (D, h, w) pixel representations of the image.
            image_size: (H, W) of the network's input before padding.

        Returns:
            Instances with pred_boxes (after MBRM), regressed_boxes (before), scores, pred_classes
            and pred_masks, in continuous output coordinates.
        """
        output_size, boxes = detections.image_size, detections.pred_boxes.tensor
        detections.phi, psi = self.located(detections.phi, psi, boxes, image_size, output_size)
        if self.mask_scoring:
            detections = self.rescored(detections, psi, image_size)
            boxes = detections.pred_boxes.tensor
        # object -> pixel: correlation, expanded cropping
        masks = self.assemble(detections.phi, psi, boxes, image_size, output_size)
        # pixel -> object: the regressed edges and the masks' extent, weighed against each other
        refined = boxes
        if self.mbrm is not None:
            refined = self.mbrm(masks.column_maxima, masks.row_maxima, boxes)
        return Instances(
            output_size,
            pred_boxes=Boxes(self.output_boxes(refined)),
            regressed_boxes=Boxes(self.output_boxes(boxes)),
            scores=detections.scores,
            pred_classes=detections.pred_classes,
            pred_masks=masks.dense() if self.dense_masks else masks,
        )

    # --------------------------------------------------------- the steps of the mask loss

    def positives_with_masks(
        self, positives: Positives, gt_instances: list[Instances]
    ) -> Positives:
        """The positive anchors that learn masks: at most ``max_train_masks`` of every image."""
        return positives.sample(self.max_train_masks)

    def mask_losses(
        self,
        predictions: DensePredictions,
        psi: Tensor,
        positives: Positives,
        gt_instances: list[Instances],
    ) -> Tensor:
        """Correlation and cross-entropy with OHEM inside the training windows, (N,) (Sec. 3.2)."""
        index, places = positives.image_index, positives.places
        phi = self.object_stream.represent(predictions, index, places)
        if self.mask_prior is not None:
            boxes = near(
                self.object_stream.boxes_at(predictions, index, places),
                matched_boxes(positives, gt_instances),
            )
            phi, psi = self.located(phi, psi, boxes, (1, 1), (1, 1))
        return object_losses(
            psi,
            phi,
            index,
            self.training_windows(predictions, positives, gt_instances, psi.shape[2:]),
            [dense_ground_truth_masks(gt) for gt in gt_instances],
            positives.object_index,
            self.strides(psi.shape[2:]),
            self.negatives_per_positive,
            at_pixels=self.mask_loss_resolution == "image",
        )

    def training_windows(
        self,
        predictions: DensePredictions,
        positives: Positives,
        gt_instances: list[Instances],
        grid: Size,
    ) -> Tensor:
        """Windows (N, 4) around the object of every positive anchor, where the loss is taken: on
        the grid (h, w) of psi, or at the pixels of the network's input.
        """
        return training_windows(
            matched_boxes(positives, gt_instances),
            positives.image_index,
            [gt.image_size for gt in gt_instances],
            self.train_expand,
            self.strides(grid) if self.mask_loss_resolution == "grid" else (1, 1),
        )

    def mean_mask_loss(self, losses: Tensor, learning: Positives, positives: Positives) -> Tensor:
        """L_mask from the losses (N,) of the anchors that learn masks, some of all positives."""
        return mean_over_objects(losses)

    # ------------------------------------------------------------- the steps of inference

    def represented(
        self, predictions: DensePredictions, sizes: list[Size], inputs: list[dict]
    ) -> list[Instances]:
        """:meth:`detect`, with the phi (N, 2, D) of every detection."""
        detections = self.detect(predictions, sizes, inputs)
        for i, found in enumerate(detections):
            index = torch.full_like(found.places, i)
            found.phi = self.object_stream.represent(predictions, index, found.places)
        return detections

    def detect(
        self, predictions: DensePredictions, image_sizes: list[Size], inputs: list[dict]
    ) -> list[Instances]:
        """Detections of every image, in pixels of its output."""
        detections = self.object_stream.detect(predictions, image_sizes)
        return [detector_postprocess(d, *requested_size(x)) for d, x in zip(detections, inputs)]

    def assemble(
        self, phi: Tensor, psi: Tensor, boxes: Tensor, image_size: Size, output_size: Size
    ) -> CompactMasks:
        """Correlation and expanded cropping: masks (N) of ``output_size``."""
        windows = self.windows(boxes, output_size)
        taps = self.taps(output_size, image_size, psi.shape[1:], psi.device)
        return assemble_masks(psi, phi, windows, *taps, self.mask_threshold)

    def rescored(self, detections: Instances, psi: Tensor, image_size: Size) -> Instances:
        """Best first, by scores that are multiplied by :meth:`confidence`."""
        boxes, output_size = detections.pred_boxes.tensor, detections.image_size
        confidence = self.confidence(detections.phi, psi, boxes, image_size, output_size)
        detections.scores = detections.scores * confidence
        return detections[detections.scores.argsort(descending=True, stable=True)]

    def confidence(
        self, phi: Tensor, psi: Tensor, boxes: Tensor, image_size: Size, output_size: Size
    ) -> Tensor:
        """How sure the masks (N) are of their pixels, see :func:`.mask_confidence`."""
        cells = self.in_cells(boxes, psi, image_size, output_size)
        return mask_confidence(phi, psi, cells, self.mask_threshold)

    def located(
        self, phi: Tensor, psi: Tensor, boxes: Tensor, image_size: Size, output_size: Size
    ) -> tuple[Tensor, Tensor]:
        """phi (N, 2, D) and psi (..., D, h, w) with where objects and pixels are, see
        :mod:`.mask_prior`; as they are where masks have no prior.
        """
        if self.mask_prior is None:
            return phi, psi
        cells = self.in_cells(boxes, psi, image_size, output_size)
        return self.mask_prior.of_objects(phi, cells), self.mask_prior.of_pixels(psi)

    def in_cells(self, boxes: Tensor, psi: Tensor, image_size: Size, output_size: Size) -> Tensor:
        """Boxes (N, 4) in pixels of the output -> in cells of psi (..., h, w)."""
        of_image, of_output, strides = (
            as_vector(sizes, torch.float64, boxes.device)
            for sizes in (image_size, output_size, self.strides(psi.shape[-2:]))
        )
        cells_per_pixel = (of_image / of_output / strides).flip(0).repeat(2).to(boxes.dtype)
        return boxes * cells_per_pixel

    def windows(self, boxes: Tensor, output_size: Size) -> Tensor:
        """The windows (N, 4) of the output that masks are cropped to, see :mod:`.cropping`."""
        return expanded_windows(boxes, self.test_expand, output_size)

    def taps(
        self, output_size: Size, image_size: Size, grid: Size, device: torch.device
    ) -> tuple[Taps, Taps]:
        """The maps from the grid (h, w) of psi to the rows and the columns of the output."""
        sizes = zip(output_size, image_size, grid, self.strides(grid))
        taps_y, taps_x = (resize_taps(*of_axis, device=device) for of_axis in sizes)
        return taps_y, taps_x

    def strides(self, grid: Size) -> tuple[float, float]:
        """Pixels of the network's input per cell of psi (h, w), vertically and horizontally."""
        return self.pixel_stream.stride, self.pixel_stream.stride

    def output_boxes(self, boxes: Tensor) -> Tensor:
        """Boxes (N, 4) of detection and MBRM -> boxes in continuous coordinates."""
        return boxes

    # ------------------------------------------------------- what goes in, and the config

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """What the backbone sees, padded to a common size that its strides divide."""
        images = [self.network_input(x["image"].to(self.device)) for x in batched_inputs]
        return ImageList.from_tensors(images, self.size_divisibility)

    @property
    def size_divisibility(self) -> int:
        """The backbone's input is padded to a multiple of it, pixels; 0: not at all."""
        return self.backbone.size_divisibility

    def network_input(self, image: Tensor) -> Tensor:
        """Normalise one image (3, H, W)."""
        return (image - self.pixel_mean) / self.pixel_std

    def ground_truth(self, batched_inputs: list[dict], image_sizes: list[Size]) -> list[Instances]:
        """The objects of every image, in pixels of the network's input (of ``image_sizes``)."""
        return [x["instances"].to(self.device) for x in batched_inputs]

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        check_device(cfg)
        Channels.of(cfg)  # contradictions are said now
        cfg = with_num_classes(cfg)
        register_class_names(cfg)
        backbone = build_backbone(cfg)
        rdsnet = cfg.MODEL.RDSNET
        return {
            "backbone": backbone,
            "object_stream": build_object_stream(cfg, backbone.output_shape()),
            "pixel_stream": build_pixel_stream(cfg, backbone.output_shape()),
            "mbrm": build_refinement(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "train_expand": rdsnet.TRAIN_EXPAND,
            "test_expand": rdsnet.TEST_EXPAND,
            "mask_threshold": rdsnet.MASK_THRESHOLD,
            "negatives_per_positive": (
                rdsnet.OHEM.NEGATIVES_PER_POSITIVE if rdsnet.OHEM.ENABLED else None
            ),
            "max_train_masks": rdsnet.MAX_TRAIN_MASKS,
            "mask_loss_weight": rdsnet.MASK_LOSS_WEIGHT,
            "mask_loss_resolution": rdsnet.MASK_LOSS.RESOLUTION,
            "mask_scoring": rdsnet.MASK_SCORING,
            "mask_prior": build_mask_prior(cfg),
            "dense_masks": rdsnet.DENSE_MASKS,
        }


def requested_size(inputs: dict) -> Size:
    """(H, W) that an image's results are wanted in: ``height`` and ``width``, else its own."""
    height, width = inputs["image"].shape[-2:]
    return inputs.get("height", height), inputs.get("width", width)
