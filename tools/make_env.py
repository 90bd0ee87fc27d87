"""Make an environment with everything RDSNet needs: ``make env`` runs this.

    python3 tools/make_env.py FOLDER

The interpreter that runs it becomes the environment's. If it already has a usable PyTorch, the
environment builds on it (and on an installed Detectron2) instead of installing another; an
environment that exists is completed. Standard library only, and no syntax newer than Python 3.6's,
so that an older Python gets a message rather than a SyntaxError.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 6)
# With PyTorch for GPUs the environment takes 6 GB; pip holds what it has loaded beside it.
NEEDED_GB = 10

# Prints the versions of those packages named on its command line that are installed; imports none.
QUERY = """
import importlib.metadata, importlib.util, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        if importlib.util.find_spec(name):
            found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # a folder of that name, not an installation
        pass
print(json.dumps(found))
"""

# torch and torchvision of different builds install without complaint and fail here.
MATCH = "import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)"

# pip keeps quiet about operators that could not be compiled: rdsnet works without.
OPERATORS = """
from rdsnet.ops import compiled
compiled.load()
print(compiled.active_path(), compiled.why_not_compiled())
"""


class InstallationError(Exception):
    """A step failed; the message says which and what to do."""


def main(arguments=None):
    """Command line entry; the exit status is 0 when the environment is complete."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="where the environment is or shall be")
    options = parser.parse_args(arguments)
    start = time.time()
    try:
        check_python(sys.version_info, sys.executable)
        make(Path(os.path.abspath(options.folder)))
    except InstallationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    say(f"Ready after {time.time() - start:.0f} s: {options.folder}/bin/rdsnet --help, make demo")
    return 0


def make(folder):
    """The steps, in order. Raises InstallationError."""
    python = folder / "bin" / "python"
    if works(python):
        say(f"Completing the environment {folder}")
    else:
        create(folder)
    if not versions(python, "pip"):
        run([python, "-m", "ensurepip"], "adding pip")

    install_setuptools(python)
    install_torch(python)
    say("Installing Detectron2 ...")
    if subprocess.call([str(python), str(ROOT / "tools" / "install_detectron2.py")]) != 0:
        raise InstallationError("Detectron2 could not be installed: see above")
    say("Installing rdsnet and what its tests need, compiling its operators: a minute or two ...")
    pip_install(python, "--no-build-isolation", "--editable", f"{ROOT}[test]")
    say("Operators: " + run([python, "-W", "ignore", "-c", OPERATORS], "importing rdsnet").strip())

    conflicts = subprocess.run(
        [str(python), "-m", "pip", "check"], stdout=subprocess.PIPE, text=True, check=False
    )
    if conflicts.returncode != 0:
        say(f"warning: pip sees conflicts among the installed packages:\n{conflicts.stdout}")


def check_python(version, executable):
    """InstallationError if ``version``, like ``sys.version_info``, is too old."""
    if tuple(version[:2]) < OLDEST_PYTHON:
        raise InstallationError(
            f"RDSNet needs Python {dotted(OLDEST_PYTHON)} or newer, and {executable} is "
            f"{dotted(version[:2])}. If a newer one is installed, name it: "
            "make env PYTHON=python3.12"
        )


def create(folder):
    """A virtual environment of the running Python, on top of its packages if it has PyTorch."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        # Creating it would begin with deleting what is there.
        raise InstallationError(f"{folder} exists and is not a Python environment: name another")
    options = ["--clear"]
    reason = "PyTorch will be installed into it"
    torch = versions(sys.executable, "torch").get("torch")
    if torch and sys.prefix != sys.base_prefix:
        # --system-site-packages shows the base interpreter's packages, not those of another
        # virtual environment.
        reason = (
            f"it cannot share torch {torch} of the virtual environment {sys.prefix}; to install "
            f"into that one instead: make env VENV={sys.prefix}"
        )
    elif torch and release(torch) < OLDEST_TORCH:
        reason = f"it does not use torch {torch} of {sys.executable}, which is too old"
    elif torch:
        options.append("--system-site-packages")
        reason = f"it uses torch {torch} and the other packages of {sys.executable}"
    say(f"Creating the environment {folder} with Python {sys.version.split()[0]}: {reason}")
    remedy = " (on Debian and Ubuntu: apt install python3-venv)"
    run([sys.executable, "-m", "venv", *options, folder], "creating the environment" + remedy)


def install_setuptools(python):
    """setuptools with pkg_resources, which Detectron2 imports and version 82 removed."""
    try:
        pip_install(python, "setuptools>=77.0.3,<82")
    except InstallationError as error:
        present = versions(python, "setuptools").get("setuptools")
        if not present:
            raise
        # Without a network, what a prepared machine has may do.
        say(f"warning: going on with setuptools {present}: {last_line(error)}")


def install_torch(python):
    """torch and torchvision, unless they are there; those of constraints.txt if possible."""
    present = versions(python, "torch", "torchvision")
    torch = present.get("torch")
    if torch and release(torch) < OLDEST_TORCH:
        raise InstallationError(
            f"torch {torch} is installed for {python}; RDSNet needs "
            f"{dotted(OLDEST_TORCH)} or newer. Upgrade it there, or remove that folder."
        )
    if torch and "torchvision" in present:
        say(f"torch {torch} and torchvision {present['torchvision']} are installed")
    elif torch:
        say(f"Installing the torchvision that belongs to torch {torch} ...")
        pip_install(python, f"torch=={torch}", "torchvision")
    else:
        check_space(python.parent.parent)
        say("Installing torch and torchvision: about two minutes, 6 GB on disk ...")
        try:
            pip_install(python, "torch", "torchvision", f"--constraint={ROOT / 'constraints.txt'}")
        except InstallationError as error:
            if "No space left on device" in str(error):
                raise
            say(f"The versions of constraints.txt are not available here: {last_line(error)}")
            say("Installing the newest torch and torchvision instead ...")
            pip_install(python, f"torch>={dotted(OLDEST_TORCH)}", "torchvision")
    try:
        run([python, "-W", "ignore", "-c", MATCH], "using torch and torchvision together")
    except InstallationError as error:
        raise InstallationError(
            f"{error}\nTheir builds do not match. Install two that belong together, such as those "
            f"of constraints.txt, into {python.parent.parent}, then run make env again."
        ) from None


def check_space(folder):
    """InstallationError if the disk of ``folder`` or of temporary files has no room for PyTorch."""
    for place in (str(folder), tempfile.gettempdir()):
        free = shutil.disk_usage(place).free / 1e9
        if free < NEEDED_GB:
            raise InstallationError(
                f"PyTorch and what pip loads for it take about {NEEDED_GB} GB, and the disk of "
                f"{place} has {free:.1f} GB left. Make room, or name another disk: "
                "make env VENV=/other/disk/venv, TMPDIR=/other/disk for temporary files"
            )


def versions(python, *packages):
    """Package name -> version, of those of ``packages`` that ``python`` can see."""
    # From an own folder: Python puts the current one first on the search path.
    command = [str(python), "-c", QUERY, *packages]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=False, cwd=str(Path(__file__).parent)
    )
    return json.loads(result.stdout) if result.returncode == 0 else {}


def dotted(version):
    """(3, 10) as "3.10"."""
    return ".".join(map(str, version))


def release(version):
    """(major, minor) of a version string such as "2.11.0+cu130"."""
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])


def works(python):
    """Whether there is an interpreter that starts."""
    return python.exists() and subprocess.call([str(python), "-c", ""]) == 0


def pip_install(python, *arguments):
    """pip install, with its output only when it fails (InstallationError)."""
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, *arguments], f"pip install {' '.join(arguments)}")


def run(command, purpose):
    """Output of a command that runs silently; InstallationError with its end if it fails."""
    result = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        end = "\n".join(result.stdout.strip().splitlines()[-15:])
        raise InstallationError(f"{purpose} failed:\n{end}")
    return result.stdout


def last_line(error):
    """The last line of an error's message."""
    return str(error).splitlines()[-1]


def say(message):
    """One line of progress."""
    print(message, flush=True)


if __name__ == "__main__":
    sys.exit(main())
