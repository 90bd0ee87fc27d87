"""A trained model from its file of weights: the config that belongs to them, and their classes."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from rdsnet.checkpoint.checkpointer import Checkpointer
from rdsnet.checkpoint.configs import load_config, merge_config_file, naming
from rdsnet.checkpoint.description import may_hold_config, read_config
from rdsnet.checkpoint.exported import is_exported, read_texts
from rdsnet.checkpoint.shipped import weights_file
from rdsnet.config import get_cfg
from rdsnet.data.datasets import class_metadata, coco_files
from rdsnet.data.object_sizes import ObjectSizes, object_sizes


def prediction_config(
    config_file: str | None,
    weights: str,
    score_threshold: float | None = 0.0,
    opts: Sequence[str] = (),
    max_detections: int | None = None,
) -> CfgNode:
    """The config for a Predictor whose masks stay compact.

    ``weights`` are a path, an address or the name of a model in the box
    (:func:`~rdsnet.checkpoint.shipped.weights_file`). Without ``config_file``, it is the one that
    the checkpoint holds, or config.yaml beside it.
    A model that was trained on a GPU runs on the CPU where there is none. With ``score_threshold``
    None the config's own holds, and so with ``max_detections``.

    The data that the model was trained on may be gone: entries of ``DATASETS.COCO_FILES`` without
    their json are ignored as long as the number of classes is given.

    Raises:
        FileNotFoundError, ValueError: as :func:`~rdsnet.checkpoint.configs.load_config`; for
            weights that are missing or damaged.
    """
    weights = weights_file(weights)
    check_weights(weights)
    config_file = config_file or find_config(weights)
    settings = ["MODEL.WEIGHTS", weights, "MODEL.RDSNET.DENSE_MASKS", "False"]
    if score_threshold is not None:
        settings += ["MODEL.RETINANET.SCORE_THRESH_TEST", str(model_threshold(score_threshold))]
    if "MODEL.DEVICE" not in opts and not torch.cuda.is_available():
        settings += ["MODEL.DEVICE", "cpu"]
    settings = [*opts, *settings]
    try:
        known = [*settings, *_learnt_classes(config_file, weights, opts)]
        return load_config(config_file, known, max_detections=max_detections)
    except FileNotFoundError:
        if not Path(config_file).is_file():
            raise
        cfg = get_cfg()
        merge_config_file(cfg, config_file)
        cfg.merge_from_list(list(opts))
        if cfg.MODEL.RETINANET.NUM_CLASSES < 1:
            raise
        files = [f for f in coco_files(cfg) if Path(f.json_file).is_file()]
        there = [[file.name, file.json_file, file.image_root] for file in files]
        settings += ["DATASETS.COCO_FILES", repr(there)]
        return load_config(config_file, settings, max_detections=max_detections)


def wanted_device(config_file: str | None, weights: str, opts: Sequence[str] = ()) -> str:
    """``MODEL.DEVICE`` as :func:`prediction_config` takes it where there is a GPU."""
    if is_exported(weights):
        return "cpu"
    cfg = get_cfg()
    merge_config_file(cfg, config_file or find_config(weights))
    cfg.merge_from_list(list(opts))
    return cfg.MODEL.DEVICE


def model_threshold(score: float) -> float:
    """``MODEL.RETINANET.SCORE_THRESH_TEST`` for those who show objects from a score on.

    It spares the model the masks that nobody will see; below 1, which no score exceeds.
    """
    return min(score, 0.99)


def _learnt_classes(config_file: str, weights: str, opts: Sequence[str]) -> list[str]:
    """Options KEY VALUE by which classes are those of the training, whatever the data says today.

    Nothing where neither the checkpoint nor the config knows them: they are the data's then.
    """
    if not Path(config_file).is_file():
        return []
    cfg = get_cfg()
    with naming(f"config file '{config_file}'"):
        merge_config_file(cfg, config_file)
    with naming(f"config options '{' '.join(opts)}'"):
        cfg.merge_from_list(list(opts))
    stored = read_config(weights) if Path(weights).is_file() else None
    classes = (stored or cfg).DATASETS.get("CLASSES") or cfg.DATASETS.CLASSES
    if len(classes) != cfg.MODEL.RETINANET.NUM_CLASSES:
        return []
    data = ["DATASETS.COCO_FILES", "[]", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
    return ["DATASETS.CLASSES", repr(classes), *data]


def find_config(weights: str) -> str:
    """The checkpoint itself where it holds its config, else config.yaml beside it.

    Raises:
        ValueError: there is neither.
    """
    is_local = "://" not in weights
    if is_local and may_hold_config(weights) and read_config(weights) is not None:
        return weights
    beside = Path(weights).parent / "config.yaml"
    if is_local and beside.is_file():
        return str(beside)
    raise ValueError(
        f"weights '{weights}' hold no config, and there is no config.yaml beside them: give the "
        "config that they were trained with by --config-file"
    )


def names_and_ids(cfg: CfgNode) -> tuple[list[str] | None, list[int]]:
    """As :func:`rdsnet.data.datasets.class_metadata`; asks the checkpoint for unknown names."""
    metadata, weights = class_metadata(cfg), cfg.MODEL.WEIGHTS
    if metadata[0] is None and Path(weights).is_file():
        stored = read_config(weights)
        if stored is not None:
            cfg = cfg.clone()
            cfg.DATASETS.CLASSES = stored.DATASETS.get("CLASSES", [])
            metadata = class_metadata(cfg)
    return metadata


def score_thresholds(cfg: CfgNode) -> list[float] | None:
    """Of every class the lowest score to show, as chosen when the training ended.

    Asks the checkpoint where the config does not say; None: nobody knows.

    Raises:
        ValueError: ``MODEL.RDSNET.SCORE_THRESHOLDS`` is not one number from 0 to 1 per class.
    """
    scores, classes = list(cfg.MODEL.RDSNET.SCORE_THRESHOLDS), cfg.MODEL.RETINANET.NUM_CLASSES
    if not scores and Path(cfg.MODEL.WEIGHTS).is_file():
        stored = read_config(cfg.MODEL.WEIGHTS)
        stored = stored.MODEL.get("RDSNET", {}).get("SCORE_THRESHOLDS", []) if stored else []
        scores = list(stored) if len(stored) == classes else []
    if scores and (len(scores) != classes or not all(0 <= score <= 1 for score in scores)):
        raise ValueError(
            f"MODEL.RDSNET.SCORE_THRESHOLDS {scores} should be one number from 0 to 1 for each of "
            f"{classes} classes, or []"
        )
    return scores or None


def learnt_object_sizes(cfg: CfgNode) -> ObjectSizes | None:
    """How large the objects were that the model was trained on; None: nobody knows.

    Asks the checkpoint where the config does not say.

    Raises:
        ValueError: as :func:`~rdsnet.data.object_sizes.object_sizes`.
    """
    sizes = object_sizes(cfg)
    if sizes is None and Path(cfg.MODEL.WEIGHTS).is_file():
        stored = read_config(cfg.MODEL.WEIGHTS)
        sizes = object_sizes(stored) if stored is not None else None
    return sizes


def check_weights(weights: str) -> None:
    """Raise FileNotFoundError or ValueError for a local file that cannot be a checkpoint."""
    if "://" in weights:
        return
    if not Path(weights).is_file():
        raise FileNotFoundError(
            f"weights '{weights}' do not exist. Give the path of a checkpoint (.pth or .pkl); "
            "training writes model_final.pth into OUTPUT_DIR. 'rdsnet models' lists the names of "
            "models in the box."
        )
    if is_exported(weights):
        read_texts(weights)
        return
    with open(weights, "rb") as file:
        is_pickle = file.read(1) == b"\x80"
    if not (is_pickle or zipfile.is_zipfile(weights)):  # torch.save writes zip files
        raise ValueError(
            f"weights '{weights}' cannot be loaded: the file is cut off or not a checkpoint. "
            "Copy it again, or use another checkpoint of the run."
        )


def load_model(cfg: CfgNode, trust: bool = False) -> nn.Module:
    """The model of a config with its ``MODEL.WEIGHTS``, in evaluation mode.

    Args:
        trust: see :func:`rdsnet.checkpoint.read_checkpoint`.
    """
    model = build_model(cfg).eval()
    Checkpointer(model, trust=trust).load(cfg.MODEL.WEIGHTS)
    return model
