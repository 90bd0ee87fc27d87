"""Runs of several processes that somebody else has started: torchrun, srun of Slurm, or Ray.

All tell every process its place in environment variables; Ray has also brought the processes
together. GPUs talk by NCCL, processes without a GPU by gloo.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from detectron2.utils import comm

# torchrun's name: the same thing in srun's environment.
_SLURM_NAMES = {
    "RANK": "SLURM_PROCID",
    "WORLD_SIZE": "SLURM_NTASKS",
    "LOCAL_RANK": "SLURM_LOCALID",
}


def is_started_by_launcher() -> bool:
    """Whether this process is one of several of torchrun, Ray, or srun with MASTER_ADDR set."""
    if all(name in os.environ for name in _SLURM_NAMES):
        return True
    by_slurm = all(name in os.environ for name in _SLURM_NAMES.values())
    return by_slurm and "MASTER_ADDR" in os.environ


@contextmanager
def process_group(opts: list[str]) -> Iterator[None]:
    """The default process group of torch, and Detectron2's group of the processes of a machine.

    Args:
        opts: options KEY VALUE of the command line; MODEL.DEVICE cpu counts.

    Raises:
        ValueError: the launcher's environment is not complete, or there are more processes on this
            machine than GPUs.
    """
    for name, slurm_name in _SLURM_NAMES.items():
        os.environ.setdefault(name, os.environ.get(slurm_name, ""))
    missing = [n for n in (*_SLURM_NAMES, "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(n)]
    if missing:
        raise ValueError(f"a launcher has to set {', '.join(missing)} in the environment")
    local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    on_cpu = gpus == 0 or _device_of(opts).startswith("cpu")
    if not on_cpu and local_rank >= gpus:
        raise ValueError(
            f"process {local_rank} of this machine has no GPU, torch sees {gpus}. Start fewer "
            "processes per machine, or add MODEL.DEVICE cpu."
        )
    if not on_cpu:
        torch.cuda.set_device(local_rank)
    if not dist.is_initialized():
        dist.init_process_group("gloo" if on_cpu else "nccl")
    try:
        _make_local_groups()
        yield
    finally:
        dist.destroy_process_group()
        comm._LOCAL_PROCESS_GROUP = None
        comm._get_global_gloo_group.cache_clear()


def _make_local_groups() -> None:
    """Tell Detectron2 which processes share a machine, however many each of them has."""
    machine = os.environ.get("GROUP_RANK") or os.environ.get("SLURM_NODEID") or os.uname().nodename
    machines: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(machines, machine)
    for name in sorted(set(machines)):
        ranks = [rank for rank, other in enumerate(machines) if other == name]
        group = dist.new_group(ranks)
        if name == machine:
            comm._LOCAL_PROCESS_GROUP = group


def _device_of(opts: list[str]) -> str:
    """MODEL.DEVICE on the command line, "" if it is not there."""
    pairs = dict(zip(opts[::2], opts[1::2], strict=False))
    return pairs.get("MODEL.DEVICE", "")
