"""The command line itself: speed of --help, messages, exit status."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.hanging import HANG

import rdsnet
import rdsnet.training
from rdsnet.cli import build_parser, main
from rdsnet.commands import COMMANDS, doctor, train
from rdsnet.training import argument_parser

SMALL_CONFIG = str(Path(rdsnet.__file__).parents[1] / "configs" / "small" / "rdsnet_small.yaml")


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG
    )


def test_parser_is_built_without_torch_or_detectron2():
    # The package without its __init__, so that only what the command line imports is seen.
    code = f"""
import sys, types
package = types.ModuleType("rdsnet")
package.__path__, package.__version__ = [{str(Path(rdsnet.__file__).parent)!r}], "0"
package.__file__ = "rdsnet/__init__.py"
sys.modules["rdsnet"] = package
from rdsnet.cli import build_parser
build_parser().format_help()
print([name for name in ("torch", "detectron2", "numpy", "cv2") if name in sys.modules])
"""
    result = python(code)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "Example" in text and f"\n  rdsnet {command}" in text


def test_training_arguments_are_those_of_detectron2():
    ours = vars(build_parser().parse_args(["train", "--config-file", "f", "KEY", "VALUE"]))
    theirs = vars(argument_parser().parse_args(["--config-file", "f", "KEY", "VALUE"]))
    of_ray = ("engine", "workers", "address")
    for name in ("command", "run", "traceback", "data", "weights", *of_ray, *train.OWN_DATA):
        del ours[name]
    assert ours.pop("dist_url") == "auto"  # theirs is a fixed port
    assert theirs.pop("dist_url").startswith("tcp://")
    assert ours == theirs


def test_train_and_eval_run_the_same_as_train_net(monkeypatch):
    runs = []
    monkeypatch.setattr(rdsnet.training, "run", runs.append)
    assert main(["train", "--config-file", "f.yaml", "SOLVER.MAX_ITER", "10"]) == 0
    assert main(["eval", "--config-file", "f.yaml", "MODEL.WEIGHTS", "w.pth"]) == 0
    assert [run.eval_only for run in runs] == [False, True]
    assert [run.opts for run in runs] == [["SOLVER.MAX_ITER", "10"], ["MODEL.WEIGHTS", "w.pth"]]
    assert {run.config_file for run in runs} == {"f.yaml"}


def test_several_machines_need_an_address(capsys):
    assert main(["train", "--config-file", "f.yaml", "--num-machines", "2"]) == 2
    assert "--dist-url tcp://" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["train", "--config-file", "no/such.yaml"], ["no/such.yaml", "does not exist"]),
        (["eval", "--config-file", SMALL_CONFIG, "SOLVER.NO_SUCH", "1"], ["SOLVER.NO_SUCH"]),
        (["eval", "--config-file", SMALL_CONFIG, "SOLVER.MAX_ITER"], ["pairs", "SOLVER.MAX_ITER"]),
    ],
)
def test_mistake_of_the_user_is_one_message_and_status_2(argv, expected, capsys, monkeypatch):
    monkeypatch.delenv("RDSNET_TRACEBACK", raising=False)
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"rdsnet {argv[0]}: ") and "Traceback" not in message
    for words in expected:
        assert words in message


def test_traceback_is_shown_on_demand(monkeypatch):
    monkeypatch.delenv("RDSNET_TRACEBACK", raising=False)
    with pytest.raises(FileNotFoundError):
        main(["train", "--traceback", "--config-file", "no/such.yaml"])
    monkeypatch.setenv("RDSNET_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        main(["train", "--config-file", "no/such.yaml"])


def test_programming_errors_keep_their_traceback(monkeypatch):
    def fail(args):
        raise AttributeError("a bug")

    monkeypatch.setattr(rdsnet.training, "run", fail)
    with pytest.raises(AttributeError, match="a bug"):
        main(["train", "--config-file", "f.yaml"])


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.split() == ["rdsnet", rdsnet.__version__]


def test_doctor_reports_versions_and_a_working_model(capsys):
    assert main(["doctor"]) == 0
    report = capsys.readouterr().out
    lines = {line.split()[0]: line for line in report.splitlines() if line}
    for name in ("rdsnet", "python", "torch", "torchvision", "detectron2", "pycocotools"):
        assert name in lines
    assert str(Path(rdsnet.__file__).parent) in lines["rdsnet"]
    assert "100 objects with masks" in lines["smoke"]
    assert "operators" in lines and "All is well" in report


@pytest.mark.parametrize(
    ("has", "precision"),
    [
        ({"AVX512_BF16"}, "bf16 in rdsnet predict and app (auto: the processor has AVX512_BF16)"),
        (set(), "float32 in rdsnet predict and app (auto: the processor has no instructions"),
    ],
)
def test_doctor_says_what_makes_inference_fast_and_why(has, precision, capsys, monkeypatch):
    monkeypatch.setattr(
        "rdsnet.modeling.precision.device_capabilities", lambda device: frozenset(has)
    )
    monkeypatch.setattr(rdsnet.config.torch.cuda, "is_available", lambda: False)
    assert main(["doctor"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert precision in lines["precision"]
    assert "folded" in lines["norms"] and "channels last" in lines["memory"]
    assert all(name in lines["CPU"] for name in has)
    assert "OMP_WAIT_POLICY" in lines["threads"]


def test_doctor_fails_when_the_model_does(capsys, monkeypatch):
    def broken(device):
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(doctor, "smoke_run", broken)
    assert main(["doctor"]) == 1
    assert "PROBLEM: RuntimeError: no kernel for this" in capsys.readouterr().out


def test_doctor_works_without_detectron2_and_says_how_to_install_it():
    code = "import sys; sys.modules['detectron2'] = None; from rdsnet.cli import main; "
    result = python(code + "sys.exit(main(['doctor']))")
    assert result.returncode == 1, result.stderr
    assert "tools/install_detectron2.py" in result.stdout
    assert "smoke run" in result.stdout and "torch " in result.stdout


def test_commands_without_detectron2_say_how_to_install_it():
    code = "import sys; sys.modules['detectron2'] = None; from rdsnet.cli import main; "
    result = python(code + "sys.exit(main(['eval', '--config-file', 'f.yaml']))")
    assert result.returncode == 2
    assert "tools/install_detectron2.py" in result.stderr and "Traceback" not in result.stderr


def test_every_command_is_listed(capsys):
    parser = build_parser()
    choices = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
    assert tuple(choices) == COMMANDS


def without_libxcb(module):
    """Code: what a system without a screen's libraries does to OpenCV, then a command."""
    return f"""
import importlib.abc, sys
class Linked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "cv2":
            raise ImportError("libxcb.so.1: cannot open shared object file")
sys.meta_path.insert(0, Linked())
from rdsnet.cli import main
sys.exit(main({module!r}))
"""


def test_libraries_of_opencv_that_a_system_lacks():
    asked = python(without_libxcb(["doctor"]))
    assert asked.returncode == 1 and "Traceback" not in asked.stderr
    (opencv,) = (line for line in asked.stdout.splitlines() if line.startswith("opencv-python"))
    assert "PROBLEM: cannot be imported: ImportError: libxcb.so.1" in opencv
    assert "libglib2.0-0 libxcb1" in opencv and "pip install opencv-python-headless" in opencv
    assert "left out: it needs detectron2, opencv-python" in asked.stdout

    tried = python(without_libxcb(["predict", "--weights", "nuclei", "--input", "."]))
    assert tried.returncode == 2 and "Traceback" not in tried.stderr
    assert (
        "rdsnet predict: libxcb.so.1" in tried.stderr
        and "'rdsnet doctor' says which" in tried.stderr
    )


def test_an_import_that_is_our_mistake_is_shown_whole(monkeypatch):
    def run(args):  # its message names a file, whose name has ".so" in it
        from rdsnet.prediction.sources import no_such_name  # noqa: F401

    monkeypatch.setattr(doctor, "run", run)
    with pytest.raises(ImportError, match="no_such_name"):
        main(["doctor"])
