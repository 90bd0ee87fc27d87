"""Mask profiles of a data set, collected once: all that MBRM is fitted to and tried out on.

MBRM sees of an image only its regressed boxes and, of every mask, the largest foreground
probability per column and row. With these kept, fitting a kernel or measuring another prior takes
seconds, and the network runs once over the data.

Boxes are XYXY in output pixels, continuous coordinates.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.structures import BoxMode, Instances
from torch import Tensor, nn
from torchvision.ops import box_iou
from tqdm import tqdm

from rdsnet.data.mapper import build_mapper

logger = logging.getLogger(__name__)

# A detection shows where an object's edges are only if it is that object's.
_MATCH_IOU = 0.5

IMAGES_PER_FILE = 200
_FORMAT = b"ids as json"  # of the files: those in another one are made anew


@dataclass
class PackedProfiles:
    """Profiles of N objects along one axis, without the zeros outside their windows.

    Object n has ``values[offsets[n]:offsets[n + 1]]`` from pixel ``starts[n]`` on.
    """

    values: Tensor  # (sum of lengths,) float
    starts: Tensor  # (N,) int64
    offsets: Tensor  # (N + 1,) int64

    @classmethod
    def pack(cls, profiles: Tensor, starts: Tensor, ends: Tensor) -> PackedProfiles:
        """From (N, L) profiles that are 0 outside [starts, ends)."""
        index = torch.arange(profiles.shape[1], device=profiles.device)
        inside = (index >= starts[:, None]) & (index < ends[:, None])
        offsets = torch.cat([starts.new_zeros(1), inside.sum(1).cumsum(0)])
        return cls(profiles[inside], starts, offsets)

    @classmethod
    def cat(cls, packed: Sequence[PackedProfiles]) -> PackedProfiles:
        lengths = torch.cat([p.offsets.diff() for p in packed])
        return cls(
            torch.cat([p.values for p in packed]),
            torch.cat([p.starts for p in packed]),
            torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
        )

    def to(self, device: torch.device | str) -> PackedProfiles:
        return PackedProfiles(*(getattr(self, field.name).to(device) for field in fields(self)))

    def dense(self, objects: Tensor, length: int) -> Tensor:
        """Profiles (M, length) of some objects (M,)."""
        counts = self.offsets.diff()[objects]
        row = torch.repeat_interleave(torch.arange(len(objects), device=counts.device), counts)
        first = counts.cumsum(0) - counts
        place = torch.arange(len(row), device=counts.device) - first[row]
        profiles = self.values.new_zeros(len(objects), length)
        column = place + self.starts[objects][row]
        profiles[row, column] = self.values[place + self.offsets[objects][row]]
        return profiles


@dataclass
class ImageProfiles:
    """The detections of one image, N in the order of their scores, as far as MBRM is concerned."""

    image_id: int | str
    size: tuple[int, int]  # H, W
    boxes: Tensor  # (N, 4) as regressed
    scores: Tensor  # (N,)
    classes: Tensor  # (N,) int64
    gt_boxes: Tensor  # (N, 4) of the object that each detection has found; NaN: none
    columns: PackedProfiles
    rows: PackedProfiles

    def column_maxima(self) -> Tensor:
        """(N, W) as :class:`~rdsnet.ops.CompactMasks` has them."""
        return self._dense(self.columns, self.size[1])

    def row_maxima(self) -> Tensor:
        """(N, H)"""
        return self._dense(self.rows, self.size[0])

    def _dense(self, packed: PackedProfiles, length: int) -> Tensor:
        return packed.dense(torch.arange(len(self.boxes)), length)


class NothingFound(ValueError):
    """A model has found no object, so that there is nothing to fit MBRM to."""


class ObjectProfiles:
    """All detections of a data set that have found an object, to draw batches from.

    Args:
        images: what :func:`collect_profiles` returns.
        device: where batches are made.

    Raises:
        NothingFound: there is none.
    """

    def __init__(self, images: Sequence[ImageProfiles], device: torch.device | str = "cpu") -> None:
        found = [~image.gt_boxes.isnan().any(1) for image in images]
        keep = torch.cat(found) if found else torch.zeros(0, dtype=torch.bool)
        if not keep.any():
            raise NothingFound(
                f"none of the {len(keep)} detections in {len(images)} images has found an object "
                f"(same class, IoU at least {_MATCH_IOU}). MBRM is fitted to a model that is "
                "trained already: check MODEL.WEIGHTS and DATASETS.TRAIN."
            )
        self.objects = keep.nonzero()[:, 0].to(device)
        self.boxes = torch.cat([image.boxes for image in images]).to(device)
        self.gt_boxes = torch.cat([image.gt_boxes for image in images]).to(device)
        sizes = [torch.tensor([image.size]).expand(len(image.boxes), 2) for image in images]
        self.sizes = torch.cat(sizes).to(device)
        self.columns = PackedProfiles.cat([image.columns for image in images]).to(device)
        self.rows = PackedProfiles.cat([image.rows for image in images]).to(device)

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def device(self) -> torch.device:
        return self.objects.device

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Arguments for :meth:`rdsnet.modeling.MBRM.loss`.

        Args:
            index: (M,) numbers below ``len(self)``.

        Returns:
            column_maxima (M, W), row_maxima (M, H), boxes (M, 4), gt_boxes (M, 4) and sizes (M, 2),
            for the largest H and W among the images.
        """
        objects = self.objects[index]
        sizes = self.sizes[objects]
        height, width = sizes.amax(0).tolist()
        return (
            self.columns.dense(objects, width),
            self.rows.dense(objects, height),
            self.boxes[objects],
            self.gt_boxes[objects],
            sizes,
        )


@torch.no_grad()
def collect_profiles(
    cfg: CfgNode,
    model: nn.Module,
    dataset_name: str,
    folder: str | Path,
    max_images: int = -1,
) -> list[ImageProfiles]:
    """Run a model over a data set, at test resolution and without augmentation, and keep profiles.

    What an earlier call has written into ``folder`` is used again if it came from the same weights,
    settings and data, also when that call was interrupted.

    Args:
        cfg: of the model and the data.
        model: an :class:`~rdsnet.modeling.RDSNet` with its weights loaded.
        dataset_name: a registered data set with annotations.
        folder: where to keep the profiles (files ``<dataset>-<number>.pt``).
        max_images: images to run on, drawn at random (always the same); -1: all.

    Raises:
        ValueError: if the data set has no images or no annotations.
    """
    records = _choose(DatasetCatalog.get(dataset_name), dataset_name, max_images)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fingerprint = _fingerprint(cfg, model, records)
    images: list[ImageProfiles] = []
    reused = 0
    for start in range(0, len(records), IMAGES_PER_FILE):
        part = records[start : start + IMAGES_PER_FILE]
        path = folder / f"{dataset_name}-{start // IMAGES_PER_FILE:04d}.pt"
        known = _read(path, fingerprint)
        if known is None:
            progress = (
                f"{dataset_name}, images {start + 1} to {start + len(part)} of {len(records)}"
            )
            known = list(_run(cfg, model, part, progress))
            _write(path, fingerprint, known)
        else:
            reused += len(part)
        images += known
    if reused:
        logger.info(f"Profiles of {reused} images of '{dataset_name}' taken from {folder}")
    return images


def match_detections(
    boxes: Tensor, classes: Tensor, gt_boxes: Tensor, gt_classes: Tensor
) -> Tensor:
    """Which object each detection has found: the one of its class with the largest IoU, at least
    0.5, that no better-scored detection has taken.

    Args:
        boxes: (N, 4), classes: (N,), by falling score.
        gt_boxes: (M, 4), gt_classes: (M,).

    Returns:
        (N,) int64 index of the object, -1 for none.
    """
    matches = torch.full((len(boxes),), -1, dtype=torch.int64)
    if not len(gt_boxes):
        return matches
    iou = box_iou(boxes, gt_boxes)
    iou[classes[:, None] != gt_classes] = 0
    for n in range(len(boxes)):
        best, index = iou[n].max(0)
        if best >= _MATCH_IOU:
            matches[n] = index
            iou[:, index] = 0
    return matches


def _choose(records: list[dict], dataset_name: str, max_images: int) -> list[dict]:
    if not records:
        raise ValueError(f"data set '{dataset_name}' has no images")
    if any("annotations" not in record for record in records):
        raise ValueError(
            f"data set '{dataset_name}' has images without annotations, and MBRM is fitted to "
            "the boxes of annotated objects. Use the set that the model was trained on."
        )
    if 0 <= max_images < len(records):
        return random.Random(0).sample(records, max(max_images, 1))
    return records


def _run(
    cfg: CfgNode, model: nn.Module, records: list[dict], progress: str
) -> Iterator[ImageProfiles]:
    loader = build_detection_test_loader(
        records,
        mapper=build_mapper(cfg, is_train=False),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    was_training, dense_masks = model.training, model.dense_masks
    model.eval()
    model.dense_masks = False
    try:
        # The loader keeps the order of the records.
        for record, inputs in zip(records, tqdm(loader, desc=progress, unit="image", disable=None)):
            (output,) = model(inputs)
            yield _image_profiles(record, output["instances"].to("cpu"))
    finally:
        model.train(was_training)
        model.dense_masks = dense_masks


def _image_profiles(record: dict, instances: Instances) -> ImageProfiles:
    instances = instances[instances.scores.argsort(descending=True, stable=True)]
    boxes, masks = instances.regressed_boxes.tensor.float(), instances.pred_masks
    objects = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    gt_boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    gt_boxes = torch.tensor(gt_boxes, dtype=torch.float32).view(-1, 4)
    gt_classes = torch.tensor([a["category_id"] for a in objects], dtype=torch.int64)
    matches = match_detections(boxes, instances.pred_classes, gt_boxes, gt_classes)
    found = torch.full_like(boxes, torch.nan)
    found[matches >= 0] = gt_boxes[matches[matches >= 0]]
    x1, y1, x2, y2 = masks.windows.unbind(1)
    return ImageProfiles(
        record["image_id"],
        instances.image_size,
        boxes,
        instances.scores.float(),
        instances.pred_classes,
        found,
        PackedProfiles.pack(masks.column_maxima.float(), x1, x2),
        PackedProfiles.pack(masks.row_maxima.float(), y1, y2),
    )


def _fingerprint(cfg: CfgNode, model: nn.Module, records: list[dict]) -> str:
    """Changes when the profiles would: with the weights, the model's settings or the data."""
    digest = hashlib.sha256(_FORMAT)
    for name, tensor in model.state_dict().items():
        if not name.startswith("mbrm."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = cfg.MODEL.DEVICE = ""
    cfg.MODEL.RDSNET.MBRM = CfgNode()
    digest.update((cfg.MODEL.dump() + cfg.INPUT.dump() + cfg.TEST.dump()).encode())
    for record in records:
        objects = [
            (a["bbox"], a["category_id"], a.get("iscrowd", 0)) for a in record["annotations"]
        ]
        place = [record[key] for key in ("file_name", "image_id", "height", "width")]
        digest.update(json.dumps([place, objects], default=float).encode())
    return digest.hexdigest()


def _write(path: Path, fingerprint: str, images: list[ImageProfiles]) -> None:
    # First under another name: an interrupted write leaves no half file behind.
    unfinished = path.with_suffix(".unfinished")
    # An id may be longer than the integers that torch reads again: it is kept as json.
    entries = [{**asdict(image), "image_id": json.dumps(image.image_id)} for image in images]
    torch.save({"fingerprint": fingerprint, "images": entries}, unfinished)
    unfinished.replace(path)


def _read(path: Path, fingerprint: str) -> list[ImageProfiles] | None:
    """None when there is no such file, or it is of other weights, settings or data."""
    if not path.is_file():
        return None
    content = torch.load(path, map_location="cpu", weights_only=True)
    if content["fingerprint"] != fingerprint:
        logger.info(f"{path} is of other weights, settings or data, and is made anew")
        return None
    images = []
    for image in content["images"]:
        packed = {axis: PackedProfiles(**image.pop(axis)) for axis in ("columns", "rows")}
        image["image_id"] = json.loads(image["image_id"])
        images.append(ImageProfiles(**image, **packed))
    return images
