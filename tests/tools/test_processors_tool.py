"""make test-processors: which settings are run, and what is said about them."""

import subprocess
import sys

import pytest
import test_processors as tool


@pytest.fixture
def machine(monkeypatch):
    """A processor with AVX2 and no more, whose runs are recorded rather than made."""
    runs = []

    def in_effect(setting):
        lesser = setting.get("ATEN_CPU_CAPABILITY") == "default"
        isa = "SSE4.1" if setting.get("ONEDNN_MAX_CPU_ISA") == "SSE41" else "AVX2"
        threads = setting.get("OMP_NUM_THREADS", "1")
        return {"PyTorch": "DEFAULT" if lesser else "AVX2", "oneDNN": isa, "threads": threads}

    def run_tests(setting, arguments):
        runs.append((setting, arguments))
        return ("FAILED: 1 failed, 5 passed", False) if len(runs) == 3 else ("6 passed", True)

    monkeypatch.setattr(tool, "in_effect", in_effect)
    monkeypatch.setattr(tool, "run_tests", run_tests)
    return runs


def rows(printed):
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_what_is_above_the_processor_changes_nothing_and_is_not_run_again(machine, capsys):
    assert tool.main([]) == 1  # one run has failed
    results = {row[0]: row[3] for row in rows(capsys.readouterr().out)}
    assert list(results) == list(tool.SETTINGS)
    same = ("onednn-avx512", "onednn-avx2", "aten-avx2")
    assert {results[name] for name in same} == {"not run: the same as default"}
    assert results["default"] == results["two-threads"] == "6 passed"
    assert results["aten-default"] == "FAILED: 1 failed, 5 passed"
    assert len(machine) == 4


def test_settings_and_arguments_can_be_chosen(machine, capsys):
    words = ["--only", "aten-default", "default", "--numeric", "--", "tests/ops", "-x"]
    assert tool.main(words) == 0
    chosen = ["-m", "numeric and not slow", "tests/ops", "-x"]
    assert machine == [({"ATEN_CPU_CAPABILITY": "default"}, chosen), ({}, chosen)]
    first, second = rows(capsys.readouterr().out)
    assert first[1] == "ATEN_CPU_CAPABILITY=default"
    assert first[2] == "PyTorch DEFAULT, oneDNN AVX2, threads 1"
    assert second[2] == "PyTorch AVX2, oneDNN AVX2, threads 1"


def test_a_processor_without_avx2_is_not_asked_for_it(machine, monkeypatch, capsys):
    lesser = {"PyTorch": "DEFAULT", "oneDNN": "SSE4.1", "threads": "1"}
    monkeypatch.setattr(tool, "in_effect", lambda setting: dict(lesser))
    assert tool.main(["--only", "aten-avx2"]) == 0 and not machine
    assert "not run: this processor has no AVX2" in capsys.readouterr().out


def test_unknown_settings_are_refused_with_those_that_there_are(capsys):
    with pytest.raises(SystemExit):
        tool.main(["--only", "pentium"])
    assert "onednn-avx2" in capsys.readouterr().err


def test_settings_take_effect():
    found = tool.in_effect({"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "2"})
    assert found["PyTorch"] == "DEFAULT" and found["threads"] == "2"


@pytest.mark.parametrize(
    ("program", "result"),
    [
        ("print('3 passed, 1 skipped in 2 s')", ("3 passed, 1 skipped", True)),
        ("print('1 failed, 3 passed'); sys.exit(1)", ("FAILED: 1 failed, 3 passed", False)),
        ("import os; os.kill(os.getpid(), 4)", ("FAILED: it ended by SIGILL", False)),
        ("print('no tests ran'); sys.exit(5)", ("FAILED: exit status 5", False)),
    ],
)
def test_result_of_a_run(program, result, monkeypatch):
    popen = subprocess.Popen
    command = [sys.executable, "-c", f"import sys; {program}"]
    monkeypatch.setattr(tool.subprocess, "Popen", lambda _, **keys: popen(command, **keys))
    assert tool.run_tests({}, []) == result
