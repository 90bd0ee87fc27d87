"""The config of a run: a yaml file's or a checkpoint's, with command-line options over it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from detectron2.config import CfgNode

from rdsnet.checkpoint.description import may_hold_config, read_config
from rdsnet.checkpoint.shipped import weights_file
from rdsnet.config import get_cfg
from rdsnet.data.datasets import register_coco_files, with_classes, with_num_classes
from rdsnet.data.images import limit_pixels

# Anchors near an object that find it, on one level of the pyramid, before NMS leaves one of them.
_CANDIDATES_PER_OBJECT = 10


def load_config(
    config_file: str, opts: list[str] | None = None, *, max_detections: int | None = None
) -> CfgNode:
    """The config of a file with command-line options merged over it.

    Registers ``DATASETS.COCO_FILES`` and settles the number of classes and their names. The name of
    a model in the box in ``MODEL.WEIGHTS`` becomes the path of its file.

    Args:
        config_file: a yaml file, or a checkpoint (.pth) that holds the config it was trained with.
        opts: KEY VALUE words.
        max_detections: objects per image, in place of the file's ``TEST.DETECTIONS_PER_IMAGE``; as
            many candidates as that may need are looked at.

    Raises:
        FileNotFoundError: if the file is missing, or MODEL.WEIGHTS is a name that nothing has.
        ValueError: for an unknown key, a value of the wrong kind, or data that does not fit.
    """
    if not Path(config_file).is_file():
        raise FileNotFoundError(
            f"config file '{config_file}' does not exist. The configs of this project lie in "
            "configs/, for example configs/COCO-InstanceSegmentation/rdsnet_R_50_FPN_1x.yaml."
        )
    opts = opts or []
    if len(opts) % 2:
        raise ValueError(
            f"config options come in pairs KEY VALUE, got {len(opts)} words: {' '.join(opts)}"
        )
    cfg = get_cfg()
    with naming(f"config file '{config_file}'"):
        merge_config_file(cfg, config_file)
    if max_detections:
        cfg.TEST.DETECTIONS_PER_IMAGE = max_detections
        candidates = cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST
        candidates = max(candidates, _CANDIDATES_PER_OBJECT * max_detections)
        cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST = candidates
    with naming(f"config options '{' '.join(opts)}'"):
        cfg.merge_from_list(opts)
    cfg.MODEL.WEIGHTS = weights_file(cfg.MODEL.WEIGHTS)
    limit_pixels(cfg.INPUT.MAX_PIXELS)
    register_coco_files(cfg)
    return with_classes(with_num_classes(cfg))


def merge_config_file(cfg: CfgNode, config_file: str) -> None:
    """Merge a yaml file, or the config that a checkpoint (.pth) holds, into a config."""
    if not may_hold_config(config_file):
        cfg.merge_from_file(config_file)
        return
    stored = read_config(config_file)
    if stored is None:
        raise ValueError(
            "this checkpoint holds no config. Give the yaml file that it was trained with (a "
            "training run keeps it as config.yaml beside its checkpoints)"
        )
    cfg.merge_from_other_cfg(stored)


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Turn what yacs and yaml raise for a config into a ValueError that names its source."""
    try:
        yield
    except KeyError as error:  # whose text would be in quotes
        raise ValueError(f"{source} cannot be used: {error.args[0]}") from error
    except (AssertionError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{source} cannot be used: {error}") from error
