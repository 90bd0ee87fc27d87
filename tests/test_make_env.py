"""The installer of the environment, tools/make_env.py: what it refuses, shares and falls back to.

No network, and no installation into the running environment.
"""

import json
import subprocess
import sys
from pathlib import Path

import make_env
import pytest


@pytest.mark.parametrize("version", [(3, 10, 0), (3, 13, 1), (4, 0)])
def test_python_from_3_10_on_is_accepted(version):
    make_env.check_python(version, "python3")


@pytest.mark.parametrize("version", [(3, 9, 18), (2, 7, 18)])
def test_older_python_gets_a_remedy(version):
    with pytest.raises(make_env.InstallationError, match="newer.*make env PYTHON=python3.12"):
        make_env.check_python(version, "python3")


def test_folder_that_is_no_environment_is_not_cleared(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(make_env.InstallationError, match="is not a Python environment"):
        make_env.create(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_full_disk_is_named_before_anything_is_loaded(monkeypatch, tmp_path: Path):
    usage = make_env.shutil.disk_usage(tmp_path)._replace(free=int(2.5e9))
    monkeypatch.setattr(make_env.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(make_env, "pip_install", lambda *_: pytest.fail("pip was run"))
    monkeypatch.setattr(make_env, "versions", lambda *_: {})
    with pytest.raises(make_env.InstallationError, match=r"has 2\.5 GB left.*VENV=") as caught:
        make_env.install_torch(tmp_path / "venv" / "bin" / "python")
    assert str(tmp_path / "venv") in str(caught.value)


def test_disk_that_fills_up_is_not_taken_for_missing_versions(monkeypatch, tmp_path: Path):
    tried = []

    def pip_install(*arguments):
        tried.append(arguments)
        raise make_env.InstallationError("ERROR: [Errno 28] No space left on device")

    monkeypatch.setattr(make_env, "pip_install", pip_install)
    monkeypatch.setattr(make_env, "check_space", lambda _: None)
    monkeypatch.setattr(make_env, "versions", lambda *_: {})
    with pytest.raises(make_env.InstallationError, match="No space left"):
        make_env.install_torch(tmp_path / "bin" / "python")
    assert len(tried) == 1


@pytest.mark.parametrize(
    ("torch", "in_venv", "shared", "said"),
    [
        (None, False, False, "PyTorch will be installed"),
        ("2.11.0+cu130", False, True, "uses torch 2.11.0+cu130"),
        ("2.5.1", False, False, "too old"),
        ("2.11.0", True, False, "make env VENV=/envs/mine"),
    ],
)
def test_environment_shares_a_usable_torch_only(
    torch, in_venv, shared, said, monkeypatch, tmp_path, capsys
):
    commands = []
    monkeypatch.setattr(make_env, "run", lambda command, purpose: commands.append(command))
    monkeypatch.setattr(make_env, "versions", lambda *_: {"torch": torch} if torch else {})
    monkeypatch.setattr(make_env.sys, "prefix", "/envs/mine" if in_venv else sys.base_prefix)
    make_env.create(tmp_path / "env")
    assert ("--system-site-packages" in commands[0]) == shared
    assert said in capsys.readouterr().out


def test_constraints_give_way_where_they_cannot_be_met(monkeypatch, tmp_path, capsys):
    asked = []

    def pip_install(python, *arguments):
        asked.append(arguments)
        if any(argument.startswith("--constraint") for argument in arguments):
            raise make_env.InstallationError("pip failed:\nERROR: no torch==2.14.1")

    monkeypatch.setattr(make_env, "pip_install", pip_install)
    monkeypatch.setattr(make_env, "check_space", lambda _: None)
    monkeypatch.setattr(make_env, "run", lambda *_: None)
    monkeypatch.setattr(make_env, "versions", lambda *_: {})
    make_env.install_torch(tmp_path / "env/bin/python")
    assert asked[-1] == ("torch>=2.6", "torchvision")
    assert "ERROR: no torch==2.14.1" in capsys.readouterr().out


def test_prepared_machine_without_network_keeps_its_setuptools(monkeypatch, tmp_path, capsys):
    def pip_install(python, *arguments):
        raise make_env.InstallationError("pip failed:\nERROR: no network")

    monkeypatch.setattr(make_env, "pip_install", pip_install)
    monkeypatch.setattr(make_env, "versions", lambda *_: {"setuptools": "70.0.0"})
    make_env.install_setuptools(tmp_path / "env/bin/python")
    assert "setuptools 70.0.0: ERROR: no network" in capsys.readouterr().out
    monkeypatch.setattr(make_env, "versions", lambda *_: {})
    with pytest.raises(make_env.InstallationError, match="no network"):
        make_env.install_setuptools(tmp_path / "env/bin/python")


def test_torchvision_is_fitted_to_an_installed_torch(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(make_env, "pip_install", lambda _, *arguments: asked.append(arguments))
    monkeypatch.setattr(make_env, "run", lambda *_: None)
    monkeypatch.setattr(make_env, "versions", lambda *_: {"torch": "2.11.0+cu130"})
    make_env.install_torch(tmp_path / "env/bin/python")
    assert asked == [("torch==2.11.0+cu130", "torchvision")]


def test_versions_come_from_the_asked_interpreter():
    code = "import importlib.metadata as m, json; print(json.dumps(m.version('pytest')))"
    expected = json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert make_env.versions(sys.executable, "pytest", "no_such_package") == {"pytest": expected}
