"""Run the test suite on the oldest and the newest supported torch: ``make test-matrix``.

    python3 tools/test_matrix.py [--folder build/matrix] [--only NAME] [-- PYTEST ARGUMENTS]

Each entry gets a copy of the files of this checkout (operators are compiled into it), and an
environment of its own, about 6 GB. Both are kept: running it again only tests. Which Detectron2 an
entry runs on is what tools/install_detectron2.py can get: the repository's head where GitHub can be
reached, else the pure-Python build of 0.6; the line that is printed per entry says it. The exit
status is 1 when one fails.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Name: what pip is asked for. "newest" takes whatever is newest on the day.
TORCH = {
    "oldest": ("torch==2.6.0", "torchvision==0.21.0"),
    "pinned": ("torch", "torchvision", f"--constraint={ROOT / 'constraints.txt'}"),
    "newest": ("torch", "torchvision"),
}
VERSIONS = """
import importlib.metadata as m
print(", ".join(f"{n} {m.version(n)}" for n in ("torch", "torchvision", "detectron2", "numpy")))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "matrix")
    parser.add_argument("--only", choices=TORCH, help="run this entry alone")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    options = parser.parse_args()
    results = {}
    for name in [options.only] if options.only else TORCH:
        print(f"== {name}", flush=True)
        copy, python = prepare(options.folder / name, TORCH[name])
        command = [python, "-m", "pytest", *options.pytest]
        passed = python and subprocess.call(command, cwd=copy) == 0
        versions = output(python, "-c", VERSIONS) if python else "environment not made"
        results[name] = f"{'passed' if passed else 'FAILED'}: {versions}"
    for name, result in results.items():
        print(f"{name:8} {result}")
    return any("FAILED" in result for result in results.values())


def prepare(folder, packages):
    """The copy of the checkout, and the interpreter of its environment (None: it failed)."""
    copy, environment = folder / "checkout", folder / "env"
    copy.mkdir(parents=True, exist_ok=True)
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    files = b"\0".join(f for f in files.split(b"\0") if f and (ROOT / os.fsdecode(f)).is_file())
    pack = ["tar", "--create", "--null", "--files-from=-"]
    archive = subprocess.run(pack, cwd=ROOT, input=files, stdout=subprocess.PIPE, check=True)
    subprocess.run(["tar", "--extract"], cwd=copy, input=archive.stdout, check=True)
    python = environment / "bin" / "python"
    if (environment / ".complete").exists():
        return copy, python
    steps = [
        [sys.executable, "-m", "venv", environment],
        [python, "-m", "pip", "install", "--quiet", *packages],
        [sys.executable, copy / "tools" / "make_env.py", environment],
    ]
    for step in steps:
        if subprocess.call([str(part) for part in step], cwd=copy) != 0:
            return copy, None
    (environment / ".complete").touch()
    return copy, python


def output(*command):
    """What a command prints."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
