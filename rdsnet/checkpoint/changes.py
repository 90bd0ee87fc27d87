"""What may change between a checkpoint and its further use, and what may not.

The numbers in a checkpoint stand for something together with a part of its config only: the third
class, the anchor of 64 pixels, a pixel of mean brightness. Whoever goes on with them under another
such config gets a crash at best, and at worst a model that calls everything by the wrong name.
"""

from __future__ import annotations

import logging
from pathlib import Path

import yaml
from detectron2.config import CfgNode

from rdsnet.checkpoint.checkpointer import last_checkpoint
from rdsnet.checkpoint.description import read_config
from rdsnet.config import backbone_lr_factor, flat, get_cfg
from rdsnet.data.datasets import with_classes, with_num_classes

logger = logging.getLogger(__name__)

# What images are.
IMAGES = ("INPUT.CHANNELS", "INPUT.SCALING", "INPUT.PERCENTILES", "INPUT.SCALE_RANGES")
# What the weights and the optimizer's state stand for: these keys, and all that lie below them.
_FIXED = (
    "MODEL",
    "DATASETS.CLASSES",
    "DATASETS.MAPPER",
    "INPUT.FORMAT",
    *IMAGES,
    # The optimizer's state is kept by groups of parameters; these make the groups.
    "SOLVER.OPTIMIZER",
    "SOLVER.BIAS_LR_FACTOR",
    "SOLVER.WEIGHT_DECAY_BIAS",
    "SOLVER.WEIGHT_DECAY_NORM",
)
# Of those, what weights do not depend on. A key that is not known here stays fixed.
_FREE = (
    # Where the model runs and what it has started from
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",
    # How the losses pull
    "MODEL.RDSNET.BOX_LOSS_WEIGHT",
    "MODEL.RDSNET.CLASSIFICATION_LOSS",
    "MODEL.RDSNET.FIT_MASK_THRESHOLD",
    "MODEL.RDSNET.FIT_SCORE_THRESHOLDS",
    "MODEL.RDSNET.MASK_LOSS",
    "MODEL.RDSNET.MASK_LOSS_WEIGHT",
    "MODEL.RDSNET.MAX_TRAIN_MASKS",
    "MODEL.RDSNET.OHEM",
    "MODEL.RDSNET.TRAIN_EXPAND",
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE",
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA",
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA",
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA",
    # What is done with the outputs at inference
    "MODEL.RDSNET.DENSE_MASKS",
    "MODEL.RDSNET.INFERENCE",
    "MODEL.RDSNET.MASK_SCORING",
    "MODEL.RDSNET.MASK_THRESHOLD",
    "MODEL.RDSNET.SCORE_THRESHOLDS",
    "MODEL.RDSNET.TEST_EXPAND",
    "MODEL.RDSNET.MBRM.ENABLED",
    "MODEL.RDSNET.MBRM.FIT",
    "MODEL.RDSNET.MBRM.GAMMA",
    "MODEL.RDSNET.MBRM.METHOD",
    "MODEL.RDSNET.MBRM.MIN_SIGMA",
    "MODEL.RDSNET.MBRM.READOUT",
    "MODEL.RETINANET.NMS_THRESH_TEST",
    "MODEL.RETINANET.SCORE_THRESH_TEST",
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
)
# Of the others, what matters to a training alone.
IN_TRAINING = (
    "SOLVER",
    "DATASETS.MAPPER",
    "MODEL.BACKBONE.FREEZE_AT",
    "MODEL.RDSNET.ASSIGNMENT",
    "MODEL.RDSNET.MBRM.RADIUS",  # its kernel is an option of inference until it is fitted
    "MODEL.RETINANET.IOU_LABELS",
    "MODEL.RETINANET.IOU_THRESHOLDS",
    "MODEL.RETINANET.PRIOR_PROB",
    "MODEL.TIMM.NORM",  # whether statistics change in training
)
NUM_CLASSES, CLASSES = "MODEL.RETINANET.NUM_CLASSES", "DATASETS.CLASSES"
_FACTOR, _WEIGHTS = "SOLVER.BACKBONE_LR_FACTOR", "MODEL.WEIGHTS"
_MOST_SHOWN = 8

Changes = dict[str, tuple[object, object]]  # key -> the value then, the value now


def is_fixed(key: str) -> bool:
    """Whether a run that is resumed has to keep the value of a config key."""
    return is_among(key, _FIXED) and not is_among(key, _FREE)


def refuse_other_run(cfg: CfgNode) -> Changes:
    """See that ``--resume`` goes on with the run that has left its checkpoint in ``OUTPUT_DIR``.

    Reads the config in the last checkpoint, or else ``config.yaml`` beside it, and writes nothing.

    Args:
        cfg: of the run that is about to begin.

    Returns:
        What has changed and may. Nothing where there is no checkpoint, or no config to compare
        with.

    Raises:
        ValueError: classes or other keys have changed that must not; all are named, with what to
            do.
    """
    path = last_checkpoint(cfg.OUTPUT_DIR)
    stored = _config_of_run(path) if path else None
    if stored is None:
        return {}
    changes = _changes(stored, _with_declared_classes(cfg))
    fixed = {key: values for key, values in changes.items() if is_fixed(key)}
    if fixed:
        raise ValueError(
            f"--resume cannot go on with {path}, which was trained with something else: "
            f"{described(fixed)}. Its weights would stand for other things; nothing has been "
            f"changed in that folder. To go on with it, give {_beginning(stored, path)} that it "
            "began with. To train something else, choose another folder (--output DIR with --data, "
            f"else OUTPUT_DIR DIR), without --resume; MODEL.WEIGHTS {path} starts from these "
            "weights, other classes included, if they are of the same model."
        )
    _refuse_other_groups(stored, cfg, path)
    return changes


def _refuse_other_groups(stored: CfgNode, cfg: CfgNode, path: str) -> None:
    """The optimizer's state is kept by groups of parameters, and those of a backbone with a rate of
    its own are groups of their own (:func:`rdsnet.training.optimizer.build_optimizer`).
    """
    then, now = flat(get_cfg()) | flat(stored), flat(cfg)
    had_own = backbone_lr_factor(then) != 1
    if had_own == (backbone_lr_factor(now) != 1):
        return
    keys = [_FACTOR] + [_WEIGHTS] * (bool(then[_WEIGHTS]) != bool(now[_WEIGHTS]))
    options = " ".join(f"{key} {_short(then[key])}" for key in keys)
    rates = "a learning rate of its own", "the learning rate of all others"
    had, would_have = rates if had_own else rates[::-1]
    raise ValueError(
        f"--resume cannot go on with {path}: the backbone had {had}, and now it would have "
        f"{would_have}. Nothing has been changed in that folder; {options} at the end of the "
        "command goes on as it began."
    )


def check_other_use(cfg: CfgNode, weights: str) -> None:
    """Warn when weights were trained with something else than they are to be used with.

    Looks at what matters at inference. Says nothing of weights that hold no config.

    Args:
        cfg: of the evaluation or prediction.
        weights: path of a checkpoint; "" and addresses are passed over.

    Raises:
        ValueError: the same class names stand in another order than in training, so that every
            class would be taken for another one.
    """
    stored = read_config(weights) if Path(weights).is_file() else None
    if stored is None:
        return
    changes = _changes(stored, cfg)
    changes = {k: v for k, v in changes.items() if is_fixed(k) and not is_among(k, IN_TRAINING)}
    then, now = ([name for _, name in classes] for classes in changes.pop(CLASSES, ((), ())))
    if then != now and sorted(then) == sorted(now):
        raise ValueError(
            f"{weights} has learnt the classes {', '.join(then)} in this order, and the data has "
            f"them in another: {', '.join(now)}. Every class would be taken for another one. The "
            "order is that of the category ids: give the json of the training, or one with its ids."
        )
    if then != now and len(then) == len(now):
        pairs = [f"{a} for {b}" for a, b in zip(then, now, strict=True) if a != b]
        logger.warning(f"{weights} calls the classes otherwise than the data: {_listed(pairs)}")
    if changes:
        logger.warning(
            f"{weights} was trained with something else than it is used with: "
            f"{described(changes)}. What it finds may mean nothing; its own config is used with "
            f"--config-file {weights}"
        )


def other_meaning(cfg: CfgNode, stored: CfgNode) -> Changes:
    """What weights stand for under another config than that of their training.

    Classes are not looked at, nor how the numbers of images are scaled: both follow the data.

    Args:
        cfg: of the training that starts from them.
        stored: of the one that they come from.
    """
    changes = _changes(stored, cfg)
    return {
        key: values
        for key, values in changes.items()
        if is_fixed(key) and not is_among(key, (*IN_TRAINING, *IMAGES, CLASSES, NUM_CLASSES))
    }


def described(changes: Changes) -> str:
    """Changes in words, such as "INPUT.FORMAT was BGR and is RGB"."""
    words = []
    for key, (then, now) in changes.items():
        if key == CLASSES:
            words.insert(0, _described_classes(then, now))
        elif not (key == NUM_CLASSES and CLASSES in changes):
            words.append(f"{key} was {_short(then)} and is {_short(now)}")
    return _listed(words, "; ")


def _described_classes(then: list, now: list) -> str:
    """Classes are [category id, name], in order."""
    before, after = dict(map(tuple, then)), dict(map(tuple, now))
    words = [
        f"category {id_} was {before[id_]!r} and is {after[id_]!r}"
        for id_ in before
        if id_ in after and before[id_] != after[id_]
    ]
    words += [f"category {id_} {before[id_]!r} is gone" for id_ in before if id_ not in after]
    words += [f"category {id_} {after[id_]!r} is new" for id_ in after if id_ not in before]
    return _listed(words, "; ") or "the categories stand in another order"


def _beginning(stored: CfgNode, checkpoint: str) -> str:
    """What a run began with, and where that lies."""
    train = stored.get("DATASETS", {}).get("TRAIN", ())
    files = stored.get("DATASETS", {}).get("COCO_FILES", ())
    own = str(Path(checkpoint).absolute().parent)  # what a run has split off is nobody's to give
    jsons = [file[1] for file in files if file[0] in train and not file[1].startswith(own)]
    data = f"the data ({_listed(jsons)})" if jsons else "the data"
    return f"{data} and settings (--config-file {checkpoint} has them)"


def _config_of_run(checkpoint: str) -> CfgNode | None:
    beside = Path(checkpoint).with_name("config.yaml")
    stored = read_config(checkpoint)
    if stored is None and beside.is_file():
        try:
            stored = CfgNode(yaml.safe_load(beside.read_text(encoding="utf-8")))
        except (yaml.YAMLError, UnicodeDecodeError, AttributeError, AssertionError):
            return None  # not a config that a run has written
    return stored


def _with_declared_classes(cfg: CfgNode) -> CfgNode:
    """The config with the number and names of classes as the data has them now, if it is there."""
    declared = cfg.clone()
    declared.defrost()
    declared.MODEL.RETINANET.NUM_CLASSES = -1
    try:
        return with_classes(with_num_classes(declared))
    except ValueError:  # nobody knows the classes of the data
        return cfg


def _changes(stored: CfgNode, cfg: CfgNode) -> Changes:
    """Keys with another value than stored, or than the default where nothing is stored."""
    # What the config of another version lacks was as it is by default; what it has more is nobody's
    # business now.
    then, now = flat(get_cfg()) | flat(stored), flat(cfg)
    changes = {
        key: (then[key], now[key])
        for key in then.keys() & now.keys()
        if _plain(then[key]) != _plain(now[key])
    }
    if not (then[CLASSES] and now[CLASSES]):
        changes.pop(CLASSES, None)
    if min(then[NUM_CLASSES], now[NUM_CLASSES]) < 1:
        changes.pop(NUM_CLASSES, None)
    return dict(sorted(changes.items()))


def _plain(value: object) -> object:
    """Tuples as lists, as yaml has them."""
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def is_among(key: str, keys: tuple[str, ...]) -> bool:
    """Whether a config key is one of these, or lies below one."""
    return any(key == other or key.startswith(f"{other}.") for other in keys)


def _listed(words: list[str], separator: str = ", ") -> str:
    more = [f"and {len(words) - _MOST_SHOWN} more"] if len(words) > _MOST_SHOWN else []
    return separator.join(words[:_MOST_SHOWN] + more)


def _short(value: object) -> str:
    text = str(_plain(value)) or "''"
    return text if len(text) <= 80 else f"{text[:77]}..."
