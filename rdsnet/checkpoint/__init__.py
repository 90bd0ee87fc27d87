"""Checkpoints: written so that they survive interruptions, read without running their content.

``Checkpointer`` needs Detectron2; the rest needs torch alone.
"""

from rdsnet.checkpoint.files import read_checkpoint, read_state_dict
from rdsnet.checkpoint.mmdet import convert_mmdet_state_dict

__all__ = ["Checkpointer", "convert_mmdet_state_dict", "read_checkpoint", "read_state_dict"]


def __getattr__(name: str):
    if name != "Checkpointer":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from rdsnet.checkpoint.checkpointer import Checkpointer

    return Checkpointer
