"""What can go wrong between a config, a machine and a checkpoint, said before it does."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

# What a checkpoint may lack: without MBRM's weights the published kernel is used, and the running
# loss normaliser is of no use to inference.
OPTIONAL = ("mbrm.weight", "mbrm.bias", "object_stream.loss_normalizer")


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
        ValueError: when a parameter or buffer has no weights in evaluation mode, or none has in
            training.
    """
    names = module.state_dict().keys()
    missing = [n for n in names if prefix + n not in state_dict and n not in OPTIONAL]
    if module.training and len(missing) + len(OPTIONAL) < len(names):
        return
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ValueError(
            f"the checkpoint does not fit this model: {len(missing)} of "
            f"{len(names)} weights are missing from it or have another shape "
            f"({shown}). Use the config file that the checkpoint was trained with (a training "
            "run keeps it as config.yaml beside its checkpoints), with the same number of classes."
        )
