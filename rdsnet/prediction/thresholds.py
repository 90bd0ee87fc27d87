"""From which score on objects are shown: one number, or what was best for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor, tensor

from rdsnet.checkpoint.trained import names_and_ids, score_thresholds
from rdsnet.evaluation.thresholds import DEFAULT_SCORE
from rdsnet.visualization.objects import class_name

AUTO = "auto"
_MOST_SHOWN = 8


@dataclass(frozen=True)
class ScoreThresholds:
    """The lowest score that is shown.

    Attributes:
        of_classes: of each of the K classes.
        names: of the classes; None: unknown.
        fitted: whether they were chosen for this model, by its F1 in validation.
    """

    of_classes: Sequence[float]
    names: Sequence[str] | None = None
    fitted: bool = False

    @classmethod
    def chosen(cls, cfg: CfgNode, wanted: float | str = AUTO) -> ScoreThresholds:
        """
        Args:
            cfg: with ``MODEL.WEIGHTS``.
            wanted: a number from 0 to 1, or "auto": those that the checkpoint has, and 0.5 where it
                has none.

        Raises:
            ValueError: for something else, or a checkpoint with thresholds of other classes.
        """
        fitted = None
        if wanted == AUTO:
            fitted, wanted = score_thresholds(cfg), DEFAULT_SCORE
        elif isinstance(wanted, str) or not 0 <= wanted <= 1:
            raise ValueError(f"a score threshold is a number from 0 to 1 or 'auto', not {wanted!r}")
        of_classes = fitted or [float(wanted)] * cfg.MODEL.RETINANET.NUM_CLASSES
        return cls(tuple(of_classes), names_and_ids(cfg)[0], fitted is not None)

    @property
    def lowest(self) -> float:
        return min(self.of_classes)

    @property
    def differ(self) -> bool:
        return len(set(self.of_classes)) > 1

    def of(self, classes: Tensor) -> Tensor:
        """(N,) thresholds of objects of these classes, (N,) int64."""
        return tensor(self.of_classes)[classes]

    def text(self) -> str:
        """Such as "0.5" or "0.4 (dog), 0.35 (cat)"."""
        if not self.differ:
            return f"{self.lowest:g}"
        if len(self.of_classes) > _MOST_SHOWN:
            return f"{self.lowest:g} to {max(self.of_classes):g}, by class"
        named = enumerate(self.of_classes)
        return ", ".join(f"{score:g} ({class_name(self.names, k)})" for k, score in named)


def certain(instances: Instances, lowest: float | ScoreThresholds) -> Instances:
    """Those that are shown; instances on the CPU."""
    if isinstance(lowest, ScoreThresholds):
        lowest = lowest.of(instances.pred_classes)
    return instances[instances.scores >= lowest]
