"""Checkpoints of other code bases, read safely and converted to this model's names."""

from rdsnet.checkpoint.files import read_state_dict
from rdsnet.checkpoint.mmdet import convert_mmdet_state_dict

__all__ = ["convert_mmdet_state_dict", "read_state_dict"]
