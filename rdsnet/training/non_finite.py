"""A loss that is NaN or infinite stops the training, with everything needed to find out why."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import nn

from rdsnet.checkpoint.atomic import write_atomically
from rdsnet.data.masks import dense_ground_truth_masks

logger = logging.getLogger(__name__)


class StopOnNonFiniteLoss(HookBase):
    """Looks at the losses of every iteration before they are backpropagated.

    When one is not finite, the batch and the weights go to
    ``OUTPUT_DIR/non_finite_<iteration>.pth`` (``_rank<n>`` in runs of several processes; read it
    with ``torch.load(weights_only=True)``), and a FloatingPointError names the images. In a run of
    several processes all stop.

    Args:
        output_dir: where to write.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self._folder = Path(output_dir)
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def before_train(self) -> None:
        self._handle = self.trainer.model.register_forward_hook(self._check)

    def after_train(self) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _check(self, model: nn.Module, inputs: tuple, losses: object) -> None:
        if not model.training or not isinstance(losses, dict):
            return
        values = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
        is_bad = not all(map(math.isfinite, values))
        if not any(comm.all_gather(is_bad)):
            return
        iteration = self.trainer.iter
        if not is_bad:
            raise FloatingPointError(
                f"the loss of another process is not finite in iteration {iteration}"
            )
        batch = inputs[0]
        names = [str(image.get("file_name", f"image {i}")) for i, image in enumerate(batch)]
        rank = f"_rank{comm.get_rank()}" if comm.get_world_size() > 1 else ""
        path = self._folder / f"non_finite_{iteration:07d}{rank}.pth"
        shown = ", ".join(f"{name} {value:g}" for name, value in zip(losses, values, strict=True))
        raise FloatingPointError(
            f"a loss is not finite in iteration {iteration}: {shown}. The images of this batch:\n"
            + "\n".join(f"  {name}" for name in names)
            + f"\n{self._write(path, model, batch, dict(zip(losses, values)), iteration)}"
            " Checkpoints of earlier iterations are intact. Usual reasons: a learning rate that is "
            "too high (SOLVER.BASE_LR, SOLVER.WARMUP_ITERS), or damaged annotations."
        )

    def _write(
        self, path: Path, model: nn.Module, batch: list[dict], losses: dict, iteration: int
    ) -> str:
        """Write the file; a sentence about it."""
        model = getattr(model, "module", model)
        content = {
            "iteration": iteration,
            "losses": losses,
            "batch": [_plain_input(image) for image in batch],
            "model": model.state_dict(),
        }
        try:
            write_atomically(path, lambda file: torch.save(content, file))
        except OSError as error:
            return str(error)
        return f"The batch and the weights are in {path}."


def _plain_input(image: dict) -> dict:
    """An input of the model as tensors and plain values.

    The ground truth becomes ``gt_boxes`` (M, 4) float32, ``gt_classes`` (M,) int64 and
    ``gt_masks`` (M, H, W) bool.
    """
    plain = {
        name: value
        for name, value in image.items()
        if isinstance(value, (torch.Tensor, str, int, float))
    }
    instances = image.get("instances")
    if isinstance(instances, Instances):
        plain["gt_boxes"] = instances.gt_boxes.tensor
        plain["gt_classes"] = instances.gt_classes
        if instances.has("gt_masks"):
            plain["gt_masks"] = dense_ground_truth_masks(instances)
    return plain
