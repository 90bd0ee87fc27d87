"""One iteration of training: forward, backward, step."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rdsnet.modeling.precision import device_capabilities


def distributed(model: nn.Module) -> nn.Module:
    """The model itself in a single process; otherwise one that averages gradients over all.

    Like Detectron2's ``create_ddp_model``, but also on the CPU.
    """
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    return DistributedDataParallel(
        model,
        device_ids=None if device.type == "cpu" else [device.index or torch.cuda.current_device()],
        broadcast_buffers=False,
    )


def amp_dtype(device_type: str) -> torch.dtype:
    """What mixed precision computes in. Of the two bfloat16 has the range of float32, and does not
    slow down depthwise convolutions on some GPUs, as float16 seems to (benchmarks/gpu).
    """
    has_bf16 = device_type != "cuda" or "bfloat16" in device_capabilities("cuda")
    return torch.bfloat16 if has_bf16 else torch.float16


class AMPStep(SimpleTrainer):
    """Automatic mixed precision: in bfloat16 on the CPU and on GPUs that have it, else in float16
    (with scaled gradients).

    Detectron2's AMPTrainer does the latter only.
    """

    def __init__(
        self, model: nn.Module, data_loader: Iterable, optimizer: torch.optim.Optimizer
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.device_type = next(model.parameters()).device.type
        self.dtype = amp_dtype(self.device_type)
        # bfloat16 has the range of float32: nothing to scale.
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=self.dtype == torch.float16
        )

    def run_step(self) -> None:
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(self.device_type, dtype=self.dtype):
            losses = self.model(batch)
        self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(losses.values())).backward()
        self._write_metrics(losses, data_time)
        # Brings gradients back to their true size before anything (clipping) looks at them.
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
