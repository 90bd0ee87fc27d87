"""Starting a training from a model that has learnt something else.

What fits is taken over. Of the layers whose channels stand for classes, those of classes with the
same name are; the others begin anew. Weights of another architecture are refused: a model of which
half is random would train, and nobody would know why it is bad.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from torch import Tensor, nn

from rdsnet.checkpoint.changes import described, is_among, other_meaning
from rdsnet.checkpoint.checkpointer import Checkpointer
from rdsnet.checkpoint.description import read_config
from rdsnet.checkpoint.shipped import weights_file
from rdsnet.checkpoint.stems import with_channels_of
from rdsnet.modeling.loading import OPTIONAL

logger = logging.getLogger(__name__)

# Layers with a channel per anchor and class, in this order, and what follows an anchor's classes: a
# softmax has background there.
CLASS_LAYERS = {"cls_score": 0, "semantic_pred": 0, "cls_pred": 1}
_OF_CHANNELS = ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD")
# What a detector cannot do without: the body of its backbone.
BODY = "backbone.bottom_up."
MOST_SHOWN = 4


def load_first_weights(checkpointer: Checkpointer, cfg: CfgNode) -> None:
    """Load ``MODEL.WEIGHTS`` for a training, and say in a sentence what was not taken over.

    Args:
        checkpointer: of the model that is about to be trained.
        cfg: of the training.

    Raises:
        OSError, FileNotFoundError: the weights cannot be had.
        ValueError: they are damaged, or of another model.
    """
    path = weights_file(cfg.MODEL.WEIGHTS)
    content = checkpointer.read(path) if Path(path).is_file() else {}
    if not content or content.get("matching_heuristics"):  # a pretrained backbone, or nothing
        checkpointer.load(path, checkpointables=[])
        return
    stored = read_config(path)
    classes = ClassMap.between(stored, cfg)
    model = checkpointer.model
    weights, changed = with_channels_of(model, content["model"])
    taken = fitting(model, weights, classes)
    _refuse_other_model(taken, path, is_described=stored is not None)
    model.load_state_dict(taken.weights)
    said = [taken.text(classes), *([changed] if changed else [])]
    logger.info(f"Training starts from {path}: {'; '.join(said)}.")
    changes = other_meaning(cfg, stored) if stored is not None else {}
    if changed:  # so that mean and deviation are of other channels
        changes = {key: v for key, v in changes.items() if not is_among(key, _OF_CHANNELS)}
    if changes:
        logger.warning(
            f"What the weights have learnt had another meaning: {described(changes)}. Without "
            f"--config, --weights {path} brings its own config"
        )


@dataclass(frozen=True)
class ClassMap:
    """From classes of the weights to those of a model.

    Attributes:
        before: K' of the weights.
        sources: (K,) the class of the weights that each class begins as; None: it begins anew.
        names, names_before: where they are known.
    """

    before: int
    sources: tuple[int | None, ...]
    names: tuple[str, ...] = ()
    names_before: tuple[str, ...] = ()

    @classmethod
    def between(cls, stored: CfgNode | None, cfg: CfgNode) -> ClassMap:
        """By name, whatever the order; the one class of a model serves for the one of another.

        Where names are unknown: by number, if there are as many.

        Args:
            stored: the config in the checkpoint, if it has one.
        """
        now = cfg.MODEL.RETINANET.NUM_CLASSES
        before = stored.MODEL.RETINANET.NUM_CLASSES if stored is not None else now
        names, names_before = (
            tuple(name for _, name in config.DATASETS.get("CLASSES", ())) if config else ()
            for config in (cfg, stored)
        )
        if len(names) != now or len(names_before) != before:
            sources = range(now) if now == before else [None] * now
            return cls(before, tuple(sources))
        sources = cls.by_name(names, names_before)
        if now == before == 1:
            sources = [0]
        return cls(before, tuple(sources), names, names_before)

    @staticmethod
    def by_name(names: Sequence[str], names_before: Sequence[str]) -> list[int | None]:
        """The n-th of several classes of one name is the n-th of that name."""
        left = [name.strip().casefold() for name in names_before]
        sources: list[int | None] = []
        for name in names:
            name = name.strip().casefold()
            sources.append(left.index(name) if name in left else None)
            if name in left:
                left[left.index(name)] = None
        return sources

    def text(self) -> str:
        """Which classes were not taken over; "" where all were, under their own names."""
        new = [k for k, source in enumerate(self.sources) if source is None]
        gone = [k for k in range(self.before) if k not in self.sources]
        if not self.names:
            return f"the class layer begins anew ({len(new)} classes)" if new else ""
        if len(new) == len(self.sources):
            before = quoted(self.names_before)
            return f"the class layer begins anew, for {quoted(self.names)} instead of {before}"
        parts = []
        if new:
            parts.append(f"the class layer begins anew for {quoted(self.names[k] for k in new)}")
        if gone:
            parts.append(f"{quoted(self.names_before[k] for k in gone)} is left out")
        if self.by_name(self.names, self.names_before) == [None]:
            before = quoted(self.names_before)
            parts.append(f"the class {before} becomes {quoted(self.names)}, all else is the same")
        return ", ".join(parts)


@dataclass(frozen=True)
class Taken:
    """Weights for a whole model, and the names of those that are not another model's."""

    weights: dict[str, Tensor]
    missing: list[str]

    def text(self, classes: ClassMap) -> str:
        parts = [classes.text()] if classes.text() else []
        if self.missing:
            parts.append(f"at random begin {listed(self._random_parts())}")
        return "; ".join(parts) or "all weights were taken over"

    def _random_parts(self) -> list[str]:
        """Parts of the model without weights, such as "part of backbone", "pixel_stream"."""
        missing, total = (
            Counter(name.partition(".")[0] for name in names)
            for names in (self.missing, [n for n in self.weights if n not in OPTIONAL])
        )
        return [part if n == total[part] else f"part of {part}" for part, n in missing.items()]


def fitting(model: nn.Module, weights: Mapping[str, Tensor], classes: ClassMap) -> Taken:
    """The weights of a model with those of another wherever they fit.

    Args:
        model: its own weights are where the others' do not fit.
        weights: by the same names, of any floating-point type; more may be there.
    """
    taken, missing = dict(model.state_dict()), []
    for name, own in taken.items():
        other = weights.get(name)
        if other is not None and _layer(name) in CLASS_LAYERS:
            other = with_classes_of(own, other, classes, CLASS_LAYERS[_layer(name)])
        if other is not None and other.shape == own.shape:
            taken[name] = other
        elif name not in OPTIONAL and not name.endswith("num_batches_tracked"):
            missing.append(name)
    return Taken(taken, missing)


def with_classes_of(own: Tensor, other: Tensor, classes: ClassMap, others: int) -> Tensor | None:
    """The channels of a class layer: of classes that are known the other's, else its own.

    Args:
        own: (A * (K + others), ...), by anchor and class.
        other: (A * (K' + others), ...).
        others: channels after the classes of an anchor, taken over as they are.

    Returns:
        as ``own``; None where the numbers of anchors differ.
    """
    before, now = classes.before + others, len(classes.sources) + others
    anchors = len(own) // now
    if len(own) != anchors * now or len(other) != anchors * before:
        return None
    result = own.detach().clone().reshape(anchors, now, *own.shape[1:])
    other = other.reshape(anchors, before, *other.shape[1:])
    if result.shape[2:] != other.shape[2:]:
        return None
    sources = [*classes.sources, *range(classes.before, before)]
    for channel, source in enumerate(sources):
        if source is not None:
            result[:, channel] = other[:, source].to(result)
    return result.reshape(own.shape)


def quoted(names: Iterable[str]) -> str:
    return listed([f"'{name}'" for name in names])


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return ", ".join(names[:MOST_SHOWN]) + more


def _layer(name: str) -> str:
    """The module that a weight belongs to: "object_stream.head.cls_score.bias" -> "cls_score"."""
    return name.split(".")[-2] if "." in name else ""


def _refuse_other_model(taken: Taken, path: str, is_described: bool) -> None:
    """Raise ValueError where too much would begin at random."""
    in_the_body = [name for name in taken.missing if name.startswith(BODY)]
    if not (taken.missing if is_described else in_the_body):
        return
    remedy = "give the config that they were trained with by --config FILE"
    if is_described:
        remedy = (
            f"give --weights {path} without --config or --config-file: the model is then the one "
            "that they belong to"
        )
    raise ValueError(
        f"the weights {path} are of another model than the config's: {len(taken.missing)} of "
        f"{len(taken.weights)} weights are missing there or have another shape "
        f"({listed(taken.missing)}). What to do: {remedy}."
    )
