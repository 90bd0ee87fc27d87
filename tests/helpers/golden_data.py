"""Reading the golden files of ``tests/golden`` (see its README): numbers of the authors' code."""

from __future__ import annotations

import json
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"
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


def ratio_major(channels: Tensor) -> Tensor:
    """(B, 9 * C, h, w) of Detectron2's anchor order (size, ratio) -> the authors' (ratio, size)."""
    batch, _, height, width = channels.shape
    by_anchor = channels.reshape(batch, 3, 3, -1, height, width)
    return by_anchor.transpose(1, 2).reshape(channels.shape)


def assert_sample(actual: Tensor, data: dict[str, np.ndarray], name: str, relative: float = 1e-4):
    """Compare with a strided sample, to ``relative`` of the largest value of the whole tensor."""
    assert list(actual.shape) == data[f"{name}_shape"].tolist()
    mean, std, largest = data[f"{name}_stats"]
    sample = actual.detach().reshape(-1)[:: int(data[f"{name}_stride"])]
    difference = (sample - tensor(data[f"{name}_sample"])).abs().max().item()
    assert difference <= relative * largest, f"{name}: {difference:.2e}, largest value {largest}"
    assert abs(actual.double().mean().item() - mean) <= relative * largest
    assert abs(actual.double().std(correction=0).item() - std) <= relative * largest


def dense_probability(
    psi: Tensor, phi: Tensor, windows: Tensor, taps: list, output: tuple[int, int]
) -> Tensor:
    """Foreground probabilities (N, H, W) by dense matrices, 0 outside the windows.

    psi (D, h, w), phi (N, 2, D), windows (N, 4), taps of the y and x axis. Row o of a matrix holds
    the weights of output pixel o.
    """
    logits = torch.einsum("nd,dhw->nhw", phi[:, 1] - phi[:, 0], psi)
    matrices = []
    for (first, weights), cells in zip(taps, psi.shape[1:], strict=True):
        matrix = torch.zeros(len(first), cells)
        for k in range(3):
            place = (first + k).clamp(max=cells - 1)
            matrix[torch.arange(len(first)), place] += weights[:, k]
        matrices.append(matrix)
    probability = (matrices[0] @ logits @ matrices[1].t()).sigmoid()
    for n, (x1, y1, x2, y2) in enumerate(windows.tolist()):
        inside = torch.zeros(output, dtype=torch.bool)
        inside[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = True
        probability[n][~inside] = 0
    return probability
