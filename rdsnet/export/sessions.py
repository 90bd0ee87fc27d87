"""Running an ONNX file by onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


def onnx_function(path: Path | str, device: str = "cpu") -> Callable[..., tuple[Tensor, ...]]:
    """The file as a function of an image (3, H, W) uint8 and, where it takes that, an output size.

    It computes with as many threads as torch. It needs onnxruntime.

    Args:
        device: "cuda" where onnxruntime has that, else the CPU is used.
    """
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
