"""The house keeps its rules: imports only go down, without circles, and its picture is up to date.

The rules are the contracts in pyproject.toml; ``lint-imports`` on the command line says the same.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import draw_architecture
import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = sorted(path.parent for path in (ROOT / "rdsnet").glob("*/__init__.py"))
MOST_LINES = 400
UNORDERED = ("commands", "projects")  # a file per subcommand; packages found where they lie


def lint(*arguments, cwd=ROOT):
    command = "import sys; from importlinter.cli import lint_imports_command as c; c()"
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "--no-logo", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def test_imports_keep_the_rules():
    result = lint()
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_broken_rule_is_named_with_its_line(tmp_path):
    """The check can fail: a copy of the package in which a low room looks up."""
    package = tmp_path / "rdsnet"
    for path in (ROOT / "rdsnet").rglob("*.py"):
        target = package / path.relative_to(ROOT / "rdsnet")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    broken = package / "ops" / "taps.py"
    broken.write_text(broken.read_text() + "\nimport rdsnet.training.trainer\n")
    line = len(broken.read_text().splitlines())
    result = lint(cwd=tmp_path)
    assert result.returncode == 1
    assert f"rdsnet.ops.taps -> rdsnet.training.trainer (l.{line})" in result.stdout


def test_the_picture_of_the_house_is_up_to_date():
    shown = draw_architecture.PICTURE.read_text(encoding="utf-8")
    assert shown == draw_architecture.drawn(), "run: python tools/draw_architecture.py"


def test_arrows_that_follow_from_others_are_left_out():
    arrows = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert draw_architecture.without_implied(arrows) == {"a": {"b"}, "b": {"c"}, "c": set()}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_every_room_says_what_happens_in_it(room):
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
    assert text and len(text.split()) >= 8


@pytest.mark.parametrize(
    "room", [room for room in ROOMS if room.name not in UNORDERED], ids=lambda room: room.name
)
def test_every_room_says_in_which_order_its_files_are_read(room):
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
    names = {path.stem for path in room.glob("[!_]*.py")}
    names |= {path.parent.name for path in room.glob("*/__init__.py")}
    left_out = {name for name in names if not re.search(rf"\b{name}\b", text)}
    assert not left_out, f"rdsnet/{room.name}/__init__.py does not say when to read {left_out}"


def test_files_can_be_read_in_one_sitting():
    too_long = {}
    for path in [*ROOT.glob("rdsnet/**/*.py"), *ROOT.glob("projects/**/*.py")]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            too_long[str(path.relative_to(ROOT))] = lines
    assert not too_long
