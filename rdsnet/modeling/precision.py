"""Precision of what follows the convolutions. Needs torch alone."""

from __future__ import annotations

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """float16 and bfloat16 as float32, the rest as it is.

    Under autocast convolutions give half precision, too little for losses. A model in float64 keeps
    its digits. (Detections are float32 always: Detectron2 decodes and suppresses boxes so.)
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
