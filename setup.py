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

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "rdsnet" / "ops" / "csrc"

# Projects are installed as rdsnet.projects.<package>, as Detectron2 installs its own. Each names
# the function that adds its config keys; rdsnet.get_cfg() finds them by the entry point group
# "rdsnet.projects".
PROJECT_CONFIG_FUNCTIONS = {
    "authors_compat": "add_authors_compat_config",
    "fcos": "add_fcos_config",
    "nuclei": "add_nuclei_config",
    "yolact": "add_yolact_config",
}


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
    """The command ``rdsnet``, and the projects that are there and have config keys."""
    projects = [
        f"{name} = rdsnet.projects.{name}:{PROJECT_CONFIG_FUNCTIONS[name]}"
        for name in find_projects()
        if name in PROJECT_CONFIG_FUNCTIONS
    ]
    return {"console_scripts": ["rdsnet = rdsnet.cli:main"], "rdsnet.projects": projects}


class BuildOperators(build_ext):
    """Builds rdsnet._C where torch and a compiler are there; never fails the installation.

    With FORCE_CUDA=1, or where torch sees a GPU, the CUDA kernels are built too; that needs the
    CUDA toolkit (CUDA_HOME). torch is imported here and not before.
    """

    def run(self) -> None:
        try:
            command = self.torch_command()
            command.run()
        except Exception as error:  # whatever it is, rdsnet works without
            reason = str(error).strip() or type(error).__name__
            print(
                f"rdsnet: the compiled operators were not built: {reason}\n"
                "rdsnet: their PyTorch definitions will be used; 'rdsnet doctor' shows which run."
            )

    def torch_command(self) -> build_ext:
        """PyTorch's command for the same job, with the settings of this one."""
        if os.environ.get("RDSNET_DISABLE_OPS", "0") not in ("", "0"):
            raise RuntimeError("RDSNET_DISABLE_OPS is set")
        if find_spec("torch") is None:
            raise RuntimeError(
                "torch cannot be imported here; install it first, then rdsnet with "
                "'pip install --no-build-isolation'"
            )
        import torch
        from torch.utils import cpp_extension

        forced = os.environ.get("FORCE_CUDA", "0") not in ("", "0")
        cuda_sources = [str(x.relative_to(ROOT)) for x in sorted(CSRC.glob("cuda/*.cu"))]
        cuda = bool(cuda_sources) and (forced or torch.cuda.is_available())
        if cuda and cpp_extension.CUDA_HOME is None:
            if forced:
                raise RuntimeError("FORCE_CUDA=1, but no CUDA toolkit was found: set CUDA_HOME")
            print("rdsnet: no CUDA toolkit found (CUDA_HOME): the operators are built for CPU only")
            cuda = False
        make = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
        (declared,) = self.extensions
        # The inner loops are compiled for AVX2 whatever the flags, and chosen at run time.
        flags = ["-O3", "-g0", "-Wno-psabi"]
        if sys.platform.startswith("linux"):
            flags.append("-fopenmp")
        built = make(
            declared.name,
            sources=declared.sources + (cuda_sources if cuda else []),
            extra_compile_args={"cxx": flags, "nvcc": ["-O3"]},
            extra_link_args=["-fopenmp"] if "-fopenmp" in flags else [],
        )
        # Loaded with torch.ops.load_library: nothing in it knows Python.
        for name in ("include_dirs", "define_macros", "library_dirs", "libraries", "language"):
            setattr(declared, name, getattr(built, name))
        declared.libraries = [name for name in declared.libraries if name != "torch_python"]
        declared.sources = built.sources
        declared.extra_compile_args = built.extra_compile_args
        declared.extra_link_args = built.extra_link_args
        command = cpp_extension.BuildExtension(self.distribution)
        vars(command).update(vars(self))
        return command


def compiled_operators() -> dict:
    """``ext_modules`` and ``cmdclass`` for the C++/CUDA operators."""
    sources = sorted(CSRC.glob("*.cpp")) + sorted(CSRC.glob("cpu/*.cpp"))
    if not sources or sys.platform == "win32":  # the inner loops need GCC or Clang
        return {}
    files = [source.relative_to(ROOT).as_posix() for source in sources]
    headers = [x.relative_to(ROOT).as_posix() for x in sorted(CSRC.rglob("*.h"))]
    operators = Extension("rdsnet._C", files, depends=headers, optional=True)
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
    package_data={"": ["*.yaml", "*/*.yaml", "*/*/*.yaml"]},
    install_requires=[
        # detectron2 belongs here: see the top of this file.
        "torch>=2.6",
        "torchvision",
        "fvcore",
        "pycocotools",
        "opencv-python",
        "numpy",
        "Pillow",
        "tqdm",
        "matplotlib",
        "tabulate",
        "shapely",  # Detectron2 cuts polygons with it when INPUT.CROP is enabled
    ],
    extras_require={"test": ["hypothesis", "pytest", "ruff"]},
    entry_points=entry_points(),
    **compiled_operators(),
)
