"""setup.py, the Makefile and .ci/run, tried on small make-believe checkouts."""

import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def write(root: Path, *files: str) -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with one project, YOLACT, and one that only has scripts."""
    root = tmp_path / "checkout"
    write(root, "rdsnet/__init__.py", "rdsnet/modeling/__init__.py", "tests/test_x.py")
    write(root, "configs/Base-RDSNet.yaml", "configs/small/a.yaml")
    write(root, "projects/YOLACT/yolact/__init__.py", "projects/YOLACT/yolact/heads/__init__.py")
    write(root, "projects/YOLACT/configs/y.yaml", "projects/YOLACT/tests/__init__.py")
    write(root, "projects/Scripts/README.md", "projects/Scripts/train.py")
    (root / "rdsnet/projects").mkdir()
    shutil.copy(ROOT / "rdsnet/projects/__init__.py", root / "rdsnet/projects")
    shutil.copy(ROOT / "setup.py", root)
    return root


def setup_arguments(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    arguments: dict = {}
    monkeypatch.setattr(setuptools, "setup", arguments.update)
    monkeypatch.chdir(checkout)
    runpy.run_path("setup.py")
    return arguments


def test_projects_and_configs_are_installed_below_rdsnet(checkout, monkeypatch):
    arguments = setup_arguments(checkout, monkeypatch)
    assert sorted(arguments["packages"]) == [
        "rdsnet",
        "rdsnet.configs",
        "rdsnet.modeling",
        "rdsnet.projects",
        "rdsnet.projects.yolact",
        "rdsnet.projects.yolact.configs",
        "rdsnet.projects.yolact.heads",
    ]
    assert arguments["package_dir"] == {
        "rdsnet.configs": "configs",
        "rdsnet.projects.yolact": "projects/YOLACT/yolact",
        "rdsnet.projects.yolact.heads": "projects/YOLACT/yolact/heads",
        "rdsnet.projects.yolact.configs": "projects/YOLACT/configs",
    }


def test_only_projects_that_are_there_get_an_entry_point(checkout, monkeypatch):
    found = setup_arguments(checkout, monkeypatch)["entry_points"]
    assert found["rdsnet.projects"] == ["yolact = rdsnet.projects.yolact:add_yolact_config"]
    assert found["rdsnet.models"] == []
    assert found["console_scripts"] == ["rdsnet = rdsnet.cli:main"]


def test_a_project_with_a_model_gets_an_entry_point_and_brings_its_files(checkout, monkeypatch):
    write(checkout, "projects/Nuclei/nuclei/__init__.py")
    arguments = setup_arguments(checkout, monkeypatch)
    assert arguments["entry_points"]["rdsnet.models"] == ["nuclei = rdsnet.projects.nuclei"]
    assert arguments["package_data"]["rdsnet.projects.nuclei"] == ["*.pth", "*.md"]


def test_setup_works_where_torch_cannot_be_imported(checkout):
    code = "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['setup.py', '--name'];"
    code += "runpy.run_path('setup.py', run_name='__main__')"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "rdsnet"


def import_project(root: Path) -> subprocess.CompletedProcess:
    code = "import rdsnet.projects.yolact.heads as m; print(m.__file__)"
    command = [sys.executable, "-S", "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def test_checkout_imports_projects_from_their_folders(checkout: Path):
    expected = checkout / "projects/YOLACT/yolact/heads/__init__.py"
    assert import_project(checkout).stdout.strip() == str(expected)


def test_installed_package_ignores_a_folder_named_projects_beside_it(checkout: Path):
    (checkout / "setup.py").unlink()  # as in site-packages
    assert "No module named 'rdsnet.projects.yolact'" in import_project(checkout).stderr


def build_wheel(folder: Path, weights: bytes | None = None) -> Path:
    """The wheel of this checkout without compiled operators; of other ``weights`` if given."""
    source = folder / "source"  # a copy, since building writes into the folder
    skipped = shutil.ignore_patterns(
        ".*", "build", "output", "*.egg-info", "datasets", "__pycache__"
    )
    shutil.copytree(ROOT, source, ignore=skipped)
    if weights is not None:
        (source / "projects/Nuclei/nuclei/nuclei.pth").write_bytes(weights)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", source],
        env={**os.environ, "RDSNET_DISABLE_OPS": "1"},  # not about the compiled operators
        check=True,
    )
    shutil.rmtree(source)
    return next(folder.glob("rdsnet-*.whl"))


@pytest.mark.slow
def test_installed_wheel_has_its_model_and_predicts_without_the_checkout(tmp_path: Path):
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    wheel = build_wheel(tmp_path)
    subprocess.run([*pip, "--no-deps", "--no-index", f"--target={site}", wheel], check=True)
    Image.new("RGB", (64, 48)).save(tmp_path / "dark.png")

    def rdsnet(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "rdsnet.cli", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert f"{site}/rdsnet/projects/nuclei/nuclei.pth" in rdsnet("models")
    rdsnet("predict", "--weights", "nuclei", "--input", "dark.png", "--output", "out")
    assert (tmp_path / "out/overlays/dark.png").is_file()
    code = "import rdsnet.cli, rdsnet.projects.yolact as p; rdsnet.get_cfg(); print(p.__file__)"
    command, environment = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(site)}
    said = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)
    assert Path(said.splitlines()[-1]).is_relative_to(site)


@pytest.mark.slow
def test_wheel_holds_every_config_with_its_base(tmp_path: Path):
    shipped = ROOT / "projects/Nuclei/nuclei"
    with zipfile.ZipFile(build_wheel(tmp_path, weights=b"weights")) as wheel:
        wheel.extractall(tmp_path / "site")
    installed = tmp_path / "site/rdsnet"

    assert (installed / "projects/nuclei/nuclei.pth").read_bytes() == b"weights"
    card = (installed / "projects/nuclei/model_card.md").read_text()
    assert card == (shipped / "model_card.md").read_text()

    bases = len(list(ROOT.glob("configs/**/*.yaml")))
    assert bases > 0
    assert len(list((installed / "configs").rglob("*.yaml"))) == bases
    with_package = [p for p in ROOT.glob("projects/*/*/__init__.py") if p.parent.name != "tests"]
    for package in with_package:
        there = {p.name for p in package.parents[1].glob("configs/**/*.yaml")}
        configs = installed / "projects" / package.parent.name / "configs"
        assert {p.name for p in configs.rglob("*.yaml")} == there
    for config in installed.rglob("*.yaml"):
        base = (yaml.load(config.read_text(), yaml.BaseLoader) or {}).get("_BASE_")
        for name in [base] if isinstance(base, str) else base or []:
            assert (config.parent / name).is_file(), f"{config} builds on {name}"


# The compiled operators


def build_operators(checkout: Path, **environment: str) -> tuple[bool, str]:
    """Whether setup.py built a library from one small source, and what it said."""
    for name in ("cpu/answer.cpp", "cuda/kernel.cu"):
        write(checkout, f"rdsnet/ops/csrc/{name}")
    (checkout / "rdsnet/ops/csrc/cpu/answer.cpp").write_text("int answer() { return 42; }\n")
    kept = {k: v for k, v in os.environ.items() if k not in ("FORCE_CUDA", "RDSNET_DISABLE_OPS")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "setup.py", "build_ext", "--inplace"],
        cwd=checkout,
        env={**kept, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return any((checkout / "rdsnet").glob("_C*.so")), done.stdout


needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@needs_compiler
def test_missing_toolkit_does_not_matter_where_cuda_is_not_wanted(checkout, tmp_path):
    built, said = build_operators(
        checkout, CUDA_HOME=str(tmp_path / "nowhere"), CUDA_VISIBLE_DEVICES=""
    )
    assert built and "were built for the CPU" in said and "not built" not in said


@needs_compiler
def test_broken_nvcc_leaves_the_operators_for_the_cpu(checkout, tmp_path):
    toolkit = tmp_path / "cuda"
    write(toolkit, "include/cuda_runtime.h", "bin/nvcc", "lib64/libcudart.so")
    (toolkit / "bin/nvcc").write_text("#!/bin/sh\necho nvcc is broken >&2\nexit 1\n")
    (toolkit / "bin/nvcc").chmod(0o755)
    built, said = build_operators(
        checkout, FORCE_CUDA="1", CUDA_HOME=str(toolkit), TORCH_CUDA_ARCH_LIST="8.0"
    )
    assert built
    assert "the CUDA kernels were not built" in said and "nvcc" in said
    assert said.splitlines()[-1] == "rdsnet: the compiled operators were built for the CPU"


@pytest.mark.slow
@needs_compiler
def test_toolkit_that_is_not_there_is_named(checkout, tmp_path):
    built, said = build_operators(checkout, FORCE_CUDA="1", CUDA_HOME=str(tmp_path / "nowhere"))
    assert built and "were built for the CPU" in said
    assert "no CUDA toolkit was found: set CUDA_HOME" in said and f"{tmp_path / 'nowhere'}" in said


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["/bin/false", "/no/such/compiler"])
def test_broken_compiler_leaves_the_definitions(checkout, compiler):
    built, said = build_operators(checkout, CXX=compiler, CC=compiler, FORCE_CUDA="1")
    assert not built
    assert "the compiled operators were not built" in said
    assert "their PyTorch definitions will be used" in said.splitlines()[-1]


# Makefile and .ci/run


def make(*arguments: str) -> int:
    return subprocess.run(["make", "-C", str(ROOT), *arguments], capture_output=True).returncode


@pytest.mark.parametrize(("stamp_time", "status"), [(2**31 - 1, 0), (1, 1)])
def test_environment_is_remade_only_when_older_than_its_sources(stamp_time, status, tmp_path):
    stamp = tmp_path / ".rdsnet-installed"
    stamp.touch()
    os.utime(stamp, (stamp_time, stamp_time))
    assert make("--question", "env", f"VENV={tmp_path}") == status


def test_make_help_lists_the_targets():
    text = subprocess.check_output(["make", "--no-print-directory", "-C", ROOT, "help"], text=True)
    listed = {line.split()[0] for line in text.splitlines()}
    assert {"env", "demo", "test", "test-slow", "test-processors", "lint", "help"} <= listed


CI_TARGETS = ("env", "lint", "cuda-build", "test", "test-numeric", "test-slow")


def run_ci(tmp_path: Path, failing: str) -> tuple[int, list[str]]:
    """Exit status of .ci/run, and its calls of a ``make`` that fails at one target."""
    checkout = tmp_path / "checkout"
    (tmp_path / "shared/data").mkdir(parents=True)
    shutil.copytree(ROOT / ".ci", checkout / ".ci")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "make").write_text(
        f'#!/bin/sh\necho "$1 $PWD $RDSNET_DATA" >> {tmp_path}/calls\n[ "$1" != "{failing}" ]\n'
    )
    (programs / "make").chmod(0o755)
    (programs / "chromium").symlink_to("/bin/true")  # else it would be installed
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("RDSNET_DATA", None)
    status = subprocess.run([checkout / ".ci/run"], env=environment, capture_output=True).returncode
    return status, (tmp_path / "calls").read_text().splitlines()


def test_ci_runs_everything_in_the_checkout_with_the_data_beside_it(tmp_path: Path):
    status, calls = run_ci(tmp_path, failing="nothing")
    assert status == 0
    place = f"{tmp_path}/checkout {tmp_path}/shared/data"
    assert calls == [f"{target} {place}" for target in CI_TARGETS]


@pytest.mark.parametrize("failing", CI_TARGETS)
def test_ci_fails_and_stops_at_the_first_failure(failing, tmp_path):
    status, calls = run_ci(tmp_path, failing)
    assert status != 0
    assert calls[-1].split()[0] == failing
