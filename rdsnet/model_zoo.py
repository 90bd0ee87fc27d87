"""Config files and trained models by name, wherever rdsnet is installed."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

import rdsnet
from rdsnet.checkpoint.shipped import shipped_file

# In a source checkout configs/ lies beside the package; an installation has it inside.
_ROOTS = (Path(rdsnet.__file__).parent / "configs", Path(rdsnet.__file__).parents[1] / "configs")


def get_config_file(name: str) -> str:
    """Path of a config file of the project.

    Args:
        name: relative to ``configs/``, such as
            ``"COCO-InstanceSegmentation/rdsnet_R_50_FPN_1x.yaml"``.

    Raises:
        ValueError: if there is no such file; the message lists those that there are.
    """
    for root in _ROOTS:
        if (root / name).is_file():
            return str(root / name)
    known = sorted({str(p.relative_to(r)) for r in _ROOTS for p in r.rglob("*.yaml")})
    raise ValueError(f"there is no config '{name}'. Choose one of: {', '.join(known)}")


def get_weights_file(name: str) -> str:
    """Path of the checkpoint of a model in the box, such as ``"nuclei"``.

    It holds its config: ``rdsnet.checkpoint.load_config(path)``.

    Raises:
        FileNotFoundError: there is no such model (the message lists those that there are), or its
            file is missing from this installation.
    """
    return shipped_file(name)


def get_config(name: str) -> CfgNode:
    """The config of :func:`get_config_file` merged over :func:`rdsnet.get_cfg`."""
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file(get_config_file(name))
    return cfg


def get(name: str, num_classes: int | None = None) -> nn.Module:
    """A model with random weights built from a config of the project.

    Args:
        name: as in :func:`get_config_file`.
        num_classes: replaces the config's; needed where that is -1 (from the data).
    """
    cfg = get_config(name)
    cfg.MODEL.WEIGHTS = ""
    if num_classes is not None:
        cfg.MODEL.RETINANET.NUM_CLASSES = num_classes
    return build_model(cfg)
