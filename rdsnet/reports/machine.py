"""What a run ran on, in words."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path

import torch
from detectron2.config import CfgNode


def machine(cfg: CfgNode) -> str:
    """The processor that the model ran on, in words."""
    if cfg.MODEL.DEVICE.startswith("cuda"):
        return torch.cuda.get_device_name(cfg.MODEL.DEVICE)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads != 1)}"
