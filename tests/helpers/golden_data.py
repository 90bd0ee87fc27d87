"""Reading the golden files of ``tests/golden`` (see its README): numbers of the authors' code."""

from __future__ import annotations

import json
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from helpers.rounding import ELEMENTARY, assert_within, gamma
from ops import naive
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "golden"
SEED = 4
ANCHORS = 9


@lru_cache
def golden(name: str) -> dict[str, np.ndarray]:
    """All arrays of ``tests/golden/<name>.npz``."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def tensor(array: np.ndarray) -> Tensor:
    """A torch copy of an array, float16 as float32."""
    array = np.array(array)
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float16 else array)


@lru_cache
def state_dict_shapes(model: str) -> dict[str, list[int]]:
    """Names and shapes of the authors' state_dict: model is r50, r50_mbrm, r101 or r101_mbrm."""
    return json.loads((FOLDER / "state_dict_keys.json").read_text())[model]


def rule_weight(name: str, shape: list[int], seed: int = SEED) -> Tensor:
    """The value that the weight rule of the golden files gives a state_dict entry."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name == "mbrm.weight":
        kernel = [-0.2968, -0.2892, -0.2635, -3.2545, -0.1874, 2.5041, 0.0196, 0.0651, 0.0917]
        return torch.tensor(kernel).view(1, 1, -1)
    if name == "mbrm.bias":
        return torch.tensor([-1.9536])
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode("utf8")) + seed))
    z = generator.standard_normal(shape)
    module, kind = name.split(".")[-2:]
    if module in ("bn", "bn1", "bn2", "bn3", "gn") or "downsample.1." in name:
        if kind == "running_var":
            value = 1 + 0.1 * np.abs(z)
        elif kind == "weight":
            value = (1 + 0.1 * z) * (0.25 if module == "bn3" else 1)
        else:
            value = 0.1 * z
    elif kind == "bias":
        value = 0.01 * z - (8.5 if name == "bbox_head.retina_cls.bias" else 0)
    else:
        scales = {
            "bbox_head.retina_cls.weight": 0.04,
            "bbox_head.retina_reg.weight": 0.006,
            "bbox_head.retina_rep.weight": 0.02,
            "mask_head.conv_reps.weight": 0.06,
        }
        he = np.sqrt(2 / np.prod(shape[1:])) * (np.sqrt(0.5) if name.startswith("neck.") else 1)
        value = scales.get(name, he) * z
    return torch.from_numpy(value.astype(np.float32))


@lru_cache
def authors_state_dict(model: str = "r50_mbrm", seed: int = SEED) -> dict[str, Tensor]:
    """A state_dict of the authors' model made by the weight rule."""
    shapes = state_dict_shapes(model)
    return {name: rule_weight(name, shape, seed) for name, shape in shapes.items()}


def masks_from_bits(bits: np.ndarray, height: int, width: int) -> Tensor:
    """numpy.packbits of flattened masks -> (N, H, W) bool."""
    flat = np.unpackbits(bits, axis=1)[:, : height * width]
    return torch.from_numpy(flat.reshape(-1, height, width)).bool()


def mask_loss_limits(variant: str, image: str, objects: int) -> tuple[Tensor, Tensor]:
    """How far rounding on both sides may move the losses (N,) of ``mask_loss`` and their gradient
    (N, h, w, 2), that of their sum over ``objects`` + 1.

    Both subtract two logits, whose cross-entropy changes by no more than they do and its slope by a
    quarter of that, and take a mean over the pixels that are kept.
    """
    data = golden("mask_loss")
    logits = gamma(2) * tensor(data[f"{image}_logits"]).abs().sum(-1).amax((1, 2))
    kept = tensor(data[f"{variant}_kept_{image}"])[:, 2]
    losses = tensor(data[f"{variant}_inst_{image}"])
    gradient = tensor(data[f"{variant}_grad_{image}"]).abs()
    slopes = logits / 4 / (kept + 1) / (objects + 1)
    return (
        2 * (logits + gamma(int(kept.max()) + ELEMENTARY) * losses),
        2 * (slopes[:, None, None, None] + gamma(ELEMENTARY) * gradient),
    )


def posterior_error(mbrm, boxes: Tensor, profiles: Tensor) -> float:
    """Relative error of the boundary distributions of ``mbrm`` in float32.

    An edge and a pixel are off by their coordinate's rounding, which the slope of the prior's
    exponent, at most 3.3 / sigma, brings into the prior; a likelihood by a sum of the kernel's
    products and its sigmoid; the distribution by the sum that it is divided by.
    """
    prior = gamma(2) * boxes.abs().max() * 3.3 / mbrm.min_sigma + gamma(4 + ELEMENTARY) * 3.3**2 / 2
    products = gamma(mbrm.weight.numel() + 2) * (mbrm.weight.abs().sum() + mbrm.bias.abs())
    return (prior + products).item() + gamma(2 * ELEMENTARY + profiles.shape[1])


def ratio_major(channels: Tensor) -> Tensor:
    """(B, 9 * C, h, w) of Detectron2's anchor order (size, ratio) -> the authors' (ratio, size)."""
    batch, _, height, width = channels.shape
    by_anchor = channels.reshape(batch, 3, 3, -1, height, width)
    return by_anchor.transpose(1, 2).reshape(channels.shape)


def assert_sample(actual: Tensor, data: dict[str, np.ndarray], name: str, limit: float) -> None:
    """Compare a float64 tensor with a strided sample, and with mean and standard deviation."""
    assert list(actual.shape) == data[f"{name}_shape"].tolist()
    assert actual.dtype == torch.float64
    mean, std, _ = data[f"{name}_stats"]
    sample = actual.detach().reshape(-1)[:: int(data[f"{name}_stride"])]
    assert_within(sample, tensor(data[f"{name}_sample"]), limit, name)
    assert abs(actual.mean().item() - mean) <= limit
    assert abs(actual.std(correction=0).item() - std) <= limit


def resized_limits(
    psi: Tensor, phi: Tensor, rows: Tensor, columns: Tensor, padded: list[int]
) -> Tensor:
    """How far rounding on both sides may move probabilities (N, H, W) of the authors' masks.

    Their float32 rounds where it looks, too: each of their two resizes by a few units of the
    coordinate on either axis. Between neighbouring cells a logit changes by at most twice the
    largest, and probability by a quarter of that.

    Args:
        rows (H, h), columns (W, w): what both resizes do along an axis.
        padded: height and width of the image in between.
    """
    largest = naive.two_channels(psi[None], phi, torch.zeros(len(phi), dtype=torch.int64))
    places = 2 * gamma(4) * sum(padded) * 2 * largest.diff(dim=1).abs().amax((1, 2, 3))
    return 2 * naive.probability_limits(psi, phi, rows, columns) + places[:, None, None] / 4
