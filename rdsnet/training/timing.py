"""Seconds per training iteration, the models taking turns on the same batches.

CPU seconds of a training depend on what else the machine does, and on large models more than on
small ones. Their ratio, measured in turns in one process, is what turns the time of one model into
iterations of another. It is the ratio of means: Mask R-CNN takes two to four times longer where a
batch has many objects, and a training pays for all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from rdsnet.training.steps import amp_dtype
from rdsnet.training.trainer import Trainer


def seconds_per_iteration(
    configs: Mapping[str, CfgNode],
    iterations: int = 24,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, float]:
    """Of forward, backward and the optimizer's step, with the threads that torch is set to.

    Args:
        configs: {model: config}; with the same data and seed the batches are of the same images.
        iterations: after one that warms up.
        clock: gives seconds; ``time.perf_counter`` where work is done elsewhere (a GPU).

    Returns:
        {model: mean seconds}
    """
    trainers = {name: Trainer(cfg) for name, cfg in configs.items()}
    for trainer in trainers.values():
        trainer.resume_or_load(resume=False)  # the pretrained backbone
        trainer.model.train()
    loaders = {name: iter(Trainer.build_train_loader(cfg)) for name, cfg in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    with EventStorage():
        for iteration in range(iterations + 1):
            for name, trainer in trainers.items():
                batch = next(loaders[name])
                start = clock()
                _step(trainer, batch)
                if iteration > 0:  # the first warms up
                    seconds[name].append(clock() - start)
    return {name: round(statistics.mean(values), 4) for name, values in seconds.items()}


def _step(trainer: Trainer, batch: list[dict]) -> None:
    device = next(trainer.model.parameters()).device
    with torch.autocast(
        device.type, amp_dtype(device.type), enabled=trainer.cfg.SOLVER.AMP.ENABLED
    ):
        losses = trainer.model(batch)
    trainer.optimizer.zero_grad()
    sum(losses.values()).backward()
    trainer.optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
