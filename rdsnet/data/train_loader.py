"""Training batches: a stream that can be entered anywhere.

Batch number i of a training depends on the data, the seed and ``SOLVER.IMS_PER_BATCH`` alone: not
on the number of processes or data-loader workers, nor on interruptions. Sample number k of the
stream is augmented with a random state of its own (:mod:`rdsnet.data.seeding`); images are grouped
by their shape before they are distributed, so that every process gets its share of the same batch.

Detectron2's samplers say which image comes when; its loader lacks the rest: it starts again from
the beginning after every interruption.
"""

from __future__ import annotations

import atexit
import logging
import random
import signal
from collections.abc import Callable, Iterator

from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from torch import Generator
from torch.utils.data import DataLoader, Dataset

from rdsnet.data.mosaic import with_mosaics
from rdsnet.data.seeding import SAMPLE, seeded

logger = logging.getLogger(__name__)

# How often a mapper may refuse an image (return None) before that is taken for an error.
_MAX_REFUSALS = 100


def build_train_loader(cfg: CfgNode, mapper: Callable[[dict], dict | None]) -> TrainLoader:
    """The training data of a config: ``DATASETS.TRAIN`` and the keys ``DATALOADER.*``.

    Args:
        mapper: from a dataset dict to the model's input; None: take another image instead.

    Raises:
        ValueError: when there is no image with an object, ``SOLVER.IMS_PER_BATCH`` cannot be shared
            equally by the processes, or the sampler is unknown.
    """
    try:
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
    except AssertionError as error:
        raise ValueError(
            f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} has nothing to train on: {error} There "
            "must be images with objects; crowds (iscrowd 1) do not count."
        ) from error
    return TrainLoader(
        dataset,
        with_mosaics(cfg, mapper, dataset),
        # Without a seed in the config the processes agree on one; a checkpoint keeps it.
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        sampler=lambda dataset, seed: _build_sampler(cfg, dataset, seed),
        group_by_shape=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def _build_sampler(cfg: CfgNode, dataset: list[dict], seed: int) -> TrainingSampler:
    """The sampler that ``DATALOADER.SAMPLER_TRAIN`` names."""
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset), seed=seed)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, cfg.DATALOADER.REPEAT_THRESHOLD
        )
        return RepeatFactorTrainingSampler(factors, seed=seed)
    if name == "RandomSubsetTrainingSampler":
        ratio = cfg.DATALOADER.RANDOM_SUBSET_RATIO
        return RandomSubsetTrainingSampler(
            len(dataset), ratio, seed_shuffle=seed, seed_subset=seed + 1
        )
    raise ValueError(
        f"DATALOADER.SAMPLER_TRAIN '{name}' is unknown. Choose TrainingSampler, "
        "RepeatFactorTrainingSampler or RandomSubsetTrainingSampler."
    )


class TrainLoader:
    """Iterable over the batches of this process, lists of mapped dicts, without end.

    Nothing is read before the first batch is asked for, so a state can be loaded until then.

    Args:
        dataset: Detectron2's standard dicts.
        mapper: see :func:`build_train_loader`.
        seed: of order and augmentation.
        batch_size: images of an iteration over all processes.
        sampler: (dataset, seed) -> a sampler of Detectron2.
        group_by_shape: whether wide and high images come in separate batches, which saves padding.
        num_workers: processes that load data; 0: the training's own.
    """

    def __init__(
        self,
        dataset: list[dict],
        mapper: Callable[[dict], dict | None],
        *,
        seed: int,
        batch_size: int,
        sampler: Callable[[list[dict], int], TrainingSampler],
        group_by_shape: bool = True,
        num_workers: int = 0,
    ) -> None:
        self.world_size, self.rank = comm.get_world_size(), comm.get_rank()
        if batch_size < 1 or batch_size % self.world_size:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH {batch_size} cannot be shared equally by "
                f"{self.world_size} processes. Make it a multiple of {self.world_size}."
            )
        self.seed = seed
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.batches = 0
        """Batches that have been handed out."""
        self._mapper = mapper
        self._is_wide = [group_by_shape and d["width"] > d["height"] for d in dataset]
        self._infinite_indices = lambda seed: sampler(dataset, seed)._infinite_indices()
        self._dataset = DatasetFromList(dataset, copy=False)

    def __iter__(self) -> Iterator[list[dict]]:
        loader = DataLoader(
            _Samples(self._dataset, self._mapper, self.seed),
            batch_sampler=self._remaining_batches(),
            num_workers=self.num_workers,
            collate_fn=trivial_batch_collator,
            worker_init_fn=_ignore_signals,
            generator=Generator(),  # else starting the workers would draw from the global one
        )
        batches = iter(loader)
        # Workers ignore SIGTERM, by which Python would end them at its own end: whoever still held
        # this iterator then would wait for them forever.
        stop_workers = getattr(batches, "_shutdown_workers", lambda: None)
        atexit.register(stop_workers)
        try:
            for batch in batches:
                self.batches += 1
                yield batch
        finally:
            atexit.unregister(stop_workers)
            stop_workers()

    def _remaining_batches(self) -> Iterator[list[tuple[int, int]]]:
        """This process' share of every batch to come: (number in the stream, index of image).

        Runs through the batches that were handed out before, which costs microseconds each.
        """
        number, start = 0, self.batches
        buckets: tuple[list, list] = ([], [])
        for sample in enumerate(self._infinite_indices(self.seed)):
            bucket = buckets[self._is_wide[sample[1]]]
            bucket.append(sample)
            if len(bucket) == self.batch_size:
                if number >= start:
                    yield bucket[self.rank :: self.world_size]
                number += 1
                bucket.clear()

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed, "batches": self.batches, "batch_size": self.batch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seed, self.batches = state["seed"], state["batches"]
        if state["batch_size"] != self.batch_size:
            self.batches = self.batches * state["batch_size"] // self.batch_size
            logger.warning(
                f"SOLVER.IMS_PER_BATCH was {state['batch_size']} and is now {self.batch_size}: "
                "the order of the images goes on at about the same place."
            )


class _Samples(Dataset):
    """Maps (number in the stream, index of image), with a random state for every number."""

    def __init__(self, dataset: Dataset, mapper: Callable, seed: int) -> None:
        self._dataset, self._mapper, self._seed = dataset, mapper, seed

    def __getitem__(self, sample: tuple[int, int]) -> dict:
        number, index = sample
        with seeded(self._seed, SAMPLE, number):
            for _ in range(_MAX_REFUSALS):
                mapped = self._mapper(self._dataset[index])
                if mapped is not None:
                    return mapped
                index = random.randrange(len(self._dataset))
        raise ValueError(f"the data mapper has refused {_MAX_REFUSALS} images in a row")


def _ignore_signals(_worker: int) -> None:
    """Ctrl-C reaches the workers too; they go when the training does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
