"""Reading checkpoint files without running what they contain."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def read_state_dict(path: str | Path) -> Mapping[str, Tensor]:
    """The state_dict of a PyTorch checkpoint: its entry "state_dict", or the whole file.

    Only tensors and plain Python values are read (``torch.load(weights_only=True)``).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a PyTorch checkpoint, holds other objects, or no state_dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint '{path}' does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"'{path}' is not a PyTorch checkpoint, or holds more than tensors and plain values, "
            "which is refused because loading it could run foreign code. If it is a checkpoint "
            "that you trust, save its state_dict alone, where the program that wrote it is "
            "installed: torch.save(torch.load(path, map_location='cpu', weights_only=False)"
            "['state_dict'], new_path)."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(
            f"'{path}' is not a PyTorch checkpoint, or the file is damaged "
            f"({type(error).__name__}: {error})"
        ) from error
    state_dict = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not state_dict or not isinstance(state_dict, Mapping):
        found = f"keys {list(content)[:8]}" if isinstance(content, Mapping) else type(content)
        raise ValueError(
            f"'{path}' holds no state_dict: expected a dictionary with an entry 'state_dict', or "
            f"the dictionary of parameters itself, found {found}"
        )
    return state_dict
