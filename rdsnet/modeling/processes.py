"""Numbers that processes which train together have to share.

DistributedDataParallel averages gradients over W processes. For the average to be the gradient of
one process with the whole batch, a loss "sum / n" has to divide its process' own sum by n / W, with
n counted over all of them. Needs torch alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def process_count() -> int:
    """W; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.no_grad()
def sum_over_processes(number: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in each of them. All have to call it."""
    if process_count() == 1:
        return number
    number = number.clone()
    dist.all_reduce(number)
    return number


def divisor_for(count: int, device: torch.device) -> Tensor:
    """This process' share of a count over all processes (at least 1), as a loss divides by it."""
    total = sum_over_processes(torch.tensor(float(count), device=device))
    return total.clamp(min=1) / process_count()
