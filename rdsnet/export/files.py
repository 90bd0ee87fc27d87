"""The formats: writing a traced program, and reading it back as a function of an image.

What a user of the file must know (classes, input, settings) is in it as texts by name, see
:func:`describe`: in ONNX as metadata_props, in the archive of torch.export (.pt2) as one extra
file, ``rdsnet.json``, and in OpenVINO's .xml the same json as one entry of rt_info, ``rdsnet``.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.export import Dim

import rdsnet
from rdsnet.checkpoint.atomic import write_atomically
from rdsnet.checkpoint.description import read_config
from rdsnet.checkpoint.exported import CONFIG, IR_ENDING, ONNX_ENDING, weights_of
from rdsnet.data.channels import Channels
from rdsnet.export.graph import CompactObjects, ImageToObjects, Objects, Size
from rdsnet.export.ir import write_ir
from rdsnet.export.sessions import onnx_function, openvino_function
from rdsnet.modeling import RDSNet

if TYPE_CHECKING:
    import onnx

FORMATS = {"onnx": ONNX_ENDING, "torch": ".pt2", "openvino": IR_ENDING}
"""Name of a format -> ending of its files."""

OPSET = 20
"""Of ONNX files: the oldest in which all steps can be said as they are."""

_EXTRA_FILE = "rdsnet.json"
_PACKAGES = {"onnx": ("onnx", "onnxscript"), "openvino": ("onnx", "onnxscript", "openvino")}
_KINDS = {"onnx": ("ONNX", "export"), "openvino": ("OpenVINO", "export,openvino")}


def describe(
    cfg: CfgNode,
    size: Size | None,
    class_names: list[str] | None,
    category_ids: list[int],
    compact: bool = False,
) -> dict[str, str]:
    """What a file says about itself: texts by name, all but the version and the config as json."""
    channels = Channels.of(cfg)
    shared, mbrm = cfg.MODEL.RETINANET, cfg.MODEL.RDSNET.MBRM
    content = {
        "classes": class_names or [str(id_) for id_ in category_ids],
        "category_ids": category_ids,
        "input": {
            "name": "image",
            "shape": [channels.count, *(size or ("height", "width"))],
            "dtype": np.dtype(channels.dtype).name,
            "channels": channel_order(cfg),
            "padding": [round(value) for value in cfg.MODEL.PIXEL_MEAN],
            "short_side": cfg.INPUT.MIN_SIZE_TEST,
            "longest_side": cfg.INPUT.MAX_SIZE_TEST,
            **_scaling(channels),
        },
        "outputs": list((CompactObjects if compact else Objects)._fields),
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
    return {"rdsnet_version": rdsnet.__version__, **texts, CONFIG: _whole_config(cfg)}


def channel_order(cfg: CfgNode) -> str:
    """What the channels of an image are: ``INPUT.FORMAT``, or "as in the files"."""
    return cfg.INPUT.FORMAT if Channels.of(cfg).are_photographs else "as in the files"


def image_dtype(cfg: CfgNode) -> torch.dtype:
    """Of the image that a file takes."""
    return torch.from_numpy(np.empty(0, Channels.of(cfg).dtype)).dtype


def _scaling(channels: Channels) -> dict[str, object]:
    """How whoever runs the file brings numbers to 0 .. 255; nothing where they are so."""
    if channels.scaling == "none":
        return {}
    if channels.scaling == "dataset":
        return {"scaling": "dataset", "ranges": channels.ranges}
    return {"scaling": "image", "percentiles": channels.percentiles}


def _whole_config(cfg: CfgNode) -> str:
    """As a checkpoint holds it, with the data that the model was trained on."""
    cfg = cfg.clone()
    cfg.defrost()
    weights = cfg.MODEL.WEIGHTS
    stored = read_config(weights) if Path(weights).is_file() else None
    if stored is not None:
        for key in ("COCO_FILES", "TRAIN", "TEST"):
            cfg.DATASETS[key] = stored.DATASETS.get(key, cfg.DATASETS[key])
    cfg.MODEL.WEIGHTS, cfg.MODEL.RDSNET.DENSE_MASKS = "", True
    cfg.MODEL.RDSNET.INFERENCE.PRECISION = "float32"
    return cfg.dump()


def require_packages(file_format: str) -> None:
    """Raise ModuleNotFoundError, with the remedy, when a format cannot be written here."""
    for name in _PACKAGES.get(file_format, ()):
        if find_spec(name) is None:
            kind, extras = _KINDS[file_format]
            remedy = f"pip install 'rdsnet[{extras}]'"
            raise ModuleNotFoundError(f"{kind} files need {name}: {remedy}", name=name)


def parts(path: Path, file_format: str) -> tuple[Path, ...]:
    """The files of an exported model; the one that it is named by is the last."""
    return (weights_of(path), path) if file_format == "openvino" else (path,)


def trace(graph: ImageToObjects, size: Size | None = None) -> torch.export.ExportedProgram:
    """The program that computes what ``graph`` computes, for images of one size (H, W) or of any.

    Raises:
        ValueError: it has steps that cannot be traced.
    """
    side = Dim.STATIC if size else Dim.DYNAMIC
    image = torch.zeros(graph.channels, *(size or _any_size(graph.model)), dtype=graph.dtype)
    inputs, shapes = (image,), ({0: Dim.STATIC, 1: side, 2: side},)
    if graph.takes_output_size:
        inputs, shapes = (*inputs, torch.zeros(2, dtype=torch.int64)), (*shapes, None)
    try:
        with quiet():
            program = torch.export.export(
                graph,
                inputs,
                dynamic_shapes=shapes,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except (RuntimeError, ValueError) as error:  # the latter: a size has become a number
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"torch {torch.__version__} cannot trace this model for images of "
            f"{'one' if size else 'any'} size ({type(error).__name__}: {reason})"
        ) from error
    if not size:
        _forget_traced_size(program)
    return program


def _any_size(model: RDSNet) -> Size:
    """(H, W) that stand for all others.

    A tracer treats maps of a single row or column in their own way, and sides that are alike: here
    the coarsest level has 3 x 4 cells.
    """
    coarsest = max(shape.stride for shape in model.backbone.output_shape().values())
    return 3 * coarsest, 4 * coarsest


def _forget_traced_size(program: torch.export.ExportedProgram) -> None:
    """Remove the assertions that other images are like the traced one, such as by more than a cell.

    They are about how tensors lie in memory and which dimensions are stretched; operators look at
    that themselves. :mod:`.check` compares images of several sizes.
    """
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in list(module.graph.nodes):
                if node.target is torch.ops.aten._assert_scalar.default:
                    module.graph.erase_node(node)
            module.graph.eliminate_dead_code()
            module.recompile()


def write(
    path: Path, program: torch.export.ExportedProgram, file_format: str, texts: dict[str, str]
) -> None:
    """Write one of :data:`FORMATS`; the file is there completely or not at all.

    OpenVINO writes its two files itself, one after the other.
    """
    if file_format == "openvino":
        write_ir(path, _onnx_model(program, texts), texts)
        return
    to_bytes = {"onnx": _onnx_bytes, "torch": _torch_bytes}[file_format]
    content = to_bytes(program, texts)
    write_atomically(path, lambda file: file.write(content))


def _onnx_bytes(program: torch.export.ExportedProgram, texts: dict[str, str]) -> bytes:
    """The file of an ONNX model, checked by ONNX itself."""
    import onnx

    model = _onnx_model(program, texts)
    inputs = list(program.graph_signature.user_inputs)
    if len(inputs) > 1:  # what it is when nobody gives it
        model.graph.initializer.append(onnx.helper.make_tensor(inputs[1], 7, [2], [0, 0]))
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _onnx_model(program: torch.export.ExportedProgram, texts: dict[str, str]) -> onnx.ModelProto:
    """The ONNX graph, all of whose inputs must be given; ``texts`` has the names of its outputs."""
    inputs = list(program.graph_signature.user_inputs)
    outputs = json.loads(texts["outputs"])
    try:
        with quiet():
            converted = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=inputs,
                output_names=outputs,
                custom_translation_table={torch.ops.aten.masked_select.default: _masked_select},
            )
    except RuntimeError as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ValueError(
            f"torch {torch.__version__} cannot convert this model to ONNX ({reason}). torch 2.14 "
            "can, and a .pt2 file (--format torch) does not need it"
        ) from error
    model = converted.model_proto
    _name_sizes(model.graph, has_output_size=len(inputs) > 1)
    return model


def _masked_select(values: object, mask: object) -> object:
    """``torch.masked_select`` of two tensors of one shape, which the exporter does not know."""
    from onnxscript import opset20 as op

    flat = op.Constant(value_ints=[-1])
    return op.Compress(op.Reshape(values, flat), op.Reshape(mask, flat), axis=0)


def _name_sizes(graph: onnx.GraphProto, has_output_size: bool) -> None:
    """Give the sizes of inputs and outputs names that say something; the tracer has numbers."""
    image = ("height", "width")
    height, width = ("output_height", "output_width") if has_output_size else image
    names = {
        **{name: ("objects", 4) for name in ("boxes", "regressed_boxes", "windows", "cells")},
        **{name: ("objects",) for name in ("scores", "classes")},
        "image": ("channels", *image),
        "masks": ("objects", height, width),
        "logits": ("pixels",),
        "row_cells": (height,),
        "row_weights": (height, 3),
        "column_cells": (width,),
        "column_weights": (width, 3),
    }
    for value in (*graph.input, *graph.output):
        for dim, name in zip(value.type.tensor_type.shape.dim, names.get(value.name, ())):
            if dim.dim_param:
                dim.dim_param = str(name)
    del graph.value_info[:]  # in terms of the tracer's


def _torch_bytes(program: torch.export.ExportedProgram, texts: dict[str, str]) -> bytes:
    """The file of a program of torch.export."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={_EXTRA_FILE: json.dumps(texts)})
    return buffer.getvalue()


def read(path: Path, file_format: str) -> Callable[..., tuple[Tensor, ...]] | None:
    """The file as a function of an image and, where the file takes that, an output size (H, W).

    It gives what :attr:`.ImageToObjects.fields` names. None: there is no onnxruntime to run it.
    """
    if file_format == "torch":
        with open(path, "rb") as file:  # by its name it would have to end in .pt2
            program = torch.export.load(file).module()
        count = len(inspect.signature(program.forward).parameters)

        def run(image: Tensor, output_size: Size = (0, 0)) -> tuple[Tensor, ...]:
            with torch.no_grad():
                return tuple(program(*(image, torch.tensor(output_size))[:count]))

        return run
    if file_format == "openvino":
        return openvino_function(path)
    if find_spec("onnxruntime") is None:
        return None
    return onnx_function(path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' warnings about themselves and each other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
