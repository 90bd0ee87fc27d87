"""From a trained model to the file that is shipped: small, without paths, and it says what it is.

Kernels of convolutions are kept in half precision, which halves the file and moves a weight by at
most 1/2048 of itself. All that is small stays as it is: biases, normalisation with its statistics,
MBRM's kernel. Loading such a file gives float32 again, since a model's parameters keep their type.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode
from torch import Tensor

from rdsnet.checkpoint.atomic import write_atomically
from rdsnet.checkpoint.description import KEY, read_config, read_description
from rdsnet.checkpoint.files import read_checkpoint

BEST_MODEL = "model_best.pth"
# How far, relative to its norm, a tensor may be moved by half precision; else it stays as it is.
TOLERATED = 2.0**-10
# Of one machine or one run. A packed model has the default values, or the user's.
OF_THE_RUN = (
    *("DATASETS.COCO_FILES", "DATASETS.TRAIN", "DATASETS.TEST", "OUTPUT_DIR", "SEED"),
    *("MODEL.DEVICE", "MODEL.WEIGHTS"),
)


@dataclass
class Card:
    """What a packed model says about itself."""

    finds: str  # "cell nuclei in microscope images"
    licence: str  # of the weights
    data: str  # that it was trained on
    evaluated_on: str = ""
    figures: dict[str, float] = field(default_factory=dict)  # {"box AP": 50.0, ...}

    def figures_text(self) -> str:
        """Such as "box AP 50.0, mask AP 48.2 on 80 other images"; "" where nothing was measured."""
        figures = ", ".join(f"{name} {value:.1f}" for name, value in self.figures.items())
        return f"{figures} on {self.evaluated_on}" if figures and self.evaluated_on else figures


@dataclass(frozen=True)
class Packed:
    """What :func:`pack` has done; ``largest_change``: relative, of all halved tensors."""

    path: Path
    size: int  # bytes
    halved: int
    kept: int
    largest_change: float


def pack(
    source: str | os.PathLike,
    path: str | os.PathLike,
    card: Card,
    score_thresholds: Sequence[float] | None = None,
) -> Packed:
    """Write a packed model.

    Args:
        source: a training's output folder (its ``model_best.pth`` is taken), or a checkpoint that
            holds its config.
        path: of the file to write.
        card: what the model is to say about itself.
        score_thresholds: of every class the lowest score to show; None: those that it has.

    Raises:
        FileNotFoundError, ValueError: there is no such checkpoint, or it lacks its config or the
            names of its classes, or holds numbers that are not finite.
        OSError: the file cannot be written.
    """
    source = Path(source)
    source = source / BEST_MODEL if source.is_dir() else source
    weights = read_checkpoint(source)["model"]
    cfg = read_config(source)
    if cfg is None:
        raise ValueError(
            f"{source} holds no config. Give the output folder of a training, or the "
            f"{BEST_MODEL} in it."
        )
    if len(cfg.DATASETS.get("CLASSES", ())) != cfg.MODEL.RETINANET.NUM_CLASSES:
        raise ValueError(f"{source} holds no names of its classes: train with data that has them")
    if score_thresholds is not None:
        rdsnet = cfg.MODEL.setdefault("RDSNET", CfgNode())
        rdsnet.SCORE_THRESHOLDS = [float(score) for score in score_thresholds]
    broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise ValueError(f"{source} holds numbers that are not finite, in {', '.join(broken[:5])}")
    halved = {name: halve(value) for name, value in weights.items() if is_large(name, value)}
    changes = {name: relative_change(weights[name], value) for name, value in halved.items()}
    halved = {name: value for name, value in halved.items() if changes[name] <= TOLERATED}
    description = {
        "version": read_description(source)["version"],
        "config": yaml.safe_dump(config_of_any_run(cfg)),
        "card": asdict(card),
    }
    content = {"model": {**weights, **halved}, KEY: description}
    write_atomically(path, lambda file: torch.save(content, file))
    largest = max((changes[name] for name in halved), default=0.0)
    size = Path(path).stat().st_size
    return Packed(Path(path), size, len(halved), len(weights) - len(halved), largest)


def read_card(path: str | os.PathLike) -> Card | None:
    """The card of a packed model; None: the file has none.

    Raises:
        ValueError: the file is damaged or no checkpoint.
    """
    card = read_description(path).get("card")
    if not isinstance(card, Mapping):
        return None
    known = {name: card[name] for name in Card.__dataclass_fields__ if name in card}
    return Card(**{"finds": "", "licence": "", "data": "", **known})


def is_large(name: str, value: Tensor) -> bool:
    """Whether a tensor is worth halving: kernels of convolutions and matrices, not MBRM's."""
    return value.dtype == torch.float32 and value.ndim >= 2 and not name.startswith("mbrm.")


def halve(value: Tensor) -> Tensor:
    return value.to(torch.float16)


def relative_change(before: Tensor, after: Tensor) -> float:
    """|after - before| / |before|, norms over the whole tensor."""
    difference = (after.double() - before.double()).norm()
    return float(difference / before.double().norm().clamp(min=1e-30))


def config_of_any_run(cfg: CfgNode) -> dict:
    """A config without what belongs to one run or one machine, as plain containers."""
    plain = yaml.safe_load(cfg.dump())
    for key in OF_THE_RUN:
        *parts, name = key.split(".")
        node = plain
        for part in parts:
            node = node.get(part, {})
        node.pop(name, None)
    return plain
