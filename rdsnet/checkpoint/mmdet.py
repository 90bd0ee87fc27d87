"""Checkpoints of the authors' implementation, which is built on mmdetection 1.0.

Their parameters and ours are the same up to names, up to the order of the nine anchors of a
location (theirs: aspect ratio, then size; Detectron2's: size, then aspect ratio), and up to the
counters ``num_batches_tracked``, which fixed BatchNorm statistics have no use for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_NUM_RATIOS, _NUM_SIZES = 3, 3
_NUM_ANCHORS = _NUM_RATIOS * _NUM_SIZES
_NUM_CONVS = 4
_CHANNELS = 256
_STAGES = ((64, 256), (128, 512), (256, 1024), (512, 2048))  # inner and outer channels
_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# Kernels of MBRM's likelihood that the authors publish in their code, not in all checkpoints.
_MBRM_NAMES = ("mbrm.weight", "mbrm.bias")

# (their name, our name, shape)
_Entry = tuple[str, str, tuple[int, ...]]


def convert_mmdet_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reorder a ``state_dict`` of the authors' RDSNet (ResNet-50 or -101).

    The result fits the models of ``projects/AuthorsCompat/configs`` and of
    ``configs/COCO-InstanceSegmentation``. What a checkpoint needs not hold is added: ``mbrm.*``
    (the published kernel) and the state of our loss normaliser. Values are not copied, except for
    the last layers of the object stream, whose channels are reordered.

    Args:
        state_dict: the entry ``state_dict`` of an mmdetection checkpoint; names may carry the
            prefix ``module.`` of a parallel model.

    Returns:
        Names of this package -> tensors.

    Raises:
        ValueError: if names are unknown or missing, or tensors have another shape; all are listed.
    """
    if not isinstance(state_dict, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state_dict.items()
    ):
        raise ValueError(
            "convert_mmdet_state_dict needs a dictionary of parameter names and tensors: the entry "
            f"'state_dict' of an mmdetection checkpoint. Got {_describe(state_dict)}"
        )
    if state_dict and all(name.startswith("module.") for name in state_dict):
        state_dict = {name[len("module.") :]: value for name, value in state_dict.items()}

    entries = list(_entries(_depth(state_dict), _num_classes(state_dict), _dim(state_dict)))
    known = {theirs for theirs, _, _ in entries}
    counters = {
        name
        for name in state_dict
        if name.endswith(".num_batches_tracked")
        and name.replace("num_batches_tracked", "running_var") in known
    }
    _check(state_dict, entries, counters)

    converted = {ours: state_dict[theirs] for theirs, ours, _ in entries if theirs in state_dict}
    for layer in ("cls_score", "bbox_pred", "rep_pred"):
        for kind in ("weight", "bias"):
            name = f"object_stream.head.{layer}.{kind}"
            converted[name] = _size_major(converted[name])
    if _MBRM_NAMES[0] not in converted:
        # Imported here: what stands above needs torch alone.
        from rdsnet.modeling.mbrm import MBRM

        converted.update({f"mbrm.{name}": value for name, value in MBRM().state_dict().items()})
    converted["object_stream.loss_normalizer"] = torch.tensor(100.0)
    return converted


def _size_major(channels: Tensor) -> Tensor:
    """Reorder the channels of an anchor-wise layer: (ratio, size, ...) -> (size, ratio, ...)."""
    by_anchor = channels.view(_NUM_RATIOS, _NUM_SIZES, -1, *channels.shape[1:])
    return by_anchor.transpose(0, 1).reshape(channels.shape)


def _entries(depth: int, num_classes: int, dim: int) -> Iterable[_Entry]:
    """All parameters and buffers of a model, without counters."""
    yield from _resnet(depth)
    for i, (_, outer) in enumerate(_STAGES[1:]):
        yield from _conv(f"neck.lateral_convs.{i}.conv", f"backbone.fpn_lateral{i + 3}", outer, 1)
        yield from _conv(f"neck.fpn_convs.{i}.conv", f"backbone.fpn_output{i + 3}", _CHANNELS, 3)
    yield from _conv("neck.fpn_convs.3.conv", "backbone.top_block.p6", _STAGES[-1][1], 3)
    yield from _conv("neck.fpn_convs.4.conv", "backbone.top_block.p7", _CHANNELS, 3)

    for theirs, ours in (("cls", "cls"), ("reg", "bbox"), ("rep", "rep")):
        for i in range(_NUM_CONVS):
            # A branch of ours is a sequence of convolution, normalisation, ReLU.
            subnet = f"object_stream.head.{ours}_subnet"
            module = f"bbox_head.{theirs}_convs.{i}"
            yield from _conv_gn(module, f"{subnet}.{3 * i}", f"{subnet}.{3 * i + 1}")
    for theirs, ours, numbers in (
        ("retina_cls", "cls_score", num_classes),
        ("retina_reg", "bbox_pred", 4),
        ("retina_rep", "rep_pred", 2 * dim),
    ):
        module = f"object_stream.head.{ours}"
        yield from _conv(f"bbox_head.{theirs}", module, _CHANNELS, 3, _NUM_ANCHORS * numbers)

    for theirs, ours in (
        ("lateral_convs.0.0", "p3.0"),
        ("lateral_convs.1.0", "p4.0"),
        ("lateral_convs.2.0", "p5.0"),
        ("lateral_convs.2.2", "p5.2"),
        ("final_convs.0.0", "merge"),
    ):
        module = f"pixel_stream.{ours}"
        yield from _conv_gn(f"mask_head.{theirs}", module, f"{module}.norm")
    yield from _conv("mask_head.conv_reps", "pixel_stream.predictor", _CHANNELS, 1, dim)
    yield "mbrm.weight", "mbrm.weight", (1, 1, 9)
    yield "mbrm.bias", "mbrm.bias", (1,)


def _resnet(depth: int) -> Iterable[_Entry]:
    stem = "backbone.bottom_up.stem.conv1"
    yield "backbone.conv1.weight", f"{stem}.weight", (64, 3, 7, 7)
    yield from _batch_norm("backbone.bn1", f"{stem}.norm", 64)
    incoming = 64
    for stage, ((inner, outer), blocks) in enumerate(
        zip(_STAGES, _BLOCKS[depth], strict=True), start=1
    ):
        for block in range(blocks):
            theirs = f"backbone.layer{stage}.{block}"
            ours = f"backbone.bottom_up.res{stage + 1}.{block}"
            layers = [(1, inner, incoming, 1), (2, inner, inner, 3), (3, outer, inner, 1)]
            for i, out_channels, in_channels, kernel in layers:
                shape = (out_channels, in_channels, kernel, kernel)
                yield f"{theirs}.conv{i}.weight", f"{ours}.conv{i}.weight", shape
                yield from _batch_norm(f"{theirs}.bn{i}", f"{ours}.conv{i}.norm", out_channels)
            if block == 0:
                shape = (outer, incoming, 1, 1)
                yield f"{theirs}.downsample.0.weight", f"{ours}.shortcut.weight", shape
                yield from _batch_norm(f"{theirs}.downsample.1", f"{ours}.shortcut.norm", outer)
            incoming = outer


def _batch_norm(theirs: str, ours: str, channels: int) -> Iterable[_Entry]:
    for kind in ("weight", "bias", "running_mean", "running_var"):
        yield f"{theirs}.{kind}", f"{ours}.{kind}", (channels,)


def _conv(
    theirs: str, ours: str, in_channels: int, kernel: int, out_channels: int = _CHANNELS
) -> Iterable[_Entry]:
    yield f"{theirs}.weight", f"{ours}.weight", (out_channels, in_channels, kernel, kernel)
    yield f"{theirs}.bias", f"{ours}.bias", (out_channels,)


def _conv_gn(theirs: str, ours_conv: str, ours_norm: str) -> Iterable[_Entry]:
    yield f"{theirs}.conv.weight", f"{ours_conv}.weight", (_CHANNELS, _CHANNELS, 3, 3)
    for kind in ("weight", "bias"):
        yield f"{theirs}.gn.{kind}", f"{ours_norm}.{kind}", (_CHANNELS,)


def _depth(state_dict: Mapping[str, Tensor]) -> int:
    """ResNet-101 if layer3 has more blocks than ResNet-50's."""
    return 101 if any(name.startswith("backbone.layer3.6.") for name in state_dict) else 50


def _num_classes(state_dict: Mapping[str, Tensor]) -> int:
    """From the classification layer; the 80 of COCO where there is none."""
    layer = state_dict.get("bbox_head.retina_cls.weight")
    return len(layer) // _NUM_ANCHORS if layer is not None and layer.ndim else 80


def _dim(state_dict: Mapping[str, Tensor]) -> int:
    """D from the last layer of the pixel stream; the paper's 32 where there is none."""
    layer = state_dict.get("mask_head.conv_reps.weight")
    return len(layer) if layer is not None and layer.ndim else 32


def _check(state_dict: Mapping[str, Tensor], entries: list[_Entry], counters: set[str]) -> None:
    shapes = {theirs: shape for theirs, _, shape in entries}
    optional = set(_MBRM_NAMES) if not any(name in state_dict for name in _MBRM_NAMES) else set()
    problems = {
        "unknown": [name for name in state_dict if name not in shapes and name not in counters],
        "missing": [name for name in shapes if name not in state_dict and name not in optional],
        "of another shape": [
            f"{name} {tuple(state_dict[name].shape)} instead of {shape}"
            for name, shape in shapes.items()
            if name in state_dict and tuple(state_dict[name].shape) != shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(
            f"{len(names)} {kind}: {', '.join(names)}" for kind, names in problems.items() if names
        )
        raise ValueError(
            "this is not a state_dict of the authors' RDSNet (ResNet-50 or ResNet-101, RetinaNet, "
            f"mmdetection 1.0 names): {listed}"
        )


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a dictionary with the keys {', '.join(map(str, list(value)[:8]))}"
    return f"a {type(value).__name__}"
