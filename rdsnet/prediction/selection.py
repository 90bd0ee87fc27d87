"""Which model predicts, and which of its objects are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances

from rdsnet.checkpoint.trained import model_threshold, names_and_ids, prediction_config
from rdsnet.data.class_names import class_numbers
from rdsnet.prediction.thresholds import AUTO, ScoreThresholds, certain


@dataclass(frozen=True)
class Selection:
    """A model, and which of its objects are kept.

    Attributes:
        cfg: of the model, with ``MODEL.WEIGHTS``.
        thresholds: lowest scores.
        metadata: names (None: unknown) and category id of every class.
        kept: numbers of the classes; None: all.
        with_undecided: objects with somewhat lower scores are kept, too.
    """

    cfg: CfgNode
    thresholds: ScoreThresholds
    metadata: tuple[list[str] | None, list[int]]
    kept: torch.Tensor | None
    with_undecided: bool = False

    @classmethod
    def chosen(
        cls,
        config_file: str | None,
        weights: str,
        *,
        score_threshold: float | str = AUTO,
        classes: Sequence[str] = (),
        max_detections: int | None = None,
        opts: Sequence[str] = (),
        lowest_share: float = 1.0,
    ) -> Selection:
        """From the words of a command line, see :func:`rdsnet.prediction.predict`.

        Args:
            lowest_share: below 1: undecided objects are kept, too, from this share of the lowest
                score on.

        Raises:
            FileNotFoundError, ValueError: for what is missing or does not fit.
        """
        cfg = prediction_config(config_file, weights, None, opts, max_detections)
        thresholds = ScoreThresholds.chosen(cfg, score_threshold)
        least = lowest_share * thresholds.lowest
        cfg.MODEL.RETINANET.SCORE_THRESH_TEST = model_threshold(least)
        metadata = names_and_ids(cfg)
        kept = chosen_classes(classes, *metadata)
        return cls(cfg, thresholds, metadata, kept, with_undecided=lowest_share < 1)

    def of(self, instances: Instances) -> Instances:
        """What is kept of the objects of an image, on the CPU."""
        instances = instances.to("cpu")
        return self.of_classes(instances if self.with_undecided else self.shown(instances))

    def shown(self, instances: Instances) -> Instances:
        """Those of the objects that have the scores."""
        return certain(instances, self.thresholds)

    def of_classes(self, instances: Instances) -> Instances:
        """Those of the objects on the CPU that have the classes."""
        if self.kept is None:
            return instances
        return instances[torch.isin(instances.pred_classes, self.kept)]


def chosen_classes(
    classes: Sequence[str], names: list[str] | None, category_ids: list[int]
) -> torch.Tensor | None:
    """Class numbers of the names or category ids to keep; None: all.

    Several may stand in one word, separated by commas. A name that several classes have means all
    of them.

    Raises:
        ValueError: for a class that the model does not have; the message lists those it has.
    """
    if not classes:
        return None
    numbers = class_numbers(names, category_ids)
    words = []
    for text in classes:  # a name may have a comma
        words += [text] if text in numbers else [word.strip() for word in text.split(",")]
    unknown = [word for word in words if word not in numbers]
    if unknown:
        known = ", ".join(names or map(str, category_ids))
        raise ValueError(f"--classes: the model has no '{unknown[0]}'. It has: {known}")
    return torch.tensor(sorted(set().union(*(numbers[word] for word in words))))
