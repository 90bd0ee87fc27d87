"""Compile the CUDA kernels without installing them: ``make cuda-build``.

Builds the whole library, CPU and CUDA, into build/cuda and loads it, which works without a GPU too.
Where there is no nvcc, it says so and succeeds: the point is that the kernels can't rot unnoticed
wherever a toolkit is at hand.

Example:
  python tools/build_cuda.py --architectures "8.0;9.0"
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "cuda"
ARCHITECTURES = "8.0;9.0"


class BuildError(RuntimeError):
    """The library could not be built, or does not load."""


def find_nvcc() -> str | None:
    """nvcc of CUDA_HOME, of PATH, or of the usual place."""
    home = os.environ.get("CUDA_HOME")
    places = [home] if home else ["/usr/local/cuda"]
    on_path = None if home else shutil.which("nvcc")
    return on_path or next(
        (str(nvcc) for place in places if (nvcc := Path(place) / "bin" / "nvcc").is_file()), None
    )


def build(architectures: str | None = ARCHITECTURES) -> Path:
    """Build the library with its CUDA kernels; what has not changed is not compiled again.

    Args:
        architectures: as in TORCH_CUDA_ARCH_LIST; None: those of the GPUs of this machine.

    Returns:
        The library.

    Raises:
        BuildError: with the end of the compiler's output.
    """
    environment = {**os.environ, "FORCE_CUDA": "1", "RDSNET_DISABLE_OPS": "0"}
    if architectures:
        environment["TORCH_CUDA_ARCH_LIST"] = architectures
    shutil.rmtree(FOLDER / "lib", ignore_errors=True)
    command = [sys.executable, "setup.py", "build_ext"]
    command += [f"--build-temp={FOLDER / 'temp'}", f"--build-lib={FOLDER / 'lib'}"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    libraries = sorted((FOLDER / "lib" / "rdsnet").glob("_C*.so"))
    if "were built for CPU and CUDA" not in done.stdout or not libraries:
        raise BuildError(f"the library was not built with CUDA:\n{done.stdout[-6000:]}")
    return libraries[0]


def active_path(library: Path) -> str:
    """What ``rdsnet.ops.active_path()`` says with this library."""
    code = "from rdsnet.ops import compiled; print(compiled.active_path())"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        env={**os.environ, "RDSNET_OPS_LIBRARY": str(library)},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise BuildError(f"{library} does not load:\n{done.stderr}")
    return done.stdout.strip()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--architectures", default=ARCHITECTURES, help="as TORCH_CUDA_ARCH_LIST")
    args = parser.parse_args(arguments)
    nvcc = find_nvcc()
    if nvcc is None:
        print("CUDA kernels: skipped, there is no nvcc on PATH, in CUDA_HOME or /usr/local/cuda")
        return 0
    start = time.monotonic()
    try:
        library = build(args.architectures)
        path = active_path(library)
        if path != "compiled (cpu, cuda)":
            raise BuildError(f"{library} serves {path}, not CPU and CUDA")
    except BuildError as error:
        print(f"CUDA kernels: {error}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - start
    print(f"CUDA kernels: compiled for {args.architectures} by {nvcc} and loaded, {seconds:.0f} s")
    print(f"CUDA kernels: RDSNET_OPS_LIBRARY={library} uses this build")
    return 0


if __name__ == "__main__":
    sys.exit(main())
