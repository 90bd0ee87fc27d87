"""OpenVINO's own files: an ONNX graph as intermediate representation (.xml, with .bin beside it).

OpenVINO reads the ONNX graph but for one operator: it takes what the body of a ``Scan`` sees of the
graph around it for values that the loop carries, and refuses (seen with 2026.4). The same loop as
``Loop`` it reads. ONNX files keep ``Scan`` all the same: onnxruntime writes its results where they
stay, and those of ``Loop`` first one by one, then once more together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rdsnet.checkpoint.exported import IR_ENTRY, weights_of

if TYPE_CHECKING:
    import onnx


def write_ir(path: Path, model: onnx.ModelProto, texts: dict[str, str]) -> None:
    """Write an ONNX model as ``path`` (.xml) and the weights beside it (.bin), in float32.

    Args:
        model: is changed: its ``Scan`` become ``Loop``.
        texts: what the file says about itself, kept as json in one entry of its rt_info.

    Raises:
        ValueError: OpenVINO cannot convert it; nothing is written.
        OSError: it cannot be written.
    """
    import openvino

    loops_instead_of_scans(model)
    try:
        converted = openvino.Core().read_model(model.SerializeToString())
    except RuntimeError as error:
        raise ValueError(
            f"openvino {openvino.__version__} cannot convert this model ({error}). An ONNX file "
            "(--output FILE.onnx) does not need it"
        ) from error
    converted.set_rt_info(json.dumps(texts), IR_ENTRY)
    try:
        openvino.save_model(converted, path, compress_to_fp16=False)
    except RuntimeError as error:
        for part in (path, weights_of(path)):
            part.unlink(missing_ok=True)
        raise OSError(f"'{path}' cannot be written: {error}") from error


def loops_instead_of_scans(model: onnx.ModelProto) -> None:
    """Replace every ``Scan`` over first axes, forwards, by the ``Loop`` that computes the same.

    Raises:
        ValueError: a ``Scan`` has other axes or directions.
    """
    for graph, place in list(_scans(model.graph)):
        nodes = list(graph.node)
        nodes[place : place + 1] = _as_loop(nodes[place])
        del graph.node[:]
        graph.node.extend(nodes)


def _scans(graph: onnx.GraphProto) -> Iterator[tuple[onnx.GraphProto, int]]:
    """Where they are, the last of a graph first, so that places hold while they are replaced."""
    for place in reversed(range(len(graph.node))):
        for attribute in graph.node[place].attribute:
            if attribute.HasField("g"):
                yield from _scans(attribute.g)
        if graph.node[place].op_type == "Scan":
            yield graph, place


def _as_loop(scan: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Nodes for a ``Scan``: how often, and a ``Loop`` whose body picks its own of each input."""
    from onnx import TensorProto, helper

    attributes = {one.name: helper.get_attribute_value(one) for one in scan.attribute}
    unusual = [
        name
        for name, value in attributes.items()
        if name.startswith("scan_") and any(value)  # axes and directions, 0 unless changed
    ]
    if unusual:
        raise ValueError(f"the loop '{scan.name}' with {unusual[0]} cannot be written for OpenVINO")
    body, sequences = attributes["body"], attributes["num_scan_inputs"]
    carried = len(scan.input) - sequences
    # Names are unique in a graph and all those inside it, and so is that of an output.
    prefix = f"{next(filter(None, scan.output))}_loop"
    number, before, after = (f"{prefix}_{word}" for word in ("number", "before", "after"))
    picks = [
        helper.make_node("Gather", [sequence, number], [own.name], axis=0)
        for sequence, own in zip(scan.input[carried:], body.input[carried:])
    ]
    looped = helper.make_graph(
        [*picks, *body.node, helper.make_node("Identity", [before], [after])],
        body.name,
        [
            helper.make_tensor_value_info(number, TensorProto.INT64, []),
            helper.make_tensor_value_info(before, TensorProto.BOOL, []),
            *body.input[:carried],
        ],
        [helper.make_tensor_value_info(after, TensorProto.BOOL, []), *body.output],
        initializer=body.initializer,
    )
    shape, axes, times = (f"{prefix}_{word}" for word in ("shape", "axes", "times"))
    return [
        helper.make_node("Shape", [scan.input[carried]], [shape], start=0, end=1),
        helper.make_node("Constant", [], [axes], value_ints=[0]),
        helper.make_node("Squeeze", [shape, axes], [times]),
        helper.make_node(
            "Loop",
            [times, "", *scan.input[:carried]],
            list(scan.output),
            name=scan.name,
            body=looped,
        ),
    ]
