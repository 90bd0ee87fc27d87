"""Reading checkpoint files without running what they contain."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rdsnet.checkpoint.exported import is_exported
from rdsnet.checkpoint.unpickler import load_plain_pickle

_REMEDY = (
    "which is refused because loading it could run foreign code. If you trust whoever made the "
    "file, add --trust-checkpoint."
)


def read_checkpoint(path: str | Path, trust: bool = False) -> object:
    """The content of a checkpoint, tensors on the CPU.

    A ``.pkl`` file is read as Detectron2's and Caffe2's model zoos write it: a pickle of numpy
    arrays (:mod:`rdsnet.checkpoint.unpickler`). Any other is read by
    ``torch.load(weights_only=True)``: tensors and plain Python values.

    Args:
        trust: read anything, and so run whatever code the file contains.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds more than data and is not trusted, or is damaged, or no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint '{path}' does not exist")
    if is_exported(path):
        raise ValueError(
            f"'{path}' is an exported file: 'rdsnet predict' and 'rdsnet eval' run it, all else "
            "needs the checkpoint that it was made from"
        )
    is_pickle = path.suffix == ".pkl"
    try:
        if is_pickle:
            with open(path, "rb") as file:
                return pickle.load(file, encoding="latin1") if trust else load_plain_pickle(file)
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        kinds = "numpy arrays" if is_pickle else "tensors"
        kind = "pickle of numpy arrays" if is_pickle else "PyTorch checkpoint"
        reason = str(error).partition("\n")[0] if is_pickle else _unsupported(error)
        raise ValueError(
            f"'{path}' is not a {kind}, or holds more than {kinds} and plain values "
            f"({reason}), {_REMEDY}"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise ValueError(
            f"'{path}' is not a PyTorch checkpoint, or the file is damaged "
            f"({type(error).__name__}: {error})"
        ) from error


def read_state_dict(path: str | Path, trust: bool = False) -> Mapping[str, Tensor]:
    """The state_dict of a PyTorch checkpoint: its entry "state_dict", or the whole file.

    Args:
        trust: see :func:`read_checkpoint`.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_checkpoint`; ValueError also for a file
            without a state_dict.
    """
    content = read_checkpoint(path, trust)
    state_dict = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not state_dict or not isinstance(state_dict, Mapping):
        found = f"keys {list(content)[:8]}" if isinstance(content, Mapping) else type(content)
        raise ValueError(
            f"'{path}' holds no state_dict: expected a dictionary with an entry 'state_dict', or "
            f"the dictionary of parameters itself, found {found}"
        )
    return state_dict


def _unsupported(error: pickle.UnpicklingError) -> str:
    """The line of torch's long explanation that names the object."""
    lines = [line.strip() for line in str(error).splitlines()]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (named or lines or [""])[0]
