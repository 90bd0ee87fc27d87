"""Builds the operators with their CUDA kernels emulated on the CPU.

The kernels are the very files that nvcc compiles; ``cuda_emulation.h`` gives the words of CUDA a
meaning for a C++ compiler.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
CSRC = ROOT / "rdsnet" / "ops" / "csrc"
TORCH = Path(torch.__file__).parent


def compiler() -> str | None:
    """The C++ compiler, if there is one."""
    return shutil.which(os.environ.get("CXX", "g++"))


def sources() -> list[Path]:
    """``library.cpp`` includes the CUDA registration, so that the latter is emulated too."""
    own = [HERE / "fibers.cpp", HERE / "library.cpp"]
    return [*sorted(CSRC.glob("cuda/*.cu")), CSRC / "geometry.cpp", *own]


def build() -> Path:
    """Compile what has changed since the last time; returns the library."""
    flags = "-std=c++20 -O1 -fPIC -U_FORTIFY_SOURCE -DRDSNET_CUDA_EMULATION -DRDSNET_CUDA_KEY=CPU"
    includes = [f"-I{folder}" for folder in (CSRC, CSRC / "cuda", HERE)]
    for folder in (TORCH / "include", TORCH / "include/torch/csrc/api/include"):
        includes += ["-isystem", str(folder)]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    arguments = [*flags.split(), abi, *includes]

    digest = hashlib.sha256(f"{torch.__version__} {arguments}".encode())
    headers = [*sorted(CSRC.rglob("*.h")), *sorted(HERE.glob("*.h")), *CSRC.glob("cuda/*.cpp")]
    for path in (*sources(), *headers):
        digest.update(path.read_bytes())
    folder = ROOT / "build" / "cuda_emulation" / digest.hexdigest()[:16]
    library = folder / "emulated.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)

    def compiled(source: Path) -> str:
        target = folder / f"{source.name}.o"
        run(["-x", "c++", *arguments, "-c", str(source), "-o", str(target)])
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources()))
    unfinished = folder / "unfinished.so"
    libraries = [f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]
    run(["-shared", *objects, "-o", str(unfinished), *libraries])
    unfinished.rename(library)
    return library


def run(arguments: list[str]) -> None:
    done = subprocess.run([compiler(), *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)}\n{done.stderr}")
