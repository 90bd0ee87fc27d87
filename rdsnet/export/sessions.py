"""Running an ONNX file by onnxruntime, and an OpenVINO file by OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rdsnet.checkpoint.exported import is_ir


def exported_function(path: Path | str, device: str = "cpu") -> Callable[..., tuple[Tensor, ...]]:
    """The file as a function of an image (3, H, W) uint8 and, where it takes that, an output size.

    It computes with as many threads as torch. It needs onnxruntime, or openvino for .xml.

    Args:
        device: "cuda" where onnxruntime has that, else the CPU is used, and always for OpenVINO.
    """
    return openvino_function(path) if is_ir(path) else onnx_function(path, device)


def openvino_function(path: Path | str) -> Callable[..., tuple[Tensor, ...]]:
    """:func:`exported_function` of an OpenVINO file, in float32."""
    import openvino

    settings = {
        # Where a processor has bfloat16, OpenVINO takes it unless told not to.
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
    }
    model = openvino.Core().compile_model(path, "CPU", settings)
    takes_output_size = len(model.inputs) > 1

    def run(image: Tensor, output_size: tuple[int, int] = (0, 0)) -> tuple[Tensor, ...]:
        inputs = {"image": image.numpy()}
        if takes_output_size:
            inputs["output_size"] = torch.tensor(output_size).numpy()
        # The memory of results is used again for the next image.
        return tuple(torch.from_numpy(array.copy()) for array in model(inputs).values())

    return run


def onnx_function(path: Path | str, device: str = "cpu") -> Callable[..., tuple[Tensor, ...]]:
    """:func:`exported_function` of an ONNX file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: the default of output_size is worth no warning
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait for one another in loops crawl on a machine that does something else too.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = ["CUDAExecutionProvider"] if device.startswith("cuda") else []
    providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(
        str(path), options, providers=[*providers, "CPUExecutionProvider"]
    )
    takes_output_size = len(session.get_overridable_initializers()) > 0

    def run(image: Tensor, output_size: tuple[int, int] = (0, 0)) -> tuple[Tensor, ...]:
        inputs = {"image": image.numpy()}
        if takes_output_size:
            inputs["output_size"] = torch.tensor(output_size).numpy()
        return tuple(map(torch.from_numpy, session.run(None, inputs)))

    return run
