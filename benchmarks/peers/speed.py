"""Seconds per training iteration, the models taking turns on the same batches.

CPU seconds of a training depend on what else the machine does, and on large models more than on
small ones. Their ratio, measured in turns in one process, is what turns the time of one model into
iterations of another. It is the ratio of means: Mask R-CNN takes two to four times longer where a
batch has many objects, and a training pays for all of them.
"""

from __future__ import annotations

import statistics
import time

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from rdsnet.training.trainer import Trainer


def seconds_per_iteration(configs: dict[str, CfgNode], iterations: int = 24) -> dict[str, float]:
    """{model: mean CPU seconds} of forward, backward and the optimizer's step, one thread.

    Args:
        configs: of the models; the batches are those of the first.
    """
    torch.set_num_threads(1)
    trainers = {name: Trainer(cfg) for name, cfg in configs.items()}
    for trainer in trainers.values():
        trainer.resume_or_load(resume=False)  # the pretrained backbone
        trainer.model.train()
    loader = iter(Trainer.build_train_loader(next(iter(configs.values()))))
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    with EventStorage():
        for iteration in range(iterations + 1):
            batch = next(loader)
            for name, trainer in trainers.items():
                start = time.process_time()
                with torch.autocast(
                    "cpu", torch.bfloat16, enabled=configs[name].SOLVER.AMP.ENABLED
                ):
                    losses = trainer.model(batch)
                trainer.optimizer.zero_grad()
                sum(losses.values()).backward()
                trainer.optimizer.step()
                if iteration > 0:  # the first warms up
                    seconds[name].append(time.process_time() - start)
    return {name: round(statistics.mean(values), 4) for name, values in seconds.items()}
