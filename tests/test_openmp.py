"""What the commands tell OpenMP before torch is loaded, and that the user has the last word."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.hanging import HANG

from rdsnet import openmp

ROOT = Path(__file__).resolve().parents[1]
VISIBLE = 16


@pytest.fixture(autouse=True)
def before_torch(monkeypatch):
    """As in a process that has not loaded torch, on a machine with 16 CPUs."""
    monkeypatch.setattr(openmp, "_set_here", {})
    monkeypatch.setattr(openmp, "_visible_cpus", lambda: VISIBLE)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "torch")


def machine(folder, cgroup, files):
    """A file system with /proc/self/cgroup and these files in /sys/fs/cgroup."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, text in files.items():
        path = folder / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


V1 = "9:cpuset:/job\n4:cpu,cpuacct:/job/step\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "cpus"),
    [
        ("0::/\n", {"cpu.max": "300000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "max 100000\n"}, VISIBLE),
        ("0::/\n", {}, VISIBLE),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),  # half a CPU
        ("0::/\n", {"cpu.max": "350000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, VISIBLE),
        # The limit of a group holds for those inside it.
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2),
        ("0::/a/b\n", {"a/cpu.max": "700000 100000\n", "a/b/cpu.max": "500000 100000\n"}, 5),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, VISIBLE),
        (V1, {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        (
            V1,
            {
                "cpu/job/step/cpu.cfs_quota_us": "20000\n",
                "cpu/job/step/cpu.cfs_period_us": "10000\n",
            },
            2,
        ),
    ],
)
def test_a_containers_limit_is_the_number_of_threads(tmp_path, cgroup, files, cpus):
    system, environ = machine(tmp_path, cgroup, files), {}
    assert openmp.usable_cpus(system) == cpus
    openmp.prepare(environ, system)
    assert environ.get("OMP_NUM_THREADS") == (None if cpus == VISIBLE else str(cpus))


def test_where_there_are_no_control_groups_all_cpus_are_used(tmp_path):
    assert openmp.usable_cpus(tmp_path) == VISIBLE


def test_threads_hand_the_cpu_back_soon(tmp_path):
    environ = {"HOME": "/home/me"}
    openmp.prepare(environ, tmp_path)
    assert environ.pop("HOME") == "/home/me"
    assert environ == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
    text = openmp.description(environ)
    assert "OMP_WAIT_POLICY=PASSIVE, GOMP_SPINCOUNT=1000, set by the rdsnet command" in text
    assert "as you have set it" not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OMP_WAIT_POLICY", "ACTIVE"),
        ("GOMP_SPINCOUNT", "INFINITY"),
        ("KMP_BLOCKTIME", "200"),
        ("KMP_LIBRARY", "turnaround"),
    ],
)
def test_what_the_user_says_about_waiting_holds(tmp_path, name, value):
    environ = {name: value}
    openmp.prepare(environ, tmp_path)
    assert environ == {name: value}
    assert openmp.description(environ) == f"{name}={value} as you have set it"


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_what_the_user_says_about_the_number_holds(tmp_path, name):
    environ = {name: "7"}
    openmp.prepare(environ, machine(tmp_path, "0::/\n", {"cpu.max": "200000 100000\n"}))
    assert {key: environ[key] for key in openmp._ABOUT_NUMBER if key in environ} == {name: "7"}
    assert f"{name}=7 as you have set it" in openmp.description(environ)


def test_once_torch_is_loaded_nothing_is_set_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", sys)
    environ = {}
    openmp.prepare(environ, tmp_path)
    assert environ == {}
    assert "was not set before torch was loaded" in openmp.description(environ)


def run(arguments, **environ):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**clean, **environ},
        capture_output=True,
        text=True,
        timeout=HANG,
    )


SHOW = "import os; print([os.environ.get(n) for n in ('OMP_WAIT_POLICY', 'OMP_NUM_THREADS')])"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"OMP_NUM_THREADS": "3"}, ["PASSIVE", "3"]),
        ({"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", "3"]),
    ],
)
def test_commands_and_train_net_set_it_before_torch_is_there(environ, expected):
    """Every one of them: it is done where none has begun."""
    command = f"from rdsnet.cli import main; main(['models']); {SHOW}"
    script = f"import runpy; runpy.run_path('train_net.py', run_name='imported'); {SHOW}"
    for code in (command, script):
        result = run(["-c", code], **environ)
        assert result.stdout.splitlines()[-1] == str(expected), result.stderr
