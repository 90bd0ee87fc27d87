"""Run the test suite on the oldest and the newest supported torch: ``make test-matrix``.

    python3 tools/test_matrix.py [--folder build/matrix] [--only NAME] [-- PYTEST ARGUMENTS]

NAME is ``oldest``, ``pinned`` (the versions of constraints.txt) or ``newest`` (what pip takes for
the newest on the day, pip's own configuration included). Each gets an environment of its own, about
6 GB and ten minutes the first time, on the Python that runs this script: for another one,
``make test-matrix PYTHON=python3.12``. The files of this checkout are copied and compiled there on
every run, so it needs git. The environments are kept; delete the folder when done.

Which Detectron2 an entry runs on is what tools/install_detectron2.py can get: the repository's head
where GitHub can be reached, else the pure-Python build of 0.6; the line that is printed per entry
says it. The exit status is 1 when one fails.
"""

import argparse
import os
import shutil
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
import platform
names = ("torch", "torchvision", "detectron2", "numpy")
print(", ".join([f"Python {platform.python_version()}"] + [f"{n} {m.version(n)}" for n in names]))
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
        folder = f"{name}-python{sys.version_info[0]}.{sys.version_info[1]}"
        copy, python = prepare(options.folder.resolve() / folder, TORCH[name])
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
    shutil.rmtree(copy, ignore_errors=True)  # with files that are gone from this checkout
    copy.mkdir(parents=True)
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
    torch_is_there = folder / "torch_is_there"
    if not torch_is_there.exists():
        if not succeed(
            [sys.executable, "-m", "venv", environment],
            [python, "-m", "pip", "install", "--quiet", *packages],
        ):
            return copy, None
        torch_is_there.touch()
    done = succeed([sys.executable, copy / "tools" / "make_env.py", environment])
    return copy, python if done else None


def succeed(*commands):
    """Whether they all do, up to the first that fails."""
    return all(subprocess.call([str(part) for part in command]) == 0 for command in commands)


def output(*command):
    """What a command prints."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
