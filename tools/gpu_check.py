"""Everything that needs a GPU, in one command: ``make gpu-check``.

Builds the operators with CUDA for the GPU at hand, runs their tests there, runs compute-sanitizer
(memcheck and racecheck) where it is found, compares CPU with CUDA, times each kernel against its
goal, predicts and trains with whole models, and times them with ``rdsnet benchmark``. The figures
go to benchmarks/gpu. The exit status is 1 when something failed, and 2 where there is no GPU: then
nothing is touched.

Example:
  python tools/gpu_check.py --skip models
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import build_cuda

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("tests", "sanitizer", "kernels", "system", "models")
# Sums of float32 in another order; pixels within rounding of a threshold.
TOLERANCE = 1e-4
TOO_LONG = 124  # the exit status of a command that was stopped
NO_TESTS = 5  # pytest's exit status where none was chosen
ROUNDS = 20  # of whole models, in turn
# Of the objects of either, in float32: one at the score threshold may be on either side of it.
LEAST_MATCHED, LEAST_IOU = 0.99, 0.99


class CheckFailed(RuntimeError):
    """A step did not give what it must."""


def execute(command: list[str], library: Path, seconds: int = 3600) -> tuple[int, str]:
    """Exit status and output of a command that uses the library just built."""
    environment = {**os.environ, "RDSNET_OPS_LIBRARY": str(library)}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""  # bytes, whatever text= says
        return TOO_LONG, f"{error}\n{said.decode(errors='replace')}"
    return done.returncode, done.stdout


def run(command: list[str], library: Path, seconds: int = 3600) -> str:
    """The output alone; raises when the command fails."""
    status, output = execute(command, library, seconds)
    if status != 0:
        raise CheckFailed(f"{' '.join(command)}\n{output[-6000:]}")
    return output


def check_tests(library: Path, folder: Path) -> str:
    """Operators on the GPU, and their errors on both devices. A process per file: one that crashes
    hides no other. Tests that are skipped for want of a GPU would go unnoticed.
    """
    passed, failures = 0, []
    for file in sorted((ROOT / "tests" / "ops").glob("test_*.py")):
        if file.name == "test_cuda_emulation.py":
            continue
        command = [sys.executable, "-m", "pytest", str(file), "-q", "-rs", "-k", "cuda or wrong"]
        status, output = execute(command, library)
        if "no CUDA device" in output or "without CUDA" in output:
            failures.append(f"{file.name}: the tests did not run on the GPU:\n{output[-3000:]}")
        count = re.search(r"(\d+) passed", output)
        passed += int(count[1]) if count else 0
        if status not in (0, NO_TESTS):
            crash = explain_crash(command, library) if status < 0 else ""
            failures.append(f"{file.name}: exit status {status}\n{output[-2000:]}\n{crash}")
    if failures or not passed:
        raise CheckFailed("\n\n".join([f"{passed} tests passed", *failures]))
    return f"{passed} tests of the operators passed on the GPU"


def explain_crash(command: list[str], library: Path) -> str:
    """Whether PyTorch's own errors are raised as exceptions on this machine, with our library and
    without, and where in compiled code a command crashes, if there is a debugger that says it.
    """
    said = []
    for name, imports in (("without the library", ""), ("with it", "from rdsnet import ops; ")):
        code = f"import torch; {imports}torch.zeros(2, device='cuda').view(3)"
        status, output = execute([sys.executable, "-c", code], library)
        raised = "RuntimeError: shape" in output
        said.append(f"an error of PyTorch's own {name}: {'raised' if raised else status}")
    return "\n".join([*said, native_frames(command, library)])


def native_frames(command: list[str], library: Path) -> str:
    for debugger in ("gdb", "cuda-gdb"):
        if shutil.which(debugger):
            script = ["-batch", "-ex", "run", "-ex", "bt 40", "--args", *command]
            return execute([debugger, *script], library, 600)[1][-4000:]
    return "no gdb and no cuda-gdb to show where"


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


def check_system(library: Path, folder: Path) -> str:
    """Whole models: the GPU's objects are the CPU's, and training learns."""
    output = run([sys.executable, "-W", "ignore", "tools/gpu_system.py"], library)
    results = json.loads(output.splitlines()[-1])
    (folder / "system.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "system.md").write_text(system_table(results))
    exact = results["agreement"]["CUDA, float32"]
    if exact["matched"] < LEAST_MATCHED or exact["mean mask IoU"] < LEAST_IOU:
        raise CheckFailed(f"the GPU's objects are not the CPU's: {exact}")
    for name, row in results["training"].items():
        losses = [*row["first losses"], *row["last losses"]]
        if not all(map(math.isfinite, losses)) or min(losses[3:]) >= max(losses[:3]):
            raise CheckFailed(f"{name} does not learn: losses {losses}")
    return f"CPU and GPU find the same objects; {len(results['training'])} trainings learn"


def system_table(results: dict) -> str:
    """Agreement and trainings as markdown."""
    lines = []
    for title, rows in (("predictions", results["agreement"]), ("training", results["training"])):
        columns = list(next(reversed(rows.values())))
        lines += [f"| {title} | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
        for name, row in rows.items():
            cells = [_cell(row.get(column)) for column in columns]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(f"{one:.2f}" for one in value)
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def check_models(library: Path, folder: Path) -> str:
    """The mask path beside the straightforward one, RDSNet beside RetinaNet and Mask R-CNN."""
    benchmark = [sys.executable, "-W", "ignore", "-m", "rdsnet.cli", "benchmark", "--device=cuda"]
    path = ["--mask-path", "--sizes", "800", "--objects", "1", "100", "300", "--seconds", "1"]
    run([*benchmark, *path, f"--output={folder / 'mask_path'}"], library)
    command = [*benchmark, "--models", f"--rounds={ROUNDS}"]
    for depth, size in ((50, 800), (101, 800), (101, 600)):
        for dtype in ("float32", "bfloat16"):
            output = folder / f"models_R{depth}_{size}_{dtype}"
            settings = [f"--depth={depth}", f"--size={size}", f"--dtype={dtype}"]
            run([*command, *settings, f"--output={output}"], library)
    return f"figures in {folder}/mask_path and {folder}/models_*"


CHECKS: dict[str, Callable[[Path, Path], str]] = {
    "tests": check_tests,
    "sanitizer": check_sanitizer,
    "kernels": check_kernels,
    "system": check_system,
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
        except (CheckFailed, ValueError) as error:
            said, failed = f"FAILED: {error}", True
        print(f"gpu-check: {name}: {said}", flush=True)
        summary["steps"][name] = said
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
