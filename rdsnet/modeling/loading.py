"""What can go wrong between a config, a machine and a checkpoint, said before it does."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

# Weights that a checkpoint may lack: without them the published kernel is used.
OPTIONAL_PREFIXES = ("mbrm.",)


def check_device(cfg: CfgNode) -> None:
    """Raise ValueError when ``MODEL.DEVICE`` asks for a GPU that torch does not see."""
    device = cfg.MODEL.DEVICE
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is '{device}', but torch {torch.__version__} sees no GPU on this "
            "machine. Add 'MODEL.DEVICE cpu' to the command line (or set cfg.MODEL.DEVICE = 'cpu')."
        )


def require_complete_weights(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_
) -> None:
    """Refuse to run inference on weights that are not this model's.

    Detectron2's checkpointer only warns about missing weights, which is right for training from a
    pretrained backbone. In evaluation mode a model with random parts would answer with nonsense.
    (The checkpointer has dropped weights of another shape before they arrive here.)

    Raises:
        ValueError: in evaluation mode, when a parameter or buffer has no weights.
    """
    if module.training:
        return
    missing = [
        name
        for name in module.state_dict()
        if prefix + name not in state_dict and not name.startswith(OPTIONAL_PREFIXES)
    ]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ValueError(
            f"the checkpoint does not fit this model: {len(missing)} of "
            f"{len(module.state_dict())} weights are missing from it or have another shape "
            f"({shown}). Use the config file that the checkpoint was trained with (a training "
            "run keeps it as config.yaml beside its checkpoints), with the same number of classes."
        )
