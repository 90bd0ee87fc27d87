"""Install Detectron2 into the environment of the Python that runs this script.

    python tools/install_detectron2.py [--source auto|repository|pure]

``auto`` keeps a Detectron2 that is already installed. Otherwise it builds the repository
(facebookresearch/detectron2, with compiled operators), and when that cannot be reached or built,
it installs the same Python files without compiled operators (see ``pure_detectron2.py``), which is
all RDSNet needs. ``repository`` and ``pure`` install that one, whatever is there.

torch has to be installed first; the versions are the user's choice.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pure_detectron2
from pure_detectron2 import last_lines, run, run_pip

REPOSITORY = "https://github.com/facebookresearch/detectron2"
REACH_TIMEOUT = 20  # seconds
# Detectron2's model_zoo imports pkg_resources, gone in setuptools 82; recent torch wants >= 77.0.3.
SETUPTOOLS = "setuptools>=77.0.3,<82"

# Run in a fresh interpreter: the parts of Detectron2 that RDSNet builds on.
CHECK = """
import detectron2.data, detectron2.engine, detectron2.evaluation, detectron2.modeling
from detectron2 import model_zoo
model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
"""


def main(arguments: list[str] | None = None) -> int:
    """Command line entry; the exit status is 0 when a working Detectron2 is installed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--source", choices=["auto", "repository", "pure"], default="auto")
    parser.add_argument(
        "--revision", default="main", help="branch, tag or commit of the repository (main)"
    )
    options = parser.parse_args(arguments)

    if importlib.util.find_spec("torch") is None:
        return _fail(
            f"torch is not installed for {sys.executable}. Detectron2 and RDSNet need it first: "
            'pip install "torch>=2.6" torchvision'
        )
    if importlib.util.find_spec("pip") is None:
        return _fail(f"{sys.executable} has no pip. Add it with: {sys.executable} -m ensurepip")

    if options.source == "auto" and importlib.util.find_spec("detectron2") is not None:
        chosen = f"kept the one that was installed: {describe_installed()}"
    else:
        try:
            chosen = install(options.source, options.revision)
        except (RuntimeError, ValueError) as error:
            return _fail(str(error))

    problem = check_installed()
    if problem:
        return _fail(
            f"Detectron2 ({chosen}) does not work with this environment:\n{problem}\n"
            "To replace it by the pure-Python one: "
            f"{sys.executable} {Path(__file__)} --source pure"
        )
    _say(f"Detectron2: {chosen}")
    return 0


def install(source: str, revision: str) -> str:
    """Install from ``source`` and say in one line what was taken and why.

    Raises:
        RuntimeError: nothing could be installed.
        ValueError: the pure-Python source is not the expected one.
    """
    # Both ways run a setup.py of Detectron2 in this environment: it imports torch.
    result = run_pip("install", "--quiet", SETUPTOOLS)
    if result.returncode != 0:
        raise RuntimeError(f"pip could not install {SETUPTOOLS}:\n{last_lines(result.stdout)}")
    if source == "pure":
        return f"{install_pure()} (asked for with --source pure)"
    obstacle = obstacle_to_building()
    if obstacle is None:
        _say(f"Building Detectron2 from {REPOSITORY} ({revision}): about three minutes ...")
        obstacle = build_repository(revision)
    if obstacle is None:
        return f"built from {REPOSITORY} ({revision}), with compiled operators"
    if source == "repository":
        raise RuntimeError(f"Detectron2's repository cannot be used: {obstacle}")
    _say(f"Detectron2's repository is not used: {obstacle}")
    return f"{install_pure()}; taken because {obstacle.splitlines()[0]}"


def obstacle_to_building() -> str | None:
    """Why the repository cannot be built here, as far as that shows in seconds; None: worth a try.

    The first line is the reason, further lines are details.
    """
    if shutil.which("git") is None:
        return "git is not installed"
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler})"
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}  # never ask for a password
    try:
        result = run(
            ["git", "ls-remote", REPOSITORY, "HEAD"], timeout=REACH_TIMEOUT, env=environment
        )
    except subprocess.TimeoutExpired:
        return f"{REPOSITORY} did not answer within {REACH_TIMEOUT} seconds"
    if result.returncode != 0:
        return f"{REPOSITORY} cannot be reached\n{last_lines(result.stdout, 3)}"
    return None


def build_repository(revision: str) -> str | None:
    """Build and install the repository; None if it worked, else what went wrong."""
    source = f"detectron2 @ git+{REPOSITORY}@{revision}"
    result = run_pip("install", "--no-build-isolation", source)
    if result.returncode == 0:
        return None
    descriptor, log = tempfile.mkstemp(prefix="detectron2-build-", suffix=".log")
    with open(descriptor, "w") as file:
        file.write(result.stdout)
    return f"the build failed (whole log: {log})\n{last_lines(result.stdout)}"


def install_pure() -> str:
    """Make and install the pure-Python wheel; one line that says what it is.

    Raises:
        RuntimeError: it could not be downloaded or installed.
        ValueError: the download is not the expected one.
    """
    _say("Installing Detectron2's Python files without compiled operators: under a minute ...")
    with tempfile.TemporaryDirectory() as folder:
        wheel = pure_detectron2.build_wheel(Path(folder))
        # Two steps: dependencies that are there stay as they are, the wheel itself is replaced.
        for options in ([], ["--force-reinstall", "--no-deps"]):
            result = run_pip("install", "--quiet", *options, str(wheel))
            if result.returncode != 0:
                raise RuntimeError(
                    f"pip could not install {wheel.name}:\n{last_lines(result.stdout)}"
                )
    return f"{pure_detectron2.VERSION}, {pure_detectron2.SUMMARY}"


def describe_installed() -> str:
    """Version and folder of the installed Detectron2, found without importing it."""
    spec = importlib.util.find_spec("detectron2")
    place = Path(spec.origin).parent if spec.origin else list(spec.submodule_search_locations)[0]
    try:
        version = importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        version = "of unknown version"
    return f"{version} in {place}"


def check_installed() -> str | None:
    """None if the installed Detectron2 can be imported, else the last line of the error."""
    # Not in the caller's folder: a clone of Detectron2 there would be imported instead.
    result = run([sys.executable, "-W", "ignore", "-c", CHECK], cwd=Path(__file__).parent)
    return None if result.returncode == 0 else last_lines(result.stdout, 1)


def _say(message: str) -> None:
    print(message, flush=True)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
