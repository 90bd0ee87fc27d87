"""Everything that needs a GPU, in one command: ``make gpu-check``.

Builds the operators with CUDA for the GPU at hand, runs their tests there, runs compute-sanitizer
(memcheck and racecheck) where it is found, compares CPU with CUDA, times each kernel against its
goal, and times whole models with ``rdsnet benchmark``. The figures go to benchmarks/gpu. The exit
status is 1 when something failed, and 2 where there is no GPU: then nothing is touched.

Example:
  python tools/gpu_check.py --skip models
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import build_cuda

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("tests", "sanitizer", "kernels", "models")
# Sums of float32 in another order; pixels within rounding of a threshold.
TOLERANCE = 1e-4


class CheckFailed(RuntimeError):
    """A step did not give what it must."""


def run(command: list[str], library: Path, seconds: int = 3600) -> str:
    """Output of a command that uses the library just built; raises when it fails."""
    environment = {**os.environ, "RDSNET_OPS_LIBRARY": str(library)}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )
    if done.returncode != 0:
        raise CheckFailed(f"{' '.join(command)}\n{done.stdout[-6000:]}")
    return done.stdout


def check_tests(library: Path, folder: Path) -> str:
    """Operators on the GPU. A test that is skipped for want of one would go unnoticed."""
    command = [sys.executable, "-m", "pytest", "tests/ops", "-q", "-rs", "-k", "cuda"]
    command.append("--ignore=tests/ops/test_cuda_emulation.py")
    output = run(command, library)
    passed = re.search(r"(\d+) passed", output)
    if passed is None or "no CUDA device" in output or "without CUDA" in output:
        raise CheckFailed(f"the tests did not run on the GPU:\n{output[-3000:]}")
    return f"{passed[1]} tests of the operators passed on the GPU"


def check_sanitizer(library: Path, folder: Path) -> str:
    sanitizer = shutil.which("compute-sanitizer") or next(
        (
            str(place)
            for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda")
            if home and (place := Path(home) / "bin" / "compute-sanitizer").is_file()
        ),
        None,
    )
    if sanitizer is None:
        return "not run: compute-sanitizer is neither on PATH nor in CUDA_HOME"
    for tool in ("memcheck", "racecheck"):
        script = [sys.executable, "tools/gpu_kernels.py", "--small"]
        output = run([sanitizer, f"--tool={tool}", "--error-exitcode=1", *script], library)
        (folder / f"{tool}.txt").write_text(output)
    return "memcheck and racecheck found nothing"


def check_kernels(library: Path, folder: Path) -> str:
    output = run([sys.executable, "-W", "ignore", "tools/gpu_kernels.py"], library)
    results = json.loads(output.splitlines()[-1])
    (folder / "kernels.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "kernels.md").write_text(kernel_table(results))
    for objects, differences in results["agreement"].items():
        for difference in differences.values():
            if not difference <= TOLERANCE:
                raise CheckFailed(f"CPU and CUDA differ with {objects} objects: {differences}")
    late = [
        f"{row['what']} ({row['dtype']}, {objects} objects)"
        for objects, rows in results["timings"].items()
        for row in rows
        if row["goal_ms"] and (row["kernels_ms"] or row["call_ms"]) > row["goal_ms"]
    ]
    goals = f"slower than their goals: {', '.join(late)}" if late else "all goals met"
    return f"CPU and CUDA agree; {goals} (benchmarks: {folder / 'kernels.md'})"


def kernel_table(results: dict) -> str:
    """The times as markdown."""

    def number(value) -> str:
        return "" if value is None else f"{value:.3f}"

    lines = [
        "| objects | what | dtype | kernels, ms | whole call, ms | goal, ms |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for objects, rows in results["timings"].items():
        lines += [
            f"| {objects} | {row['what']} | {row['dtype']} | {number(row['kernels_ms'])} "
            f"| {number(row['call_ms'])} | {number(row['goal_ms'])} |"
            for row in rows
        ]
    lines += ["", "CPU against CUDA, sum of differences / sum of magnitudes:", ""]
    for objects, differences in results["agreement"].items():
        text = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
        lines.append(f"- {objects} objects: {text}")
    return "\n".join(lines) + "\n"


def check_models(library: Path, folder: Path) -> str:
    """Images per second of RDSNet beside RetinaNet and Mask R-CNN."""
    command = [sys.executable, "-W", "ignore", "-m", "rdsnet.cli", "benchmark", "--models"]
    for depth in (50, 101):
        for size in (800, 600):
            for dtype in ("float32", "bfloat16"):
                output = folder / f"models_R{depth}_{size}_{dtype}"
                settings = [f"--depth={depth}", f"--size={size}", f"--dtype={dtype}"]
                run([*command, "--device=cuda", *settings, f"--output={output}"], library)
    return f"figures in {folder}/models_*"


CHECKS: dict[str, Callable[[Path, Path], str]] = {
    "tests": check_tests,
    "sanitizer": check_sanitizer,
    "kernels": check_kernels,
    "models": check_models,
}


def obstacle() -> str | None:
    """Why nothing can be checked here; None if something can."""
    import torch

    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if build_cuda.find_nvcc() is None:
        return "there is no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda to build with"
    return None


def describe_machine() -> dict:
    import torch

    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "date": datetime.date.today().isoformat(),
        "commit": commit,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "gpu", metavar="DIR")
    parser.add_argument("--skip", nargs="+", choices=STEPS, default=[], metavar="STEP")
    args = parser.parse_args(arguments)
    reason = obstacle()
    if reason is not None:
        print(f"gpu-check: nothing was checked, and nothing changed: {reason}", file=sys.stderr)
        return 2
    folder = args.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        library = build_cuda.build(os.environ.get("TORCH_CUDA_ARCH_LIST"))
    except build_cuda.BuildError as error:
        print(f"gpu-check: build: FAILED\n{error}", file=sys.stderr)
        return 1
    summary = {"machine": describe_machine(), "steps": {}}
    failed = False
    for name in STEPS:
        if name in args.skip:
            continue
        try:
            said = CHECKS[name](library, folder)
        except (CheckFailed, subprocess.TimeoutExpired, ValueError) as error:
            said, failed = f"FAILED: {error}", True
        print(f"gpu-check: {name}: {said}", flush=True)
        summary["steps"][name] = said
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
