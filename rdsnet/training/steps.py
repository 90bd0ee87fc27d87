"""One iteration of training: forward, backward, step."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel


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


class AMPStep(SimpleTrainer):
    """Automatic mixed precision: float16 on GPUs (with scaled gradients), bfloat16 on the CPU.

    Detectron2's AMPTrainer does the former only.
    """

    def __init__(
        self, model: nn.Module, data_loader: Iterable, optimizer: torch.optim.Optimizer
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.device_type = next(model.parameters()).device.type
        self.dtype = torch.float16 if self.device_type == "cuda" else torch.bfloat16
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
