"""Run the test suite as on other processors: ``make test-processors``.

    python tools/test_processors.py [--only NAME ...] [--numeric] [-- PYTEST ARGUMENTS]

PyTorch and oneDNN choose their kernels by what the processor can do, and so does what they round.
Environment variables make them take those of lesser processors; each setting below is one run of
the suite, on one thread but for "two-threads", in as many processes as cores and memory allow (one:
-- -n 0). --numeric takes the tests marked as numeric alone, those whose figures depend on rounding.

A setting that asks for more than this processor has changes nothing: what is then in effect is said
in the table, and what has been run already is not run again. The exit status is 1 when a test fails
or a run does not come to its end.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from side_by_side import processes

ROOT = Path(__file__).resolve().parents[1]

# Name: environment variables.
SETTINGS = {
    "default": {},
    "two-threads": {"OMP_NUM_THREADS": "2"},
    "onednn-avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},  # without its half precision
    "onednn-avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "aten-avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "aten-default": {"ATEN_CPU_CAPABILITY": "default"},
    "no-avx": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "RDSNET_OPS_ISA": "generic",
    },
}
NUMERIC = ["-m", "numeric and not slow"]

# Prints what PyTorch takes; oneDNN says what it takes before its first convolution.
PROBE = """
import torch
print("torch:", torch.backends.cpu.get_cpu_capability(), flush=True)
torch.nn.functional.conv2d(torch.ones(1, 64, 64, 64), torch.ones(64, 64, 3, 3))
"""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=SETTINGS, metavar="NAME", default=[*SETTINGS])
    parser.add_argument("--numeric", action="store_true", help="the tests marked as numeric alone")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    options = parser.parse_args(arguments)
    chosen = [*(NUMERIC if options.numeric else []), *options.pytest]
    able = in_effect({})["PyTorch"]
    rows, ran, failed = [], {}, False
    for name in options.only:
        print(f"== {name}: {words(SETTINGS[name])}", flush=True)
        found, obstacle = {}, too_much(SETTINGS[name], able)
        if not obstacle:
            found = in_effect(SETTINGS[name])
            obstacle = found.pop("obstacle", None)
        effect = ", ".join(f"{what} {kernels}" for what, kernels in found.items())
        if obstacle:
            result = f"not run: {obstacle}"
        elif effect in ran:
            result = f"not run: the same as {ran[effect]}"
        else:
            ran[effect] = name
            result, good = run_tests(SETTINGS[name], chosen)
            failed |= not good
        rows.append((name, words(SETTINGS[name]), effect or "-", result))
    print("\n" + table(rows))
    return int(failed)


def too_much(setting, able):
    """Why PyTorch could not even start with a setting: it takes the word of ATEN_CPU_CAPABILITY."""
    if setting.get("ATEN_CPU_CAPABILITY") == "avx2" and not able.startswith("AVX"):
        return f"this processor has no AVX2 (PyTorch takes {able})"
    return None


def environment(setting):
    return {**os.environ, "OMP_NUM_THREADS": "1", **setting}


def in_effect(setting):
    """What PyTorch, oneDNN and our operators take under a setting, and the number of threads."""
    probe = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**environment(setting), "ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
    )
    if probe.returncode:
        return {"obstacle": ending(probe.returncode) + " " + probe.stderr.strip()[-200:]}
    torch = re.search(r"^torch: (.*)$", probe.stdout, re.MULTILINE)
    onednn = re.search(r"info,cpu,isa:(.*)$", probe.stdout, re.MULTILINE)
    found = {"PyTorch": torch[1], "oneDNN": onednn[1] if onednn else "unknown"}
    if "RDSNET_OPS_ISA" in setting:
        found["operators"] = setting["RDSNET_OPS_ISA"]
    return {**found, "threads": environment(setting)["OMP_NUM_THREADS"]}


def run_tests(setting, arguments):
    """What came out, in words, and whether all is well."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    workers = processes(int(environment(setting)["OMP_NUM_THREADS"]))
    if workers > 1:
        command += ["-n", str(workers), "--dist", "loadfile"]
    command += arguments  # may say otherwise
    lines = []
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(setting), stdout=subprocess.PIPE, text=True
    ) as run:
        for line in run.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            lines.append(line)
    counts = re.findall(r"(\d+) (passed|failed|errors?|skipped)", lines[-1] if lines else "")
    if not counts:
        return f"FAILED: {ending(run.returncode)}", False
    text = ", ".join(f"{number} {what}" for number, what in counts)
    return text if run.returncode == 0 else f"FAILED: {text}", run.returncode == 0


def ending(status):
    """An exit status in words."""
    return f"it ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def words(setting):
    return " ".join(f"{name}={value}" for name, value in setting.items()) or "-"


def table(rows):
    """Markdown, as docs/reliability.md has it."""
    head = ("setting", "environment", "in effect", "result")
    rows = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
