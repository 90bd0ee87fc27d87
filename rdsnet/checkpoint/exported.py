"""ONNX and OpenVINO files of ``rdsnet export`` in the place of weights: they hold their config."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

ONNX_ENDING, IR_ENDING = ".onnx", ".xml"
CONFIG = "rdsnet_config"
"""Of what a file says about itself, the config of the model, as yaml."""
IR_ENTRY = "rdsnet"
"""The entry of an OpenVINO file's rt_info that holds what it says about itself, as json."""


def is_exported(weights: str | os.PathLike) -> bool:
    """Whether weights are an ONNX or OpenVINO file, by the ending of its name."""
    return is_ir(weights) or Path(weights).suffix.lower() == ONNX_ENDING


def is_ir(path: str | os.PathLike) -> bool:
    """Whether a file is one of OpenVINO, by the ending of its name."""
    return Path(path).suffix.lower() == IR_ENDING


def weights_of(path: str | os.PathLike) -> Path:
    """The second file of an OpenVINO model, where OpenVINO looks for it."""
    return Path(path).with_suffix(".bin")


def read_texts(path: str | os.PathLike) -> dict[str, str]:
    """What an ONNX or OpenVINO file says about itself, by name (docs/export.md).

    Raises:
        FileNotFoundError: the second file of an OpenVINO model is not there.
        ModuleNotFoundError: there is no onnxruntime, or openvino.
        ValueError: the file is damaged, or ``rdsnet export`` has not written it.
    """
    file = os.stat(path)
    return _read_texts(str(path), file.st_mtime_ns, file.st_size)


@lru_cache(maxsize=8)
def _read_texts(path: str, *state: int) -> dict[str, str]:
    """``state`` of the file, so that it is read again when it is another one."""
    texts = _texts_of_ir(path) if is_ir(path) else _texts_of_onnx(path)
    if CONFIG not in texts:
        kind, ending = ("OpenVINO", IR_ENDING) if is_ir(path) else ("ONNX", ONNX_ENDING)
        raise ValueError(
            f"'{path}' has no entry '{CONFIG}': it is an {kind} file of something else than this "
            "version of 'rdsnet export', and what goes into it and comes out is not known. Write "
            f"one from a checkpoint by 'rdsnet export --weights CHECKPOINT --output FILE{ending}'"
        )
    return texts


def _texts_of_ir(path: str) -> dict[str, str]:
    if find_spec("openvino") is None:
        raise ModuleNotFoundError(
            f"'{path}' is an OpenVINO file: pip install 'rdsnet[openvino]'", name="openvino"
        )
    if not weights_of(path).is_file():
        raise FileNotFoundError(
            f"'{path}' has its weights in '{weights_of(path)}', which does not exist: copy both"
        )
    import openvino

    try:
        model = openvino.Core().read_model(path)
        if not model.has_rt_info(IR_ENTRY):
            return {}
        return json.loads(model.get_rt_info(IR_ENTRY).astype(str))
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"'{path}' cannot be loaded: it or '{weights_of(path)}' is cut off or no OpenVINO file "
            f"that openvino {openvino.__version__} knows ({error})"
        ) from error


def _texts_of_onnx(path: str) -> dict[str, str]:
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
    return session.get_modelmeta().custom_metadata_map
