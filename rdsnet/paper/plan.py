"""What a folder of results stands for: data, models, seeds, and how long every model trains.

Everything is decided once and kept in ``paper.json``, so that the same command goes on after an
interruption, and another one is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

import rdsnet
from rdsnet.checkpoint.configs import merge_config_file, naming
from rdsnet.paper.trainings import TABLES, Training, rdsnet_config, trainings
from rdsnet.training.own_data import prepare
from rdsnet.training.settings import Wishes

FILE_NAME = "paper.json"
COCO = "coco"
# Share of a budget that is left for evaluations, fits and pictures.
_NOT_TRAINING = 0.2
# Fewer iterations show nothing but that everything runs.
_FEWEST_ITERATIONS = 20
# The steps of the learning rate: after epochs 8 and 11 of 12.
_STEPS = (8 / 12, 11 / 12)
# What the data decide for all models alike; anchors are each model's own.
_OF_THE_DATA = ("DATASETS.", "INPUT.", "TEST.DETECTIONS_PER_IMAGE", "DATALOADER.")
_CLASSES = "MODEL.RETINANET.NUM_CLASSES"
_SIZES, _LEVELS = "MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.RETINANET.IN_FEATURES"
_ANCHORS = (_SIZES, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", _LEVELS)


@dataclass
class Paper:
    """Settings of a folder; what follows from them.

    Attributes:
        folder: of everything.
        family: of :data:`~rdsnet.paper.trainings.FAMILIES`.
        data, val: annotations and images; ``("coco", None)``: COCO 2017.
        seeds: every training is run with each.
        budget: hours for all trainings that the first command asked for; None: not given.
        iterations: of every model; None: the schedule of its config.
        options: config keys and values of the data, then those of the user, as words.
        seconds_per_iteration: {training: seconds}, as far as measured.
        tables: asked for in this command; not kept.
        without: trainings that this command leaves out; not kept.
    """

    folder: Path
    family: str
    data: Sequence[str | None]
    val: Sequence[str | None] | None
    seeds: Sequence[int]
    budget: float | None = None
    iterations: int | None = None
    data_options: dict[str, object] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    seconds_per_iteration: dict[str, float] = field(default_factory=dict)
    tables: Sequence[str] = TABLES
    without: Sequence[str] = ()

    @property
    def is_coco(self) -> bool:
        return self.data[0] == COCO

    @cached_property
    def trainings(self) -> list[Training]:
        """What the tables need, but for those that are left out.

        Raises:
            ValueError: what is to be left out is none of them, or RDSNet.
        """
        needed = trainings(self.family, self.tables, self.resized)
        names = [training.name for training in needed if training.name != "rdsnet"]
        if unknown := [name for name in self.without if name not in names]:
            raise ValueError(f"--without {', '.join(unknown)}: there are {', '.join(names)}")
        return [training for training in needed if training.name not in self.without]

    @property
    def resized(self) -> bool:
        """Whether images are brought to a size."""
        cfg = _merged(rdsnet_config(self.family), self.data_options, self.options)
        return min(cfg.INPUT.MIN_SIZE_TRAIN) > 0 and cfg.INPUT.MIN_SIZE_TEST > 0

    @property
    def batch(self) -> int | None:
        """Images of an iteration of every model, RDSNet's; None: each config's own, as where each
        has its own schedule.
        """
        if self.is_coco and self.budget is None and self.iterations is None:
            return None
        cfg = _merged(rdsnet_config(self.family), self.data_options, self.options)
        return cfg.SOLVER.IMS_PER_BATCH

    def runs(self) -> list[tuple[Training, int]]:
        """Trainings and seeds; seeds last, so that the first one fills all tables."""
        return [(training, seed) for seed in self.seeds for training in self.trainings]

    def run_folder(self, training: Training, seed: int) -> Path:
        return self.folder / "runs" / f"{training.name}-{seed}"

    def config(self, training: Training, seed: int) -> CfgNode:
        """The config of a run, with ``DATASETS.TEST``."""
        options = {**training.options, **self._of_data(training)}
        cfg = _merged(training.config, options, self.options)
        own = _merged(training.config, options, ()).SOLVER
        _set_batch(cfg, own, self.batch, scale_rate="SOLVER.BASE_LR" not in self.options)
        _set_iterations(cfg, self.iterations)
        for key in ("MIN_SIZE_TRAIN", "MAX_SIZE_TRAIN", "MIN_SIZE_TEST", "MAX_SIZE_TEST"):
            size = cfg.INPUT[key]
            scaled = tuple(map(training.scaled, size)) if isinstance(size, tuple) else None
            cfg.INPUT[key] = scaled or training.scaled(size)
        cfg.SEED = seed
        cfg.OUTPUT_DIR = str(self.run_folder(training, seed))
        return cfg

    def _of_data(self, training: Training) -> dict[str, object]:
        options = {k: v for k, v in self.data_options.items() if k.startswith(_OF_THE_DATA)}
        if training.own_input:
            options = {k: v for k, v in options.items() if not k.startswith("INPUT.")}
        if training.config == rdsnet_config(self.family):
            options |= self._anchors(training)
        if _CLASSES in self.data_options:
            options |= dict.fromkeys(
                (_CLASSES, "MODEL.ROI_HEADS.NUM_CLASSES"), self.data_options[_CLASSES]
            )
        return options

    def _anchors(self, training: Training) -> dict[str, object]:
        """Those that suit the data, as far as a model has none of its own."""
        keys = [key for key in _ANCHORS if key not in training.options]
        if _SIZES in training.options:  # one for each of the config's levels
            keys = [key for key in keys if key != _LEVELS]
        return {key: self.data_options[key] for key in keys if key in self.data_options}

    # ------------------------------------------------------------------------- kept

    def keep(self) -> None:
        """Write ``paper.json``."""
        content = asdict(self)
        del content["folder"], content["tables"], content["without"]
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f"{FILE_NAME}.unfinished"
        unfinished.write_text(json.dumps(content, indent=1) + "\n")
        unfinished.replace(self.folder / FILE_NAME)

    @classmethod
    def read(cls, folder: str | Path, tables: Sequence[str] = TABLES) -> Paper:
        """What a folder was decided to be."""
        kept = json.loads((Path(folder) / FILE_NAME).read_text())
        kept["data_options"] = {k: _untupled(v) for k, v in kept["data_options"].items()}
        return cls(Path(folder), **kept, tables=tables)

    def take_up(self) -> bool:
        """Take what was decided from ``paper.json``; False: there is none.

        Raises:
            ValueError: the folder has results of other settings.
        """
        path = self.folder / FILE_NAME
        if not path.is_file():
            return False
        kept, asked = self.read(self.folder), json.loads(json.dumps(asdict(self), default=str))
        for name in ("family", "data", "val", "budget", "iterations", "options"):
            value = getattr(kept, name)
            if value != asked[name] and not (name == "iterations" and asked[name] is None):
                raise ValueError(
                    f"{path} is of another {name}: {value}, not {asked[name]}. Results of other "
                    "settings go into another --output."
                )
        self.iterations, self.data_options = kept.iterations, kept.data_options
        self.seconds_per_iteration = kept.seconds_per_iteration
        return True

    def decide_on_data(self) -> None:
        """What the data mean for all models.

        Raises:
            FileNotFoundError, ValueError: there is something wrong with the data or the options.
        """
        if self.is_coco:
            self.data_options = {
                "DATASETS.TRAIN": ("coco_2017_train",),
                "DATASETS.TEST": ("coco_2017_val",),
            }
            return
        _, _, settings = prepare(
            tuple(self.data),
            tuple(self.val) if self.val else None,
            config=rdsnet_config(self.family),
            output=str(self.folder),
            wishes=Wishes(iterations=self.iterations),
            opts=self.options,
            resume=True,
        )
        self.data_options = dict(settings.options)
        del self.data_options["OUTPUT_DIR"]
        if not self.data_options["DATASETS.TEST"]:
            raise ValueError("there is nothing to evaluate on: give --val")

    def decide_on_iterations(self) -> None:
        """So many that all trainings together take what the budget leaves them.

        Raises:
            ValueError: the budget is too small.
        """
        if self.budget is None or self.iterations is not None:
            return
        seconds = 3600 * self.budget * (1 - _NOT_TRAINING)
        per_iteration = sum(self.seconds_per_iteration[t.name] for t, _ in self.runs())
        self.iterations = int(seconds / per_iteration)
        if self.iterations < _FEWEST_ITERATIONS:
            needed = _FEWEST_ITERATIONS * per_iteration / 3600 / (1 - _NOT_TRAINING)
            raise ValueError(
                f"--budget {self.budget:g}: {len(self.runs())} trainings would have "
                f"{self.iterations} iterations each. Give at least {needed:.2g} hours, or fewer "
                "tables (--only), or fewer --seeds."
            )
        self.decide_on_data()  # how images are varied depends on how often they are seen

    def hours(self, training: Training) -> float | None:
        """Of one training, by the time of an iteration; None: not measured."""
        seconds = self.seconds_per_iteration.get(training.name)
        if seconds is None:
            return None
        iterations = self.iterations or self.config(training, 1).SOLVER.MAX_ITER
        return seconds * iterations / 3600


def _untupled(value: object) -> object:
    """A list of json as a tuple, which is what configs have where there are no lists in lists."""
    if isinstance(value, list) and not any(isinstance(part, list) for part in value):
        return tuple(value)
    return value


def _merged(config: str, options: dict[str, object], words: Sequence[str]) -> CfgNode:
    cfg = rdsnet.get_cfg()
    merge_config_file(cfg, config)
    given = [str(word) for pair in options.items() for word in pair]
    with naming(f"config options '{' '.join(words)}'"):
        cfg.merge_from_list([*given, *words])
    return cfg


def _set_batch(cfg: CfgNode, own: CfgNode, batch: int | None, *, scale_rate: bool) -> None:
    """So many images per iteration, and SGD's learning rate in proportion.

    Args:
        own: ``SOLVER`` of the model without the user's options.
        batch: None: as it is.
        scale_rate: the user has not given the rate.
    """
    cfg.SOLVER.IMS_PER_BATCH = batch or cfg.SOLVER.IMS_PER_BATCH
    if scale_rate and cfg.SOLVER.OPTIMIZER == "SGD":
        cfg.SOLVER.BASE_LR = own.BASE_LR * cfg.SOLVER.IMS_PER_BATCH / own.IMS_PER_BATCH


def _set_iterations(cfg: CfgNode, iterations: int | None) -> None:
    """So many, in the proportions of the paper's schedule; None: the config's schedule."""
    if iterations is None:
        return
    solver = cfg.SOLVER
    solver.MAX_ITER = iterations
    steps = {min(round(share * iterations), iterations - 1) for share in _STEPS}
    solver.STEPS = tuple(sorted(steps - {0}))  # Detectron2 wants them inside the training
    solver.WARMUP_ITERS = min(solver.WARMUP_ITERS, iterations // 10)
    solver.CHECKPOINT_PERIOD = max(1, min(solver.CHECKPOINT_PERIOD, iterations // 10))


def require_coco() -> None:
    """Check that COCO 2017 is where Detectron2 looks for it.

    Raises:
        FileNotFoundError: something is missing.
    """
    root = os.getenv("DETECTRON2_DATASETS")
    where = f"is '{root}'" if root else "is not set: that is ./datasets"
    for part in ("train", "val"):
        metadata = MetadataCatalog.get(f"coco_2017_{part}")
        missing = None
        if not Path(metadata.json_file).is_file():
            missing = f"there is no file {metadata.json_file}"
        elif not any(Path(metadata.image_root).glob("*.jpg")):
            missing = f"there are no images in {metadata.image_root}"
        if missing:
            raise FileNotFoundError(
                f"--data coco: {missing}. The environment variable DETECTRON2_DATASETS names the "
                "folder that has coco/annotations/instances_train2017.json and "
                "instances_val2017.json, coco/train2017 and coco/val2017 (links will do); it "
                f"{where}."
            )
