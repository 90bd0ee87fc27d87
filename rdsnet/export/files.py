"""The two formats: writing a traced program, and reading it back as a function of an image.

What a user of the file must know (classes, input, settings) is in it as texts by name, see
:func:`describe`: in ONNX as metadata_props, in the archive of torch.export (.pt2) as one extra
file, ``rdsnet.json``.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import Tensor

import rdsnet
from rdsnet.checkpoint.atomic import write_atomically
from rdsnet.export.graph import Objects

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
"""Name of a format -> ending of its files."""

_EXTRA_FILE = "rdsnet.json"
_REMEDY = "pip install 'rdsnet[export]'"


def describe(
    cfg: CfgNode, size: tuple[int, int], class_names: list[str] | None, category_ids: list[int]
) -> dict[str, str]:
    """What a file says about itself: texts by name, all but the version as json."""
    shared, mbrm = cfg.MODEL.RETINANET, cfg.MODEL.RDSNET.MBRM
    content = {
        "classes": class_names or [str(id_) for id_ in category_ids],
        "category_ids": category_ids,
        "input": {
            "name": "image",
            "shape": [3, *size],
            "dtype": "uint8",
            "channels": cfg.INPUT.FORMAT,
            "padding": [round(value) for value in cfg.MODEL.PIXEL_MEAN],
        },
        "outputs": list(Objects._fields),
        "config": {
            "MODEL.META_ARCHITECTURE": cfg.MODEL.META_ARCHITECTURE,
            "MODEL.BACKBONE.NAME": cfg.MODEL.BACKBONE.NAME,
            "MODEL.RESNETS.DEPTH": cfg.MODEL.RESNETS.DEPTH,
            "MODEL.RDSNET.OBJECT_STREAM": cfg.MODEL.RDSNET.OBJECT_STREAM,
            "MODEL.RDSNET.MASK_THRESHOLD": cfg.MODEL.RDSNET.MASK_THRESHOLD,
            "MODEL.RDSNET.TEST_EXPAND": cfg.MODEL.RDSNET.TEST_EXPAND,
            "MODEL.RDSNET.MBRM.METHOD": mbrm.METHOD if mbrm.ENABLED else "none",
            "MODEL.RDSNET.MBRM.READOUT": mbrm.READOUT,
            "MODEL.RETINANET.SCORE_THRESH_TEST": shared.SCORE_THRESH_TEST,
            "MODEL.RETINANET.NMS_THRESH_TEST": shared.NMS_THRESH_TEST,
            "TEST.DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE,
        },
    }
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in content.items()}
    return {"rdsnet_version": rdsnet.__version__, **texts}


def require_packages(file_format: str) -> None:
    """Raise ModuleNotFoundError, with the remedy, when a format cannot be written here."""
    for name in ("onnx", "onnxscript") if file_format == "onnx" else ():
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"ONNX files need {name}: {_REMEDY}", name=name)


def trace(graph: torch.nn.Module, image: Tensor) -> torch.export.ExportedProgram:
    """The program that computes what ``graph`` computes for images of the size of ``image``.

    Raises:
        ValueError: it has steps that cannot be traced.
    """
    try:
        with quiet():
            return torch.export.export(graph, (image,), strict=False)
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"torch {torch.__version__} cannot trace this model ({type(error).__name__}: {reason})"
        ) from error


def write(
    path: Path, program: torch.export.ExportedProgram, file_format: str, texts: dict[str, str]
) -> None:
    """Write one of :data:`FORMATS`; the file is there completely or not at all."""
    to_bytes = {"onnx": _onnx_bytes, "torch": _torch_bytes}[file_format]
    content = to_bytes(program, texts)
    write_atomically(path, lambda file: file.write(content))


def _onnx_bytes(program: torch.export.ExportedProgram, texts: dict[str, str]) -> bytes:
    """The file of an ONNX model, checked by ONNX itself."""
    import onnx

    names = {"input_names": ["image"], "output_names": list(Objects._fields)}
    try:
        with quiet():
            converted = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    except RuntimeError as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ValueError(
            f"torch {torch.__version__} cannot convert this model to ONNX ({reason}). torch 2.14 "
            "can, and a .pt2 file (--format torch) does not need it"
        ) from error
    model = converted.model_proto
    graph = model.graph
    # The name that the tracer gave to N.
    count = re.escape(graph.output[0].type.tensor_type.shape.dim[0].dim_param)
    for value in (*graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(rf"\b{count}\b", "objects", dim.dim_param)
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _torch_bytes(program: torch.export.ExportedProgram, texts: dict[str, str]) -> bytes:
    """The file of a program of torch.export."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={_EXTRA_FILE: json.dumps(texts)})
    return buffer.getvalue()


def read(path: Path, file_format: str) -> Callable[[Tensor], Objects] | None:
    """The file as a function of an image; None: there is no onnxruntime to run it."""
    if file_format == "torch":
        with open(path, "rb") as file:  # by its name it would have to end in .pt2
            program = torch.export.load(file).module()
        return lambda image: Objects(*program(image))
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Threads that wait for one another in loops crawl on a machine that does something else too.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Objects:
        return Objects(*map(torch.from_numpy, session.run(None, {"image": image.numpy()})))

    return run


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' warnings about themselves and each other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
