"""What a checkpoint says about the model in it: the config, and with it the names of its classes.

Stored as plain text beside the weights, under the key "rdsnet", so that a checkpoint is all that
prediction needs.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode
from torch import Tensor

import rdsnet
from rdsnet.checkpoint.atomic import write_atomically
from rdsnet.checkpoint.exported import CONFIG, is_exported, read_texts

KEY = "rdsnet"


class ModelDescription:
    """Something that Detectron2's checkpointer can keep (``add_checkpointable(KEY, ...)``)."""

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg

    def state_dict(self) -> dict[str, str]:
        return _describe(self._cfg)

    def load_state_dict(self, state: object) -> None:
        """Does nothing: a run keeps its own config."""


def _describe(cfg: CfgNode) -> dict[str, str]:
    """The entry ``KEY`` of a checkpoint: plain strings."""
    return {"version": rdsnet.__version__, "config": cfg.dump()}


def save_model(
    path: str | os.PathLike, weights: Mapping[str, Tensor], cfg: CfgNode, **more: object
) -> None:
    """Write a checkpoint to use, not to resume: weights, description and ``more`` entries.

    Raises:
        OSError: it cannot be written. What was there before is unchanged.
    """
    content = {"model": dict(weights), KEY: _describe(cfg), **more}
    write_atomically(path, lambda file: torch.save(content, file))


def may_hold_config(path: str | os.PathLike) -> bool:
    """Whether a file is one of those that can hold a config, by the ending of its name."""
    return Path(path).suffix == ".pth" or is_exported(path)


def read_config(path: str | os.PathLike) -> CfgNode | None:
    """The config that a checkpoint was trained with; None when it holds none.

    That of an exported file is the one that it was written with.

    Raises:
        ValueError: when the file is damaged or no PyTorch checkpoint.
    """
    description = read_description(path)
    return CfgNode(yaml.safe_load(description["config"])) if "config" in description else None


def read_description(path: str | os.PathLike) -> Mapping[str, object]:
    """The entry ``KEY`` of a checkpoint; empty when it has none.

    Reads tensors and plain values only (``weights_only``); a file with more holds none.

    Raises:
        ValueError: when the file is damaged or no PyTorch checkpoint.
    """
    if Path(path).suffix == ".pkl":  # Detectron2's model zoo: weights alone
        return {}
    if is_exported(path):
        texts = read_texts(path)
        return {"version": texts.get("rdsnet_version", ""), "config": texts[CONFIG]}
    mmap = zipfile.is_zipfile(path)  # not a file of torch before 1.6
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:  # more than data; whoever loads the weights says so
        return {}
    except Exception as error:  # what torch raises depends on where the file is broken
        raise ValueError(
            f"'{path}' cannot be loaded: the file is cut off or not a checkpoint "
            f"({type(error).__name__}: {error})"
        ) from error
    description = content.get(KEY) if isinstance(content, Mapping) else None
    return description if isinstance(description, Mapping) else {}
