"""The commands in docs/: run as they stand on small stand-in data, or at least parsed.

Blocks of ``sh`` are run, page after page, in one folder that has train.json, val.json and photos/,
with training cut to two iterations. Those with ``<!-- parsed -->`` above (they need a GPU, COCO or
a trained model, or would install something) are taken apart: arguments, config files and keys.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from detectron2.engine import default_argument_parser
from helpers.hanging import HANG
from torch.distributed.run import get_args_parser as torchrun_parser

from rdsnet.checkpoint import load_config
from rdsnet.cli import build_parser
from rdsnet.data.shapes import make_shapes_dataset

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *("install", "own-data", "predict", "serve", "models", "export", "evaluate", "mbrm"),
    *("scale-out", "large-images", "paper/README", "paper/coco"),
]
BLOCK = re.compile(r"(<!-- parsed -->\n)?^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What makes a training short, appended to `rdsnet train --data`.
SHORT = (
    "--config small --iterations 2 --batch-size 2 DATALOADER.NUM_WORKERS 0 SOLVER.WARMUP_ITERS 1 "
    "MODEL.RDSNET.MBRM.FIT.AFTER_TRAINING False"
)


class Block(NamedTuple):
    page: str
    number: int
    parsed_only: bool
    text: str

    def commands(self) -> list[list[str]]:
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        matches = BLOCK.finditer((ROOT / "docs" / f"{page}.md").read_text())
        for number, match in enumerate(m for m in matches if m[2] == "sh"):
            found.append(Block(page, number, bool(match[1]), match[3]))
    return found


def named(found: list[Block]) -> list:
    return [pytest.param(block, id=f"{block.page}-{block.number}") for block in found]


def test_every_page_is_in_the_index_and_tested():
    docs = ROOT / "docs"
    pages = {path.relative_to(docs).with_suffix("").as_posix() for path in docs.rglob("*.md")}
    index = (docs / "README.md").read_text()
    linked = set(re.findall(r"\(([\w/-]+)\.md\)", index))
    assert linked <= pages and set(PAGES) <= linked
    for page in linked:
        file = docs / f"{page}.md"
        for name in re.findall(r"\]\((?!http)([^)#]+)", file.read_text()):
            assert (file.parent / name).exists(), f"{page}.md links to {name}"


def test_commands_stand_in_blocks_that_are_tested():
    for page in PAGES:
        for match in BLOCK.finditer((ROOT / "docs" / f"{page}.md").read_text()):
            assert match[2] == "sh" or not re.search(r"^(rdsnet|python|make)\b", match[3], re.M)


@pytest.mark.parametrize("block", named(blocks()))
def test_commands_can_be_parsed(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
    for words in block.commands():
        check_command(words, block.parsed_only)


def check_command(words: list[str], parsed_only: bool) -> None:
    """Raise if a command cannot mean anything: unknown arguments, configs, keys or files."""
    if words[0] == "srun":
        words = words[1:]
    if words[0] == "torchrun":
        args = torchrun_parser().parse_args(words[1:])
        words = ["python", args.training_script, *args.training_script_args]
    program = words[0]
    if program == "rdsnet":
        check_config(build_parser().parse_args(words[1:]), parsed_only)
    elif program == "python":
        assert (ROOT / words[1]).is_file()
        if words[1] == "train_net.py":
            check_config(default_argument_parser().parse_args(words[2:]), parsed_only)
    elif program == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    elif program == "pip":
        assert words[1] == "install"
    else:
        assert program in ("source", "export", "ray"), f"{program}: how is this to be checked?"


def check_config(args, parsed_only: bool) -> None:
    config_file = getattr(args, "config_file", None)
    if config_file and (parsed_only and Path(config_file).exists()):
        load_config(config_file, args.opts)
    elif config_file:
        assert config_file.startswith("output/")  # what an earlier command has made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the reader of the pages is: the checkout, with data beside it."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("train_net.py", "configs", "projects", "tools"):
        (folder / name).symlink_to(ROOT / name)
    made = make_shapes_dataset(folder / "made", num_train=6, num_val=2, size=(64, 96), seed=1)
    (folder / "photos").mkdir()
    for part in ("train", "val"):
        content = json.loads(Path(made[f"{part}_json"]).read_text())
        for image in content["images"]:
            source = Path(made[f"{part}_images"]) / image["file_name"]
            image["file_name"] = f"{part}_{image['file_name']}"
            shutil.copy(source, folder / "photos" / image["file_name"])
        (folder / f"{part}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.alone
@pytest.mark.slow
def test_commands_run(folder):
    """All of them in one test: later commands use what earlier ones have made."""
    for block in blocks():
        if not block.parsed_only:
            run = run_block(block, folder)
            name = f"{block.page}.md, block {block.number}: "
            assert run.returncode == 0, name + (run.stdout + run.stderr)[-3000:]
            for made in MADE.get((block.page, block.number), ()):
                assert (folder / made).exists(), made


def run_block(block: Block, folder: Path) -> subprocess.CompletedProcess:
    lines = block.text.replace("\\\n", " ").splitlines()
    script = [f"{s} {SHORT}" if s.startswith("rdsnet train --data") else s for s in lines]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-eu", "-c", "\n".join(script)],
        cwd=folder,
        env={**os.environ, "PATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=HANG,
    )


# What a page promises: files by page and number of the block.
MADE = {
    ("own-data", 0): ["output/check-data/train.png"],
    ("own-data", 1): [
        *("output/mine/report.html", "output/mine/model_best.pth", "output/mine/model_final.pth"),
        "output/mine/inference/coco_instances_results.json",
    ],
    ("predict", 0): ["output/photos/overlays"],
    ("predict", 1): ["output/all/objects.csv", "output/all/coco_instances_results.json"],
    ("scale-out", 5): ["output/by_ray/shards/000000.parquet", "output/by_ray/objects.csv"],
    ("export", 0): ["output/model.onnx"],
    ("evaluate", 0): ["output/mine/report.html", "output/mine/inference/breakdown.json"],
}
