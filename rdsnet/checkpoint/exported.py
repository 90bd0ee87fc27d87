"""ONNX files of ``rdsnet export`` in the place of weights: they hold their config, too."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

ENDING = ".onnx"
CONFIG = "rdsnet_config"
"""The entry of metadata_props that is the config of the model, as yaml."""


def is_exported(weights: str | os.PathLike) -> bool:
    """Whether weights are an ONNX file, by the ending of its name."""
    return Path(weights).suffix.lower() == ENDING


def read_texts(path: str | os.PathLike) -> dict[str, str]:
    """What an ONNX file says about itself, by name (docs/export.md).

    Raises:
        ModuleNotFoundError: there is no onnxruntime.
        ValueError: the file is damaged, or ``rdsnet export`` has not written it.
    """
    file = os.stat(path)
    return _read_texts(str(path), file.st_mtime_ns, file.st_size)


@lru_cache(maxsize=8)
def _read_texts(path: str, *state: int) -> dict[str, str]:
    """``state`` of the file, so that it is read again when it is another one."""
    if find_spec("onnxruntime") is None:
        raise ModuleNotFoundError(
            f"'{path}' is an ONNX file, which onnxruntime runs: pip install 'rdsnet[export]'",
            name="onnxruntime",
        )
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is said below
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes have no common base
        raise ValueError(
            f"'{path}' cannot be loaded: the file is cut off or no ONNX file that onnxruntime "
            f"{onnxruntime.__version__} knows ({error})"
        ) from error
    texts = session.get_modelmeta().custom_metadata_map
    if CONFIG not in texts:
        raise ValueError(
            f"'{path}' has no entry '{CONFIG}': it is an ONNX file of something else than this "
            "version of 'rdsnet export', and what goes into it and comes out is not known. Write "
            "one from a checkpoint by 'rdsnet export --weights CHECKPOINT --output FILE.onnx'"
        )
    return texts
