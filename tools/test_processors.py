#!/usr/bin/env python3
"""The test suite as other processors would run it: other instruction sets, other thread counts.

    make test-processors
    python tools/test_processors.py --only "ATen default" "oneDNN AVX2" -- -m numeric
    python tools/test_processors.py --list

PyTorch chooses kernels by what the processor can do, and rounds differently in each. Environment
variables make it choose others: ONEDNN_MAX_CPU_ISA those of convolutions and products,
ATEN_CPU_CAPABILITY those of everything else. Words after -- go to pytest. The exit status is 0 when
the suite passes under every setting.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Setting:
    """Environment variables of a run; ``needs``: flags without which it is as the default."""

    variables: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


KERNELS = {
    "default": Setting(),
    "oneDNN AVX2": Setting({"ONEDNN_MAX_CPU_ISA": "AVX2"}, ("avx512f",)),
    "oneDNN AVX512_CORE": Setting({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, ("avx512_vnni",)),
    "ATen default": Setting({"ATEN_CPU_CAPABILITY": "default"}, ("avx2",)),
    "ATen avx2": Setting({"ATEN_CPU_CAPABILITY": "avx2"}, ("avx512f",)),
}
SETTINGS = {
    f"{name}, {threads} thread{'s' * (threads > 1)}": Setting(
        {**setting.variables, "OMP_NUM_THREADS": str(threads)}, setting.needs
    )
    for threads in (1, 2)
    for name, setting in KERNELS.items()
}


def processor() -> tuple[str, set[str]]:
    """Name of this processor and its flags, as Linux tells them; elsewhere unknown."""
    name, flags = "unknown", set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    except OSError:
        pass
    return name, flags


def run(setting: Setting, arguments: list[str]) -> dict[str, int]:
    """Counts of the suite's tests under a setting: tests, failures, errors, skipped."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", f"--junit-xml={report}", *arguments]
        subprocess.run(command, cwd=ROOT, env={**os.environ, **setting.variables}, check=False)
        if not report.is_file():
            return {"tests": 0, "failures": 0, "errors": 1, "skipped": 0}
        suite = ElementTree.parse(report).getroot().find("testsuite")
        return {key: int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")}


def chosen(only: list[str] | None) -> dict[str, Setting]:
    """The settings whose names begin with one of these words; all without."""
    found = {n: s for n, s in SETTINGS.items() if not only or any(n.startswith(w) for w in only)}
    unknown = [word for word in only or [] if not any(n.startswith(word) for n in SETTINGS)]
    if unknown:
        raise SystemExit(f"there is no setting '{unknown[0]}'. There are: {', '.join(SETTINGS)}")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="settings that begin so")
    parser.add_argument("--list", action="store_true", help="list the settings and stop")
    parser.add_argument("arguments", nargs="*", metavar="-- PYTEST", help="arguments of pytest")
    args = parser.parse_args(argv)
    settings = chosen(args.only)
    name, flags = processor()
    rows, all_well = [], True
    for title, setting in settings.items():
        missing = [flag for flag in setting.needs if flags and flag not in flags]
        remark = f" (this processor has no {missing[0]}: as default)" if missing else ""
        if args.list:
            words = " ".join(f"{key}={value}" for key, value in setting.variables.items())
            print(f"{title}: {words}{remark}")
            continue
        print(f"== {title}{remark}", flush=True)
        start = time.monotonic()
        counts = run(setting, args.arguments)
        failed = counts["failures"] + counts["errors"]
        passed = counts["tests"] - failed - counts["skipped"]
        all_well &= failed == 0 and passed > 0
        seconds = time.monotonic() - start
        rows.append(
            f"| {title}{remark} | {passed} passed, {failed} failed, {counts['skipped']} skipped | "
            f"{seconds:.0f} s |"
        )
    if rows:
        print(f"\n{name}\n\n| kernels, threads | tests | time |\n| --- | --- | --- |")
        print("\n".join(rows))
    return 0 if all_well else 1


if __name__ == "__main__":
    sys.exit(main())
