"""Settings that follow from the data: what ``rdsnet train --data`` decides, and why.

Everything is decided from a base config and the statistics of the data, and becomes config options
KEY VALUE, so that train_net.py with the same options does the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from detectron2.config import CfgNode

from rdsnet.config import backbone_lr_factor, flat
from rdsnet.data.augmentations import check_preset
from rdsnet.data.statistics import DataStatistics
from rdsnet.modeling.precision import chosen_precision
from rdsnet.training.anchor_fit import fit_anchors, uses_anchors
from rdsnet.training.input_choice import choose_input

# Passes over the data (paper: 12), and iterations that are made however few images there are.
_EPOCHS, _MIN_ITERATIONS = 12, 1500
# Sizes, sides and colours are varied from so many passes over the pixels on. After 11 passes over
# photographs (waste) that had cost 2 AP, after 18 over nuclei it made no difference (one seed each,
# docs/results.md); where it begins to pay has not been measured.
_MANY_PASSES = 30
# A detector that begins at stride 4 begins at stride 8, which takes two thirds of the time, unless
# this share of the objects is smaller than so many pixels of the input; in crops of images full of
# small objects it takes less. Chosen by three runs in the same time, one seed each: photographs
# with 36 % gained; nuclei, in crops, lost 2 to 3 AP with 56 % and with 37 % (docs/results.md).
_FINE_OBJECT, _FINE_SHARE, _FINE_SHARE_IN_CROPS = 16, 0.45, 0.25
# Evaluations in a run; more when they decide when it stops.
_EVALUATIONS, _EVALUATIONS_WITH_PATIENCE = 8, 20
# Anchors that trained weights have learnt are exchanged where fewer objects than this match one.
_FEW_MATCHES = 0.5
# Room above the largest number of objects in a training image.
_DETECTIONS_MARGIN = 1.25
# Classes that fewer than this share of the images have are rare; so many of them are named.
_RARE, _RARE_SHOWN = 0.05, 6
# Images that MBRM is fitted to at most, where there is no GPU.
_FIT_IMAGES_ON_CPU = 500


@dataclass
class Wishes:
    """What the user asks for; None or 0: to be decided here."""

    epochs: float | None = None
    iterations: int | None = None
    batch_size: int | None = None
    num_gpus: int = 1
    patience: int = 0
    ema: bool = False
    augment: str | None = None
    channels: int | None = None


@dataclass
class Settings:
    """Config options, and a line per decision for people: (topic, text)."""

    options: dict[str, object] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)

    def opts(self) -> list[str]:
        """KEY VALUE words, as a command line has them."""
        return [word for key, value in self.options.items() for word in (key, str(value))]


def derive_settings(
    cfg: CfgNode,
    train: DataStatistics,
    val: DataStatistics | None,
    wishes: Wishes,
    learnt_anchors: bool = False,
) -> Settings:
    """Decide on everything that depends on the data.

    Args:
        cfg: the base config; its schedule and learning rate are for its own batch size.
        train, val: of the images that are trained and evaluated on (None: no evaluation).
        learnt_anchors: training starts from weights that have learnt the anchors of ``cfg``. They
            stay unless hardly any object matches one.

    Raises:
        ValueError: if no training image has an object.
    """
    if not len(train.boxes):
        raise ValueError("the training data has no object (crowds do not count)")
    settings = Settings()
    settings.options["MODEL.RETINANET.NUM_CLASSES"] = len(train.class_names)
    chosen = choose_input(cfg, train)
    settings.options |= chosen.options
    if chosen.note:
        settings.notes.append(("Input", chosen.note))
    scales = chosen.scales
    if not learnt_anchors:
        _choose_levels(settings, cfg, train, scales)
    if uses_anchors(cfg):
        _choose_anchors(settings, cfg, train, scales, learnt_anchors)
    _choose_detections(settings, cfg, train)
    _choose_sampler(settings, cfg, train)
    _choose_schedule(settings, cfg, train, wishes, chosen.cost)
    _choose_augmentation(settings, cfg, train, wishes)
    _choose_precision(settings, cfg)
    _choose_evaluation(settings, cfg, val, wishes)
    return settings


def fitting_notes(cfg: CfgNode, train: DataStatistics) -> list[tuple[str, str]]:
    """How input, anchors and detections of a config fit the data: topics and sentences."""
    notes = derive_settings(cfg, train, None, Wishes()).notes
    shown = ("Input", "Detector", "Anchors", "Detections")
    return [note for note in notes if note[0] in shown]


def _choose_augmentation(
    settings: Settings, cfg: CfgNode, train: DataStatistics, wishes: Wishes
) -> None:
    """In a long training, turn images that have no upper side, if the config says nothing else."""
    if wishes.augment:
        check_preset(wishes.augment)
        settings.options["INPUT.AUGMENTATION"] = wishes.augment
        settings.notes.append(("Variation", f'"{wishes.augment}", as asked for'))
    elif cfg.DATASETS.MAPPER == "RDSNetDatasetMapper" and cfg.INPUT.AUGMENTATION == "light":
        passes = _passes(settings, cfg, train)
        if not train.lies_any_way:
            text = "some objects stand upright, or are too few"
        elif passes < _MANY_PASSES:
            text = f"every pixel is seen about {passes:.0f} times, too few for more to pay"
        else:
            settings.options["INPUT.AUGMENTATION"] = "microscopy"
            text = "the objects lie in every direction"
        what = 'left and right exchanged ("light")'
        if "INPUT.AUGMENTATION" in settings.options:
            what = 'flips, quarter turns, sizes and colours varied ("microscopy")'
        settings.notes.append(("Variation", f"{what}: {text}"))


def _passes(settings: Settings, cfg: CfgNode, train: DataStatistics) -> float:
    """How often the chosen schedule shows a pixel of the images with objects, in the mean."""
    shown = settings.options["SOLVER.MAX_ITER"] * settings.options["SOLVER.IMS_PER_BATCH"]
    has_objects = train.objects_per_image > 0
    part = 1.0
    if settings.options.get("INPUT.CROP.ENABLED", cfg.INPUT.CROP.ENABLED):
        height, width = settings.options.get("INPUT.CROP.SIZE", cfg.INPUT.CROP.SIZE)
        if settings.options.get("INPUT.CROP.TYPE", cfg.INPUT.CROP.TYPE).startswith("absolute"):
            part = height * width / train.image_sizes[has_objects].prod(1).mean()
        else:
            part = height * width
    return shown * min(1.0, part) / has_objects.sum()


def _choose_sampler(settings: Settings, cfg: CfgNode, train: DataStatistics) -> None:
    """Show images with rare classes more often: repeat factor sampling (Gupta et al. 2019)."""
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        return
    images = int((train.objects_per_image > 0).sum())
    share = train.images_per_class / images
    rare = np.flatnonzero((share > 0) & (share < _RARE))
    if not len(rare):
        return
    settings.options |= {
        "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
        "DATALOADER.REPEAT_THRESHOLD": _RARE,
    }
    rare = sorted(rare, key=lambda k: share[k])
    texts = [
        f"{train.class_names[k]} ({train.images_per_class[k]} of {images} images, "
        f"{math.sqrt(_RARE / share[k]):.1f} times as often)"
        for k in rare[:_RARE_SHOWN]
    ]
    more = len(rare) - len(texts)
    text = "images with them are shown more often: " + ", ".join(texts)
    settings.notes.append(("Rare", text + (f" and {more} more classes" if more else "")))


def _choose_levels(
    settings: Settings, cfg: CfgNode, train: DataStatistics, scales: np.ndarray
) -> None:
    """Whether the detector needs its finest level, stride 4, if the config has it."""
    levels, sizes = cfg.MODEL.RETINANET.IN_FEATURES, cfg.MODEL.ANCHOR_GENERATOR.SIZES
    if cfg.MODEL.META_ARCHITECTURE != "RDSNet" or levels[0] != "p2" or len(sizes) != len(levels):
        return
    small = (train.object_sizes * scales[train.image_index] < _FINE_OBJECT).mean()
    text = f"{small:.0%} of the objects are below {_FINE_OBJECT} px in the input"
    sees_crops = settings.options.get("INPUT.CROP.ENABLED", cfg.INPUT.CROP.ENABLED)
    if small >= (_FINE_SHARE_IN_CROPS if sees_crops else _FINE_SHARE):
        settings.notes.append(("Detector", f"from stride 4 on: {text}"))
        return
    settings.options |= {
        "MODEL.RETINANET.IN_FEATURES": list(levels[1:]),
        "MODEL.ANCHOR_GENERATOR.SIZES": [list(level) for level in sizes[1:]],
    }
    settings.notes.append(("Detector", f"from stride 8 on, which is quicker: {text}"))


def _choose_anchors(
    settings: Settings,
    cfg: CfgNode,
    train: DataStatistics,
    scales: np.ndarray,
    are_learnt: bool,
) -> None:
    fit = fit_anchors(cfg, train.boxes * scales[train.image_index, None])
    if are_learnt and (fit.factor == 1 or fit.coverage >= _FEW_MATCHES):
        text = f"those that the weights have learnt: {fit.coverage:.0%} of the objects match one"
        settings.notes.append(("Anchors", f"{text}, by IoU {fit.iou:g}"))
        return
    sizes = [level[0] for level in fit.best_sizes]
    text = f"{sizes[0]:.3g} to {sizes[-1]:.3g} px: {fit.best_coverage:.0%} of the objects match one"
    if fit.factor != 1:
        settings.options["MODEL.ANCHOR_GENERATOR.SIZES"] = fit.best_sizes
        usual = f"{fit.sizes[0][0]:.3g} to {fit.sizes[-1][0]:.3g}"
        text += f" (of the usual {usual} px: {fit.coverage:.0%})"
        if are_learnt:
            text += ". WARNING: the weights have learnt the usual ones, for objects of other sizes"
    settings.notes.append(("Anchors", f"{text}, by IoU {fit.iou:g}"))


def _choose_detections(settings: Settings, cfg: CfgNode, train: DataStatistics) -> None:
    most = int(train.objects_per_image.max())
    usual = cfg.TEST.DETECTIONS_PER_IMAGE
    wanted = 50 * math.ceil(_DETECTIONS_MARGIN * most / 50)
    if wanted > usual:
        settings.options["TEST.DETECTIONS_PER_IMAGE"] = wanted
        candidates = max(cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST, 3 * wanted)
        settings.options["MODEL.RETINANET.TOPK_CANDIDATES_TEST"] = candidates
    text = f"at most {max(wanted, usual)} per image (the fullest has {most} objects)"
    settings.notes.append(("Detections", text))


def _choose_schedule(
    settings: Settings, cfg: CfgNode, train: DataStatistics, wishes: Wishes, cost: float
) -> None:
    """Batch, learning rate and iterations; more of them where one costs a share of the usual."""
    solver = cfg.SOLVER
    images = int((train.objects_per_image > 0).sum())
    batch = wishes.batch_size or _usual_batch(cfg, wishes.num_gpus)
    share = batch / solver.IMS_PER_BATCH
    # SGD: a batch of twice the size, twice the step. Adam's steps grow with the square root.
    rate = solver.BASE_LR * (share if solver.OPTIMIZER == "SGD" else math.sqrt(share))
    if wishes.iterations:
        iterations = wishes.iterations
    elif wishes.epochs:
        iterations = max(1, round(wishes.epochs * images / batch))
    else:
        iterations = round(max(_MIN_ITERATIONS, _EPOCHS * images / batch) / cost)
    cosine = solver.LR_SCHEDULER_NAME == "WarmupCosineLR"
    steps = {round(step * iterations / solver.MAX_ITER) for step in solver.STEPS if not cosine}
    steps = tuple(sorted(step for step in steps if 0 < step < iterations))
    rate = float(f"{rate:.4g}")
    settings.options |= {
        "SOLVER.IMS_PER_BATCH": batch,
        "SOLVER.BASE_LR": rate,
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": steps,
        "SOLVER.WARMUP_ITERS": min(solver.WARMUP_ITERS, iterations // 10),
    }
    text = (
        f"{iterations} iterations of {batch} images ({iterations * batch / images:.3g} epochs), "
        f"learning rate {rate:g} ({solver.OPTIMIZER})"
    )
    if (factor := backbone_lr_factor(flat(cfg))) != 1:
        text += f", {factor:g} of it for the backbone"
    if cosine:
        text += ", falling to 0"
    elif steps:
        text += f", a tenth of it after {' and '.join(map(str, steps))}"
    settings.notes.append(("Schedule", text))
    if wishes.ema:
        settings.options["SOLVER.EMA.ENABLED"] = True
        decay = solver.EMA.DECAY
        settings.notes.append(("Average", f"of the weights over iterations (EMA, decay {decay:g})"))


def _usual_batch(cfg: CfgNode, num_gpus: int) -> int:
    """The config's own, but at most the paper's 2 images of 800 px per device for a large model."""
    if max(cfg.INPUT.MIN_SIZE_TRAIN) >= 500:
        return min(cfg.SOLVER.IMS_PER_BATCH, 2 * max(num_gpus, 1))
    return cfg.SOLVER.IMS_PER_BATCH


def _choose_precision(settings: Settings, cfg: CfgNode) -> None:
    """bfloat16 where the processor is quicker with it; it is as good (docs/results.md)."""
    if cfg.MODEL.DEVICE == "cpu" and not cfg.SOLVER.AMP.ENABLED:
        name, why = chosen_precision("auto", "cpu")
        settings.options["SOLVER.AMP.ENABLED"] = name == "bf16"
        settings.notes.append(("Precision", f"{name}, {why.removeprefix('auto: ')}"))


def _choose_evaluation(
    settings: Settings, cfg: CfgNode, val: DataStatistics | None, wishes: Wishes
) -> None:
    iterations = settings.options["SOLVER.MAX_ITER"]
    evaluations = _EVALUATIONS_WITH_PATIENCE if wishes.patience else _EVALUATIONS
    period = math.ceil(iterations / evaluations)
    settings.options["SOLVER.CHECKPOINT_PERIOD"] = period
    if val is not None:
        settings.options |= {"TEST.EVAL_PERIOD": period, "TEST.BEST_METRIC": "segm/AP"}
        text = f"every {period} iterations; the best model by mask AP is kept"
        if not len(val.boxes):
            text = (
                f"every {period} iterations, but without objects there is no AP: nothing can be "
                "compared, and the model after the last iteration is kept"
            )
        elif wishes.patience:
            settings.options["TEST.PATIENCE"] = wishes.patience
            text += f", and training stops when {wishes.patience} in a row are not better"
        settings.notes.append(("Evaluation", text))
        settings.options["MODEL.RDSNET.FIT_MASK_THRESHOLD"] = True
        settings.options["MODEL.RDSNET.FIT_SCORE_THRESHOLDS"] = True
        settings.notes += [
            ("Masks", "their threshold is chosen on the validation data at the end"),
            ("Scores", "the lowest to show is chosen there, too, where F1 is best"),
        ]
    mbrm = cfg.MODEL.RDSNET.MBRM
    if mbrm.ENABLED and mbrm.METHOD == "mbrm":
        settings.options["MODEL.RDSNET.MBRM.FIT.AFTER_TRAINING"] = True
        if cfg.MODEL.DEVICE == "cpu":
            images = min(mbrm.FIT.MAX_IMAGES, _FIT_IMAGES_ON_CPU)
            settings.options["MODEL.RDSNET.MBRM.FIT.MAX_IMAGES"] = images
        settings.options["MODEL.RDSNET.MBRM.FIT.CHOOSE"] = True
        text = "MBRM is fitted to the model at the end, and its prior and readout chosen"
        settings.notes.append(("Boxes", text))
