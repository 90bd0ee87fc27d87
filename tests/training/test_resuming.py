"""--resume as it is called: what it refuses before it writes, and what a changed config changes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import MultiStepParamScheduler
from helpers.hanging import HANG
from reliability import tiny

from rdsnet.checkpoint import load_config
from rdsnet.checkpoint.description import save_model
from rdsnet.cli import main
from rdsnet.training.resuming import (
    ConfiguredRates,
    require_fitting_state,
    require_fitting_weights,
)
from rdsnet.training.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"), images=24)


def free_names():
    """The same names stand for other files in every test."""
    for name in list(DatasetCatalog):
        if name.startswith(("tiny_", "data")):
            DatasetCatalog.pop(name)
            MetadataCatalog.pop(name, None)


@pytest.fixture(autouse=True)
def names():
    free_names()


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A folder with a run of two iterations."""
    free_names()
    folder = tmp_path_factory.mktemp("run") / "out"
    tiny.train(*tiny.options(data, folder, 2))
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def with_categories(json_file, folder, change):
    """A copy of a json with other categories; ``change`` gets and returns their list."""
    content = json.loads(Path(json_file).read_text())
    content["categories"] = change(content["categories"])
    path = Path(folder) / "again.json"
    path.write_text(json.dumps(content))
    return str(path)


def exchanged(categories):
    """The names of the first two ids the other way round."""
    first, second = categories[0]["name"], categories[1]["name"]
    return [{**categories[0], "name": second}, {**categories[1], "name": first}, *categories[2:]]


def one_more(categories):
    return [*categories, {"id": 99, "name": "pentagram"}]


@pytest.mark.parametrize(
    ("change", "said"),
    [(exchanged, "category 1 was"), (one_more, "category 99 'pentagram' is new")],
)
def test_train_net_refuses_other_classes_before_it_writes(data, run, tmp_path, change, said):
    again = {**data, "train_json": with_categories(data["train_json"], tmp_path, change)}
    before = contents(run)
    with pytest.raises(ValueError, match=said) as error:
        tiny.train("--resume", *tiny.options(again, run, 4))
    assert data["train_json"] in str(error.value)  # what the run began with
    assert contents(run) == before


def test_the_written_config_as_config_file_is_refused_too(data, run, tmp_path, capsys):
    """Its number of classes is the old one: that is no reason to advise another number."""
    again = with_categories(data["train_json"], tmp_path, one_more)
    files = [["tiny_train", again, data["train_images"]]]
    before = contents(run)
    words = ["train", "--config-file", str(run / "config.yaml"), "--resume", "OUTPUT_DIR", str(run)]
    assert main([*words, "DATASETS.COCO_FILES", str(files)]) == 2
    said = capsys.readouterr().err
    assert "category 99 'pentagram' is new" in said and "Set it to" not in said
    assert contents(run) == before


@pytest.mark.parametrize("change", [exchanged, one_more])
def test_own_data_with_other_classes_is_refused_before_the_split_is_written(
    data, tmp_path, change, capsys
):
    words = ["train", "--config", "small", "--output", str(tmp_path / "out"), "--iterations", "1"]
    own = [data["train_json"], data["train_images"]]
    _stop_before_training(tmp_path / "out", [*words, "--data", *own])
    before = contents(tmp_path / "out")
    assert {path.name for path in before} >= {"train.json", "val.json", "model_final.pth"}

    again = with_categories(data["train_json"], tmp_path, change)
    assert main([*words, "--data", again, data["train_images"], "--resume"]) == 2
    said = capsys.readouterr().err
    assert "--resume cannot go on with" in said and "category" in said
    assert contents(tmp_path / "out") == before
    # The same data under another base config.
    assert main([*words, "--data", *own, "--resume", "MODEL.RDSNET.REPRESENTATION_DIM", "8"]) == 2
    assert "REPRESENTATION_DIM was 32 and is 8" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


def _stop_before_training(folder, words):
    """What ``rdsnet train`` does up to the first iteration, and a checkpoint in its place."""
    with pytest.MonkeyPatch.context() as patch:
        configs = []
        patch.setattr(
            "rdsnet.training.run",
            lambda args: configs.append(load_config(args.config_file, args.opts)),
        )
        assert main(words) == 0
    save_model(folder / "model_final.pth", {}, configs[0])
    (folder / "last_checkpoint").write_text("model_final.pth")


def test_weights_of_another_shape_without_any_config_are_named(data, run, tmp_path):
    content = torch.load(run / "model_final.pth", weights_only=True)
    del content["rdsnet"]
    torch.save(content, tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    for key, value, name in (
        ("MODEL.RDSNET.REPRESENTATION_DIM", "16", "rep_pred.weight has the shape"),
        ("MODEL.RETINANET.NUM_CONVS", "2", "_subnet.3.weight is missing"),
        ("SOLVER.OPTIMIZER", "SGD", "another optimizer than SOLVER.OPTIMIZER's SGD"),
        # One group of parameters, where there were two.
        ("SOLVER.WEIGHT_DECAY_NORM", "None", "optimizer for other weights"),
    ):
        cfg = load_config(tiny.SMALL, tiny.options(data, tmp_path, 4, key, value))
        trainer = Trainer(cfg)
        with pytest.raises(ValueError) as error:
            trainer.resume_or_load(resume=True)
        assert name in str(error.value) and "MODEL.WEIGHTS FILE" in str(error.value), key


def test_weights_and_optimizers_that_fit_are_taken():
    layer = torch.nn.Linear(3, 2)
    require_fitting_weights(layer, {**layer.state_dict(), "more": torch.zeros(1)}, "x.pth")
    for kind, other in ((torch.optim.SGD, torch.optim.AdamW), (torch.optim.AdamW, torch.optim.SGD)):
        made = kind(layer.parameters(), lr=0.1)
        require_fitting_state(made, made.state_dict(), "x.pth")
        with pytest.raises(ValueError, match="another optimizer"):
            require_fitting_state(other(layer.parameters(), lr=0.1), made.state_dict(), "x.pth")


def test_rates_of_the_config_replace_those_of_the_checkpoint():
    def build(rate, decay):
        layer = torch.nn.Linear(3, 2)
        optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.5, weight_decay=decay)
        # A tenth of the rate from the third iteration on.
        steps = MultiStepParamScheduler([1, 0.1], milestones=[2], num_updates=10)
        return optimizer, LRMultiplier(optimizer, steps, max_iter=10)

    optimizer, schedule = build(1.0, 0.0)
    for _ in range(3):
        optimizer.step()
        schedule.step()
    state = optimizer.state_dict(), schedule.state_dict()

    resumed, its_schedule = build(4.0, 0.25)
    rates = ConfiguredRates(resumed, its_schedule)
    resumed.load_state_dict(state[0])
    its_schedule.load_state_dict(state[1])
    assert resumed.param_groups[0]["lr"] == 0.1
    rates.restore()
    assert resumed.param_groups[0]["lr"] == 4.0 * 0.1
    assert resumed.param_groups[0]["weight_decay"] == 0.25
    resumed.step()
    its_schedule.step()
    assert resumed.param_groups[0]["lr"] == 4.0 * 0.1


def test_a_resumed_training_follows_the_config(data, run, tmp_path):
    """Another learning rate, a longer schedule."""
    for path in run.iterdir():
        if path.suffix in (".pth", ".json") or path.name == "last_checkpoint":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    options = tiny.options(data, tmp_path, 3, "SOLVER.BASE_LR", "0.5", "SOLVER.WARMUP_ITERS", "0")
    trainer = Trainer(load_config(tiny.SMALL, options))
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2
    trainer.train()
    assert tiny.curve(tmp_path)[-1]["lr"] == 0.5


@pytest.mark.slow
def test_all_processes_of_torchrun_refuse(data, run, tmp_path):
    again = {**data, "train_json": with_categories(data["train_json"], tmp_path, exchanged)}
    before = contents(run)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += [str(tiny.ROOT / "train_net.py"), "--config-file", tiny.SMALL, "--resume"]
    ended = subprocess.run(
        [*words, *tiny.options(again, run, 4)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert ended.returncode != 0
    assert ended.stderr.count("--resume cannot go on with") >= 1
    assert contents(run) == before
