"""In which precision convolutions are computed, and what follows them. Needs torch alone."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Values of ``MODEL.RDSNET.INFERENCE.PRECISION`` beside "auto", and what they mean."""

INTEL = "Intel"
"""Among the capabilities of a processor: who has made it."""


def widened(x: Tensor) -> Tensor:
    """float16 and bfloat16 as float32, the rest as it is.

    Under autocast convolutions give half precision, too little for losses. A model in float64 keeps
    its digits. (Detections are float32 always: Detectron2 decodes and suppresses boxes so.)
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def chosen_precision(
    wanted: str, device: str, capabilities: frozenset[str] | None = None
) -> tuple[str, str]:
    """What inference computes in on a device, a name in :data:`PRECISIONS`, and why, in words.

    Args:
        wanted: one of these names, or "auto": bf16 where the processor has instructions for it
            (Intel's without AMX were no quicker: docs/results.md), and float32 on a GPU: there it
            was quicker, image by image (benchmarks/gpu).
        device: as ``MODEL.DEVICE``.
        capabilities: of the device; None: :func:`device_capabilities`.

    Raises:
        ValueError: there is no such precision, or the device does not compute in it.
    """
    if wanted not in ("auto", *PRECISIONS):
        raise ValueError(
            "MODEL.RDSNET.INFERENCE.PRECISION (--precision) must be one of auto, "
            f"{', '.join(PRECISIONS)}, got '{wanted}'"
        )
    if capabilities is None:
        capabilities = device_capabilities(device)
    is_gpu = torch.device(device).type == "cuda"
    name = "the GPU" if is_gpu else "the processor"
    for_bf16 = sorted(capabilities & {"AVX512_BF16", "AMX_BF16", "bfloat16"})
    if wanted == "auto":
        if is_gpu:
            return "float32", "auto: on a GPU a little quicker than bf16, image by image"
        if for_bf16 == ["AVX512_BF16"] and INTEL in capabilities:
            return "float32", "auto: AVX512_BF16 of Intel was no quicker; it takes AMX"
        if for_bf16:
            return "bf16", f"auto: {name} has {' and '.join(for_bf16)}"
        return "float32", f"auto: {name} has no instructions for bfloat16"
    if wanted == "fp16" and not capabilities & {"AVX512_FP16", "AMX_FP16", "float16"}:
        raise ValueError(
            f"precision fp16: {name} does not compute in float16 (a GPU does, and processors with "
            "AVX512_FP16 or AMX_FP16). Choose auto, bf16 or float32."
        )
    if wanted == "bf16" and not for_bf16:
        if is_gpu:
            raise ValueError(
                "precision bf16: the GPU does not compute in bfloat16 (from compute capability 8.0 "
                "on). Choose auto, fp16 or float32."
            )
        return "bf16", f"as asked for; {name} has no instructions for it, and may be slower"
    return wanted, "as asked for"


def device_capabilities(device: str) -> frozenset[str]:
    """What a device has instructions for: of a GPU "bfloat16" and "float16"; of a processor those
    of AVX512_BF16, AVX512_FP16, AMX_BF16 and AMX_FP16 that torch knows of, and "Intel" (Linux).
    """
    kind = torch.device(device).type
    if kind == "cuda" and torch.cuda.is_available():
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return frozenset({"float16", "bfloat16"} if has_bf16 else {"float16"})
    if kind != "cpu":
        return frozenset()
    # torch before 2.9 answers three questions; later ones tell everything.
    known = {
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx_bf16": torch.cpu._is_amx_tile_supported(),
        "amx_fp16": getattr(torch.cpu, "_is_amx_fp16_supported", bool)(),
    }
    known.update(getattr(torch.cpu, "get_capabilities", dict)())
    names = ("AVX512_BF16", "AVX512_FP16", "AMX_BF16", "AMX_FP16")
    return frozenset(name for name in names if known.get(name.lower())) | _maker()


@cache
def _maker() -> frozenset[str]:
    """Only Linux says it in a file."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            is_intel = any(line.split()[-1:] == ["GenuineIntel"] for line in file)
    except (OSError, ValueError):
        is_intel = False
    return frozenset({INTEL} if is_intel else ())
