"""The CUDA kernels without a GPU: the tests of the operators, run on the kernels' own source.

A C++ compiler builds the kernels for the CPU, with fibers as the threads of a block
(``cuda_emulation/``), and registers them where the CPU kernels were. This checks index arithmetic,
barriers, warp primitives and the host code around the kernels; it says nothing about a real GPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from ops.cuda_emulation import build

ROOT = build.ROOT
TESTED = ("correlate", "mask_ohem_loss", "mask_ohem_loss_at_pixels", "assemble_masks")
FILES = [f"tests/ops/test_{name}.py" for name in TESTED]


@pytest.fixture(scope="module")
def library() -> str:
    if build.compiler() is None:
        pytest.skip("no C++ compiler to build the emulation with")
    return str(build.build())


def run_tests(library: str, *arguments: str) -> tuple[int, str]:
    """Number of tests that passed, and the output; fails if one of them did."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "RDSNET_OPS_LIBRARY": library, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return int(re.search(r"(\d+) passed", done.stdout)[1]), done.stdout


def test_kernels_in_brief(library):
    """One block of random geometries per operator, half precision, layouts, ties, errors."""
    heavy = "geometry or dense_masks or profiles or gradcheck or large or repeat or threads"
    chosen = f"cpu-compiled and (not ({heavy}) or compiled-0])"
    passed, _ = run_tests(library, *FILES, "-k", chosen)
    assert passed >= 60


@pytest.mark.slow
def test_kernels_on_everything_that_the_operators_are_tested_with(library):
    passed, _ = run_tests(library, *FILES, "tests/ops/test_compact_masks.py", "-k", "cpu-compiled")
    assert passed >= 120
    graphs = "cpu and (correlate or ohem or assemble or encod or offsets or graph)"
    passed, _ = run_tests(library, "tests/ops/test_registration.py", "-k", graphs)
    assert passed >= 12


def test_emulation_notices_a_barrier_that_some_threads_skip(tmp_path):
    if build.compiler() is None:
        pytest.skip("no C++ compiler to build the emulation with")
    program = tmp_path / "divergent"
    (tmp_path / "divergent.cpp").write_text(
        '#include "cuda_emulation.h"\n'
        "void kernel(int n) { if (int(threadIdx.x) < n) __syncthreads(); }\n"
        "int main(int n, char**) {\n"
        "  rdsnet::cuda::launch(kernel, 2, 64, nullptr, n == 1 ? 64 : 3);\n"
        "}\n"
    )
    sources = [str(tmp_path / "divergent.cpp"), str(build.HERE / "fibers.cpp")]
    build.run(["-std=c++20", f"-I{build.HERE}", *sources, "-o", str(program)])
    assert subprocess.run([program]).returncode == 0
    done = subprocess.run([program, "divergent"], capture_output=True, text=True)
    assert done.returncode != 0 and "barrier that others never reach" in done.stderr
