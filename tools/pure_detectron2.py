"""Detectron2 as a pure-Python wheel, made on the machine that installs it.

Detectron2 is not on the package index under its own name, and its repository compiles C++ operators
that RDSNet never calls. The index does hold the source package ``pb1-detectron2`` 0.6: the Python
files of facebookresearch/detectron2 at commit 72e9dd6e (27 October 2021), byte for byte, without
the C++ sources. ``build_wheel`` turns that archive into the wheel ``detectron2 0.6+pure.python``:
the same files with the few changes listed in ``PATCHES`` and ``NUMPY_ALIASES`` (each with its
reason), a stand-in for the compiled module ``detectron2._C``, and Detectron2's own dependencies.

What works: everything that needs no compiled operator, so data loading, training, evaluation,
visualisation and the model zoo's configs. What does not: deformable convolution, rotated boxes and
the C++ version of COCOeval (Detectron2 falls back to pycocotools, with the same numbers, slower).

Standard library only, plus pip as a subprocess: this runs before anything else is installed.
"""

import base64
import csv
import hashlib
import importlib.metadata
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

SOURCE_NAME = "pb1-detectron2"
SOURCE_VERSION = "0.6"
SOURCE_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
COMMIT = "72e9dd6e"
VERSION = "0.6+pure.python"
SUMMARY = f"Detectron2's Python files at commit {COMMIT}, without compiled operators"

# Packages that Detectron2 installs from its folder projects/ (PROJECTS in its setup.py).
PROJECTS = {
    "projects/PointRend/point_rend": "detectron2/projects/point_rend",
    "projects/DeepLab/deeplab": "detectron2/projects/deeplab",
    "projects/Panoptic-DeepLab/panoptic_deeplab": "detectron2/projects/panoptic_deeplab",
}

# Detectron2's own list, with the bounds of the repository's head: the commit asks for
# black==21.4b2, which no longer runs, and for `future` and `pydot`, which only its Caffe2 export
# used. torch is not listed, as in Detectron2: the user chooses that build.
REQUIREMENTS = (
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<0.1.10",
    "omegaconf>=2.1,<2.4",
    "hydra-core>=1.1",
    "black",
)


@dataclass(frozen=True)
class Patch:
    """Replace ``old``, which must occur in the file ``path``, by ``new``."""

    path: str
    old: str
    new: str
    reason: str


PATCHES = (
    Patch(
        "detectron2/export/__init__.py",
        "from .api import *\n",
        "try:\n    from .api import *\nexcept ImportError:  # Caffe2\n    pass\n",
        "torch no longer contains Caffe2; detectron2.utils.analysis needs the rest.",
    ),
    Patch(
        "detectron2/data/transforms/transform.py",
        "interp=Image.LINEAR",
        "interp=Image.BILINEAR",
        "Pillow 10 removed the alias LINEAR of the filter BILINEAR.",
    ),
    Patch(
        "detectron2/model_zoo/model_zoo.py",
        "import pkg_resources\n",
        "",
        "setuptools 82 removed pkg_resources.",
    ),
    Patch(
        "detectron2/model_zoo/model_zoo.py",
        "pkg_resources.resource_filename(\n"
        '        "detectron2.model_zoo", os.path.join("configs", config_path)\n'
        "    )",
        'os.path.join(os.path.dirname(__file__), "configs", config_path)',
        "The same path without pkg_resources.",
    ),
    Patch(
        "detectron2/evaluation/fast_eval_api.py",
        "from detectron2 import _C\n",
        "from detectron2._C import COCOevalEvaluateImages  # there is none: ImportError\n",
        "COCOeval_opt is C++: importing it has to fail, not an evaluation later on.",
    ),
    Patch(
        "detectron2/evaluation/coco_evaluation.py",
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
        "try:\n"
        "    from detectron2.evaluation.fast_eval_api import COCOeval_opt\n"
        "except ImportError:\n"
        "    COCOeval_opt = COCOeval\n",
        "The fallback to pycocotools that later versions of Detectron2 have.",
    ),
)

# numpy 1.24 removed these aliases of Python's own types (np.bool came back in 2.0 as another type).
NUMPY_ALIASES = re.compile(r"\bnp\.(bool|float|int|str)\b")

STAND_IN = f'''"""Stand-in for the compiled operators of Detectron2 in a pure-Python installation.

Written by tools/install_detectron2.py of rdsnet; not part of Detectron2. Detectron2's modules
import ``_C`` when they are loaded but call it only for deformable convolution, rotated boxes and
the C++ COCOeval. Asking for one of these raises an AttributeError (an ImportError in a ``from``
import) that names the operator and the remedy.
"""

_NO_COMPILER = "none: pure-Python installation {VERSION}"


def get_compiler_version():
    return _NO_COMPILER


def get_cuda_version():
    return _NO_COMPILER


def has_cuda():
    return False


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(
        f"this pure-Python Detectron2 has no compiled operators: {{name}}. To have them, install "
        "Detectron2 from its repository (facebookresearch/detectron2), which compiles them."
    )
'''


def download_source(folder: Path) -> bytes:
    """The source archive, fetched into ``folder`` by this environment's pip; its hash is checked.

    pip checks the hash before it looks into the archive. Then it runs the archive's ``setup.py`` to
    read its metadata, which imports torch: hence ``--no-build-isolation``, and torch has to be
    installed. Nothing is compiled or installed.

    Raises:
        RuntimeError: pip could not get the archive; the message holds the end of pip's output.
    """
    requirements = folder / "source.txt"
    requirements.write_text(f"{SOURCE_NAME}=={SOURCE_VERSION} --hash=sha256:{SOURCE_SHA256}\n")
    download = ["download", "--quiet", "--no-deps", "--no-build-isolation", "--require-hashes"]
    download += [f"--no-binary={SOURCE_NAME}", f"--dest={folder}", f"--requirement={requirements}"]
    result = run_pip(*download)
    if result.returncode != 0 and _pip_version() >= (26, 3):
        # From 26.3 on pip refuses any package of the index whose metadata names a dependency by
        # URL. Here it is `panopticapi` in the extra "all", which nobody installs. We only want the
        # archive, so a slightly older pip in a scratch folder fetches it, hash check included.
        scratch = folder / "pip"
        result = run_pip("install", "--quiet", f"--target={scratch}", "pip>=23,<26.3")
        if result.returncode == 0:
            result = run_pip(*download, pip=[sys.executable, str(scratch / "pip")])
    archives = sorted(folder.glob("*.tar.gz"))
    if result.returncode != 0 or not archives:
        raise RuntimeError(
            f"pip could not download {SOURCE_NAME} {SOURCE_VERSION}. The end of its output:\n"
            f"{last_lines(result.stdout)}"
        )
    return check_hash(archives[0].read_bytes())


def check_hash(archive: bytes) -> bytes:
    """``archive`` itself; ValueError if it is not the one this module was written for."""
    digest = hashlib.sha256(archive).hexdigest()
    if digest != SOURCE_SHA256:
        raise ValueError(
            f"The archive of {SOURCE_NAME} {SOURCE_VERSION} has sha256 {digest}, expected "
            f"{SOURCE_SHA256}. It was altered on its way or at its source: it is not used."
        )
    return archive


def read_source(archive: bytes) -> dict[str, str]:
    """Text files to install (path inside the wheel -> content) from the source archive."""
    files = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar.getmembers():
            if not member.isfile():
                continue
            path = str(PurePosixPath(*PurePosixPath(member.name).parts[1:]))  # drop "name-version/"
            target = _target(path)
            if target:
                files[target] = tar.extractfile(member).read().decode("utf-8")
    return files


def _target(path: str) -> str | None:
    """Place in the wheel of a file of the archive, or None if it is not to be installed."""
    if path == "LICENSE" or path.startswith("detectron2/"):
        return path
    for source, target in PROJECTS.items():
        if path.startswith(source + "/"):
            return target + path[len(source) :]
    return None


def patch(files: dict[str, str]) -> dict[str, str]:
    """``files`` with every change made; each changed file says so in its last lines.

    Raises:
        ValueError: a place that a patch changes is not there.
    """
    patched = dict(files)
    for change in PATCHES:
        if change.old not in patched.get(change.path, ""):
            raise ValueError(
                f"{change.path} does not contain {change.old!r}: this is not the Detectron2 commit "
                f"{COMMIT} that the patches of {Path(__file__).name} were written for."
            )
        patched[change.path] = patched[change.path].replace(change.old, change.new)
    for path, text in patched.items():
        if path.endswith(".py"):
            text = NUMPY_ALIASES.sub(r"\1", text)
        if text != files[path]:
            # The licence (Apache-2.0, section 4b) asks for a notice in every changed file.
            text += "\n# Changed from the original by tools/install_detectron2.py of rdsnet.\n"
        patched[path] = text
    patched["detectron2/_C.py"] = STAND_IN
    return patched


def write_wheel(files: dict[str, str], folder: Path) -> Path:
    """Write ``files`` as the wheel ``detectron2 0.6+pure.python`` into ``folder``; its path."""
    info = f"detectron2-{VERSION}.dist-info"
    metadata = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {VERSION}",
        f"Summary: {SUMMARY}",
        "License: Apache-2.0",
        "Requires-Python: >=3.7",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS),
        "",
        f"{SUMMARY}: made by tools/install_detectron2.py of rdsnet from the source package",
        f"{SOURCE_NAME} {SOURCE_VERSION}. Deformable convolution and rotated boxes are missing.",
        "",
    ]
    tag = ["Wheel-Version: 1.0", "Generator: rdsnet", "Root-Is-Purelib: true", "Tag: py3-none-any"]
    contents = {path: text for path, text in files.items() if path != "LICENSE"}
    if "LICENSE" in files:
        contents[f"{info}/LICENSE"] = files["LICENSE"]
    contents[f"{info}/METADATA"] = "\n".join(metadata)
    contents[f"{info}/WHEEL"] = "\n".join([*tag, ""])

    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for path, text in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        rows.writerow([path, f"sha256={digest.decode()}", len(text.encode())])
    rows.writerow([f"{info}/RECORD", "", ""])
    contents[f"{info}/RECORD"] = record.getvalue()

    wheel = folder / f"detectron2-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in contents.items():
            archive.writestr(path, text.encode())
    return wheel


def build_wheel(folder: Path) -> Path:
    """Download, check, patch and pack: the path of the wheel in ``folder``."""
    with tempfile.TemporaryDirectory() as scratch:
        archive = download_source(Path(scratch))
    return write_wheel(patch(read_source(archive)), folder)


def run_pip(*arguments: str, pip: list[str] | None = None) -> subprocess.CompletedProcess:
    """Run this environment's pip (or the command ``pip``); its output is in ``stdout``."""
    return run([*(pip or [sys.executable, "-m", "pip"]), "--disable-pip-version-check", *arguments])


def run(command: list[str], **options) -> subprocess.CompletedProcess:
    """Run ``command`` and keep what it prints, errors included, in ``stdout``."""
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **options,
    )


def last_lines(text: str, count: int = 15) -> str:
    """The end of a log, where its error is."""
    return "\n".join(text.strip().splitlines()[-count:])


def _pip_version() -> tuple[int, ...]:
    return tuple(int(part) for part in importlib.metadata.version("pip").split(".")[:2])
