"""What ``rdsnet train --data`` begins with: a config of the project, or that of trained weights.

Weights that hold their config (:mod:`rdsnet.checkpoint.description`) bring the model: architecture,
anchors, input format, normalisation of the image. Input size, schedule, optimizer and the like were
decided for other data: they are those of the project's config with the same backbone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

import rdsnet
from rdsnet import model_zoo
from rdsnet.checkpoint.changes import is_among
from rdsnet.checkpoint.configs import merge_config_file, naming
from rdsnet.checkpoint.description import read_config
from rdsnet.checkpoint.pretrained import package_file
from rdsnet.checkpoint.shipped import weights_file
from rdsnet.checkpoint.trained import check_weights, find_config
from rdsnet.config import flat

MODELS = {
    "lite": "lite/rdsnet_lite0_96.yaml",
    "small": "small/rdsnet_small.yaml",
    "R_50": "COCO-InstanceSegmentation/rdsnet_R_50_FPN_1x.yaml",
    "R_101": "COCO-InstanceSegmentation/rdsnet_R_101_FPN_1x.yaml",
}
# The backbone of "lite".
LITE = "tf_efficientnet_lite0"

# What trained weights bring, ...
OF_THE_WEIGHTS = ("MODEL", "INPUT.FORMAT", "DATASETS.MAPPER")
# ... but for what belongs to a run, or is chosen anew when it ends.
OF_THE_RUN = (
    *("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.RETINANET.NUM_CLASSES", "SEED", "SOLVER.EMA"),
    *("MODEL.RDSNET.MASK_THRESHOLD", "MODEL.RDSNET.FIT_MASK_THRESHOLD", "MODEL.RDSNET.MBRM.FIT"),
    *("MODEL.RDSNET.SCORE_THRESHOLDS", "MODEL.RDSNET.FIT_SCORE_THRESHOLDS"),
    *("TEST.BEST_METRIC", "TEST.EVAL_PERIOD", "TEST.PATIENCE"),
)
# What every run with --data says itself.
SAID_ANYWAY = (
    *("DATASETS.COCO_FILES", "DATASETS.TRAIN", "DATASETS.TEST", "DATASETS.CLASSES", "OUTPUT_DIR"),
    "MODEL.RETINANET.NUM_CLASSES",
)


@dataclass(frozen=True)
class Base:
    """A config file, what it says with ``options`` over it, and whether weights brought it."""

    config_file: str
    cfg: CfgNode
    options: dict[str, object] = field(default_factory=dict)
    from_weights: bool = False


def base(config: str | None, weights: str | None = None) -> Base:
    """What to begin with.

    Args:
        config: a key of ``MODELS``, a yaml file, or a name that :mod:`rdsnet.model_zoo` knows.
            None: that of the weights, or else :func:`default_model`.
        weights: a checkpoint, the name of a model in the box, or an address.

    Raises:
        FileNotFoundError, ValueError: there is no such config, or there are no such weights.
    """
    if not weights:
        return Base(config_path(config or default_model()), base_config(config)[1])
    weights = weights_file(weights)
    check_weights(weights)
    stored = None if config else _config_of(weights)
    if stored is None:
        cfg = base_config(config)[1]
        cfg.MODEL.WEIGHTS = weights
        file = config_path(config or default_model())
        return Base(file, cfg, {"MODEL.WEIGHTS": weights}, holds_config(weights))
    file, cfg = stored
    wanted = _with_settings_of_the_project(cfg)
    wanted.MODEL.WEIGHTS = weights
    then, now = flat(cfg), flat(wanted)
    changed = [key for key in now if now[key] != then[key] and key not in SAID_ANYWAY]
    return Base(file, wanted, {key: now[key] for key in changed}, from_weights=True)


def holds_config(weights: str) -> bool:
    """Whether it is known what the weights stand for."""
    return Path(weights).is_file() and read_config(weights) is not None


def base_config(name: str | None) -> tuple[str, CfgNode]:
    """A config by short name or path, and what it is called.

    Args:
        name: see :func:`base`. None: :func:`default_model`.

    Raises:
        ValueError: if there is no such config.
    """
    name = name or default_model()
    cfg = rdsnet.get_cfg()
    path = config_path(name)
    with naming(f"config '{name}'"):
        merge_config_file(cfg, path)
    return name, cfg


def default_model() -> str:
    """What a machine can train: "R_50" where torch sees a GPU, else "lite".

    Without a connection lite needs the package with its weights. Where that is not installed it is
    "small", which is trained from scratch.
    """
    if torch.cuda.is_available():
        return "R_50"
    return "lite" if package_file(LITE) else "small"


def config_path(name: str) -> str:
    """The file of a config by short name, path, or the model zoo's name."""
    if os.path.isfile(name):
        return name
    if name in MODELS:
        return short_path(model_zoo.get_config_file(MODELS[name]))
    if name.endswith(".yaml"):
        return short_path(model_zoo.get_config_file(name))
    raise ValueError(
        f"--config '{name}' is neither one of {', '.join(MODELS)} nor a yaml file that exists"
    )


def short_path(path: str) -> str:
    """Relative to the current folder where that is shorter."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _config_of(weights: str) -> tuple[str, CfgNode] | None:
    """File and config of trained weights of this project; None: another's, or none is known."""
    try:
        file = find_config(weights)
    except ValueError:
        return None
    cfg = rdsnet.get_cfg()
    with naming(f"the config of the weights '{weights}'"):
        merge_config_file(cfg, file)
    detector = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    return None if detector.__module__.startswith("detectron2.") else (file, cfg)


def _with_settings_of_the_project(cfg: CfgNode) -> CfgNode:
    """The model of a config with the settings for a run of the project's config that is like it.

    Where none has the same backbone, only what belonged to the other run is put back.
    """
    for name in MODELS:
        project = base_config(name)[1]
        if project.MODEL.META_ARCHITECTURE != cfg.MODEL.META_ARCHITECTURE:
            continue
        if project.MODEL.BACKBONE.NAME == cfg.MODEL.BACKBONE.NAME:
            return _merged(project, cfg, lambda key: not is_among(key, OF_THE_WEIGHTS))
    return _merged(rdsnet.get_cfg(), cfg, lambda key: False)


def _merged(settings: CfgNode, cfg: CfgNode, is_setting) -> CfgNode:
    """A config with the settings and what belongs to a run from one, all else from another."""
    merged = cfg.clone()
    for key, value in flat(settings).items():
        if is_setting(key) or is_among(key, OF_THE_RUN):
            *parts, name = key.split(".")
            node = merged
            for part in parts:
                node = node[part]
            node[name] = value
    return merged
