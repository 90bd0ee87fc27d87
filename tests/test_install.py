"""The installers in tools/: which Detectron2 is taken, and what the pure-Python wheel holds.

No network and no installation into the running environment: the source archive is made up here.
"""

import base64
import csv
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import install_detectron2
import pure_detectron2
import pytest
from helpers.hanging import HANG

# As little text as the patches need, in our own words: files of a make-believe Detectron2.
SOURCE = {
    "LICENSE": "the licence\n",
    "setup.py": "raise SystemExit('never run, never installed')\n",
    "tools/train_net.py": "",
    "detectron2/__init__.py": "",
    "detectron2/untouched.py": "x = 'np.float32 np.int64 np.bool_ np.integer'\n",
    "detectron2/aliases.py": "kinds = [np.bool, np.float, np.int, np.str, np.float64]\n",
    "detectron2/data/transforms/transform.py": "def f(interp=Image.LINEAR): pass\n",
    "detectron2/evaluation/__init__.py": "",
    "detectron2/evaluation/fast_eval_api.py": "from detectron2 import _C\nCOCOeval_opt = 'C++'\n",
    "detectron2/evaluation/coco_evaluation.py": "COCOeval = 'pycocotools'\n"
    "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
    "detectron2/export/__init__.py": "from .api import *\nfrom .flatten import traced\n",
    "detectron2/export/api.py": "import caffe2\n",
    "detectron2/export/flatten.py": "traced = True\n",
    "detectron2/model_zoo/__init__.py": "from .model_zoo import get_config_file\n",
    "detectron2/model_zoo/model_zoo.py": "import os\nimport pkg_resources\n"
    "def get_config_file(config_path):\n"
    "    return pkg_resources.resource_filename(\n"
    '        "detectron2.model_zoo", os.path.join("configs", config_path)\n'
    "    )\n",
    "detectron2/model_zoo/configs/Base.yaml": "VERSION: 2\n",
    "detectron2/projects/__init__.py": "",
    "projects/PointRend/point_rend/__init__.py": "rend = 1\n",
    "projects/PointRend/train_net.py": "",
}


def archive(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"pb1-detectron2-0.6/{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    files = pure_detectron2.patch(pure_detectron2.read_source(archive(SOURCE)))
    return pure_detectron2.write_wheel(files, tmp_path)


@pytest.fixture
def unpacked(wheel: Path, tmp_path: Path) -> Path:
    with zipfile.ZipFile(wheel) as contents:
        contents.extractall(tmp_path / "site")
    return tmp_path / "site"


def run_with(site: Path, code: str) -> subprocess.CompletedProcess:
    """Run ``code`` in an interpreter that sees the unpacked wheel and no other Detectron2."""
    command = [sys.executable, "-S", "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True)


def test_archive_with_another_hash_is_refused():
    with pytest.raises(ValueError, match="has sha256 .* expected 5d2e9e51"):
        pure_detectron2.check_hash(archive(SOURCE))


def test_only_detectron2_its_projects_and_its_licence_are_taken():
    taken = pure_detectron2.read_source(archive(SOURCE))
    assert taken["detectron2/projects/point_rend/__init__.py"] == "rend = 1\n"
    assert taken["detectron2/model_zoo/configs/Base.yaml"] == "VERSION: 2\n"
    left_out = {"setup.py", "tools/train_net.py", "projects/PointRend/train_net.py"}
    assert len(taken) == len(SOURCE) - len(left_out)
    assert not left_out & set(taken)


def test_removed_numpy_aliases_become_python_types():
    patched = pure_detectron2.patch(pure_detectron2.read_source(archive(SOURCE)))
    assert patched["detectron2/aliases.py"].startswith(
        "kinds = [bool, float, int, str, np.float64]\n"
    )


def test_changed_files_say_so_and_all_others_are_identical():
    original = pure_detectron2.read_source(archive(SOURCE))
    patched = pure_detectron2.patch(original)
    changed = {path for path in original if patched[path] != original[path]}
    assert changed == {
        "detectron2/aliases.py",
        "detectron2/data/transforms/transform.py",
        "detectron2/evaluation/coco_evaluation.py",
        "detectron2/evaluation/fast_eval_api.py",
        "detectron2/export/__init__.py",
        "detectron2/model_zoo/model_zoo.py",
    }
    assert all("Changed from the original" in patched[path] for path in changed)
    assert set(patched) - set(original) == {"detectron2/_C.py"}


def test_source_without_a_patched_place_is_refused():
    other = {**SOURCE, "detectron2/data/transforms/transform.py": "interp = 2\n"}
    with pytest.raises(ValueError, match=r"transform\.py does not contain 'interp=Image\.LINEAR'"):
        pure_detectron2.patch(pure_detectron2.read_source(archive(other)))


def test_evaluation_falls_back_to_pycocotools(unpacked: Path):
    code = "from detectron2.evaluation.coco_evaluation import COCOeval_opt; print(COCOeval_opt)"
    assert run_with(unpacked, code).stdout == "pycocotools\n"
    direct = run_with(unpacked, "from detectron2.evaluation.fast_eval_api import COCOeval_opt")
    assert "ImportError" in direct.stderr


def test_export_works_without_caffe2(unpacked: Path):
    assert run_with(unpacked, "from detectron2.export import traced").returncode == 0


def test_model_zoo_finds_its_configs(unpacked: Path):
    code = "from detectron2 import model_zoo; print(model_zoo.get_config_file('Base.yaml'))"
    path = run_with(unpacked, code).stdout.strip()
    assert Path(path).read_text() == "VERSION: 2\n"


def test_missing_operator_is_named_with_the_remedy(unpacked: Path):
    result = run_with(unpacked, "from detectron2 import _C; _C.deform_conv_forward(1)")
    assert "no compiled operators: deform_conv_forward" in result.stderr
    assert "facebookresearch/detectron2" in result.stderr


def test_wheel_record_lists_every_file_with_its_hash(wheel: Path):
    with zipfile.ZipFile(wheel) as contents:
        names = set(contents.namelist())
        record_name = "detectron2-0.6+pure.python.dist-info/RECORD"
        rows = list(csv.reader(contents.read(record_name).decode().splitlines()))
        assert {row[0] for row in rows} == names
        for name, digest, size in rows:
            if name == record_name:
                continue
            data = contents.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
            assert (digest, int(size)) == (f"sha256={expected.rstrip('=')}", len(data))


def test_pip_installs_the_wheel_as_detectron2(wheel: Path, tmp_path: Path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run(
        [*pip, "--no-deps", "--no-index", f"--target={tmp_path / 'target'}", wheel], check=True
    )
    code = "import importlib.metadata as m; d = m.distribution('detectron2'); print(d.version)"
    code += "; print(d.metadata['Summary'])"
    result = run_with(tmp_path / "target", code)
    assert result.stdout.splitlines() == [
        "0.6+pure.python",
        "Detectron2's Python files at commit 72e9dd6e, without compiled operators",
    ]


# Which Detectron2 is taken


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces everything that would install something; the list of what was tried."""
    tried: list[str] = []

    def pip(*arguments: str, **_) -> subprocess.CompletedProcess:
        tried.append("pip " + " ".join(arguments))
        return subprocess.CompletedProcess(arguments, 0, stdout="")

    monkeypatch.setattr(install_detectron2, "run_pip", pip)
    monkeypatch.setattr(install_detectron2, "check_installed", lambda: None)
    monkeypatch.setattr(
        install_detectron2, "install_pure", lambda: tried.append("pure") or "0.6+pure.python"
    )
    monkeypatch.setattr(install_detectron2, "obstacle_to_building", lambda: None)
    return tried


def only_these_exist(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    real = install_detectron2.importlib.util.find_spec
    found = lambda name: real("json") if name in names else None  # noqa: E731
    monkeypatch.setattr(install_detectron2.importlib.util, "find_spec", found)


def test_installed_detectron2_is_kept(attempts, monkeypatch, capsys):
    only_these_exist(monkeypatch, "torch", "pip", "detectron2")
    assert install_detectron2.main([]) == 0
    assert attempts == []
    assert "kept the one that was installed" in capsys.readouterr().out


def test_installed_detectron2_that_does_not_work_is_reported(attempts, monkeypatch, capsys):
    only_these_exist(monkeypatch, "torch", "pip", "detectron2")
    monkeypatch.setattr(install_detectron2, "check_installed", lambda: "ImportError: libtorch")
    assert install_detectron2.main([]) == 1
    message = capsys.readouterr().err
    assert "ImportError: libtorch" in message and "--source pure" in message


def test_repository_comes_first(attempts, monkeypatch, capsys):
    only_these_exist(monkeypatch, "torch", "pip")
    assert install_detectron2.main(["--revision", "v1"]) == 0
    assert "pure" not in attempts
    assert "--no-build-isolation detectron2 @ git+" in attempts[-1]
    assert attempts[-1].endswith("/detectron2@v1")
    assert "with compiled operators" in capsys.readouterr().out


def test_unreachable_repository_gives_the_pure_one_and_the_reason(attempts, monkeypatch, capsys):
    only_these_exist(monkeypatch, "torch", "pip")
    monkeypatch.setattr(install_detectron2, "obstacle_to_building", lambda: "no network\ndetails")
    assert install_detectron2.main([]) == 0
    assert attempts[-1] == "pure"
    assert "0.6+pure.python; taken because no network" in capsys.readouterr().out.splitlines()[-1]


def test_failed_build_gives_the_pure_one_and_keeps_the_log(attempts, monkeypatch, capsys):
    only_these_exist(monkeypatch, "torch", "pip")

    def pip(*arguments: str) -> subprocess.CompletedProcess:
        failed = any("git+" in argument for argument in arguments)
        return subprocess.CompletedProcess(arguments, int(failed), stdout="vision.cpp: error\n")

    monkeypatch.setattr(install_detectron2, "run_pip", pip)
    assert install_detectron2.main([]) == 0
    assert attempts == ["pure"]
    output = capsys.readouterr().out
    log = Path(output.split("whole log: ")[1].split(")")[0])
    assert log.read_text() == "vision.cpp: error\n"
    log.unlink()


def test_repository_asked_for_is_never_replaced(attempts, monkeypatch, capsys):
    only_these_exist(monkeypatch, "torch", "pip")
    monkeypatch.setattr(install_detectron2, "obstacle_to_building", lambda: "no network")
    assert install_detectron2.main(["--source", "repository"]) == 1
    assert "pure" not in attempts
    assert "no network" in capsys.readouterr().err


def test_missing_torch_is_reported_before_anything_is_tried(attempts, monkeypatch, capsys):
    only_these_exist(monkeypatch, "pip")
    assert install_detectron2.main([]) == 1
    assert attempts == []
    assert 'pip install "torch>=2.6" torchvision' in capsys.readouterr().err


def executables(folder: Path, **scripts: str) -> str:
    folder.mkdir(exist_ok=True)
    for name, body in scripts.items():
        path = folder / name.replace("cxx", "c++")
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("programs", "reason"),
    [
        ({}, "git is not installed"),
        ({"git": ""}, "no C++ compiler"),
        ({"git": "echo could not resolve >&2; exit 128", "cxx": ""}, "resolve"),
        ({"git": f"exec /bin/sleep {HANG}", "cxx": ""}, "did not answer within 0.2 seconds"),
        ({"git": "echo 72e9dd6e HEAD", "cxx": ""}, None),
    ],
)
def test_obstacles_to_building_are_found_in_time(programs, reason, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", executables(tmp_path / "bin", **programs))
    monkeypatch.delenv("CXX", raising=False)
    hangs = "sleep" in programs.get("git", "")
    monkeypatch.setattr(install_detectron2, "REACH_TIMEOUT", 0.2 if hangs else HANG)
    found = install_detectron2.obstacle_to_building()
    assert (found is None) if reason is None else (reason in found)
