"""Checkpoints survive what happens to files and processes."""

import logging
import os
import resource
import signal
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils.file_io import PathManager
from reliability import tiny

from rdsnet.checkpoint import Checkpointer, load_config
from rdsnet.training.interruption import TrainingInterrupted, cut_metrics
from rdsnet.training.trainer import Trainer


@pytest.fixture
def model():
    return torch.nn.Linear(50, 50)


def checkpointer(model, folder, *names):
    """A checkpointer that has saved under these names; every weight is the name's number."""
    made = Checkpointer(model, folder)
    for number, name in enumerate(names):
        torch.nn.init.constant_(model.weight, number)
        made.save(name, iteration=number)
        os.utime(folder / f"{name}.pth", ns=(number, number))
    return made


@pytest.mark.parametrize("how", ["cut off", "empty", "missing", "one byte"])
def test_the_newest_intact_checkpoint_is_found(model, tmp_path, how, caplog):
    names = ("model_0000001", "model_0000003", "model_0000005")
    made = checkpointer(model, tmp_path, *names)
    newest = tmp_path / "model_0000005.pth"
    if how == "one byte":
        content = bytearray(newest.read_bytes())
        place = content.index(np.full(50, 2.0, np.float32).tobytes())
        content[place] ^= 1
        newest.write_bytes(content)
    elif how == "missing":
        newest.unlink()
    else:
        newest.write_bytes(newest.read_bytes()[: 3000 * (how == "cut off")])
    fresh = Checkpointer(model, tmp_path)
    assert made.get_checkpoint_file() == fresh.get_checkpoint_file()
    assert Path(fresh.get_checkpoint_file()).name == "model_0000003.pth"
    assert "newest intact one in the folder is model_0000003.pth" in caplog.text
    assert fresh.resume_or_load("", resume=True)["iteration"] == 1
    assert (model.weight == 1).all()


@pytest.mark.parametrize("content", ["", "model_00", "\0\0\0\0", "../../etc/passwd", None])
def test_a_damaged_last_checkpoint_file_does_not_stop_the_resume(model, tmp_path, content):
    made = checkpointer(model, tmp_path, "model_0000001", "model_0000003")
    if content is None:
        (tmp_path / "last_checkpoint").unlink()
    else:
        (tmp_path / "last_checkpoint").write_text(content)
    assert made.has_checkpoint()
    assert Path(made.get_checkpoint_file()).name == "model_0000003.pth"


def test_only_damaged_checkpoints_are_an_error_not_a_new_start(model, tmp_path):
    made = checkpointer(model, tmp_path, "model_0000001")
    (tmp_path / "model_0000001.pth").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"all are damaged \(model_0000001.pth\)"):
        made.resume_or_load("", resume=True)


def test_no_checkpoint_is_a_start_from_the_weights(model, tmp_path):
    (tmp_path / "model_0000001.pth.tmp").write_bytes(b"killed while this was written")
    made = Checkpointer(model, tmp_path)
    assert not made.has_checkpoint() and made.get_checkpoint_file() == ""
    assert made.resume_or_load("", resume=True) == {}


@contextmanager
def largest_file(size: int):
    """No file of this process can grow beyond ``size`` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_a_clear_error_and_leaves_the_previous_checkpoint(model, tmp_path):
    made = checkpointer(model, tmp_path, "model_0000001", "model_final")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    torch.nn.init.constant_(model.weight, 9)
    with largest_file(4096):
        with pytest.raises(OSError, match=r"model_final.pth' could not be written: .*MiB are free"):
            made.save("model_final", iteration=9)
        with pytest.raises(OSError, match="What was there before is unchanged"):
            made.save("model_0000009", iteration=9)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert made.resume_or_load("", resume=True)["iteration"] == 1


@pytest.mark.parametrize(
    ("lines", "start", "left", "last"),
    [
        (["19", "39", "59"], 40, ["19", "39"], 39),
        (["19", "39", "59"], 60, ["19", "39", "59"], 59),
        (["19", "39", "half"], 60, ["19", "39"], 39),
        (["19", "39"], 10, [], -1),
        (["19", "599", "19", "39"], 30, ["19", "599", "19"], 19),  # a training before this one
        ([], 5, [], -1),
    ],
)
def test_metrics_are_cut_to_the_checkpoint(tmp_path, lines, start, left, last):
    def text(lines):
        return "".join(
            '{"iteration": ' + ("" if line == "half" else line + ', "loss": 1}\n') for line in lines
        )

    path = tmp_path / "metrics.json"
    path.write_text(text(lines))
    assert cut_metrics(path, start) == last
    assert path.read_text() == text(left)
    assert cut_metrics(tmp_path / "none", start) == -1


# ------------------------------------------------------------------- whole trainings, a few seconds


class Signal(HookBase):
    """Sends a signal to this process in one iteration."""

    def __init__(self, iteration: int, number: int) -> None:
        self.iteration, self.number = iteration, number

    def after_step(self) -> None:
        if self.trainer.iter == self.iteration:
            os.kill(os.getpid(), self.number)


def trainer(data, output, iterations, *more):
    torch.manual_seed(0)  # as Detectron2's setup does it with SEED
    return Trainer(load_config(tiny.SMALL, tiny.options(data, output, iterations, *more)))


def interrupt(interrupted: Trainer, iteration: int, number: int, caplog) -> str:
    """Train until the signal, check how the training leaves, and return its last checkpoint."""
    interrupted._hooks.insert(0, Signal(iteration, number))
    interrupted._hooks[0].trainer = interrupted
    handler, logger = signal.getsignal(number), logging.getLogger("rdsnet")
    logger.propagate = True  # Detectron2 may have set up logging for itself
    with pytest.raises(TrainingInterrupted) as leaving:
        interrupted.train()
    assert leaving.value.code == 128 + number
    assert f"{signal.Signals(number).name}: stopped after iteration {iteration}" in caplog.text
    assert "--resume goes on" in caplog.text
    assert signal.getsignal(number) == handler
    return Path(interrupted.checkpointer.get_checkpoint_file()).name


def test_ctrl_c_saves_and_leaves(data, tmp_path, caplog):
    last = interrupt(trainer(data, tmp_path, 3), 0, signal.SIGINT, caplog)
    assert last == "model_0000000.pth"


def test_a_training_resumed_after_sigterm_is_the_undisturbed_one(data, tmp_path, caplog):
    undisturbed = trainer(data, tmp_path / "a", 24)
    undisturbed.train()
    last = interrupt(trainer(data, tmp_path / "b", 24), 6, signal.SIGTERM, caplog)
    assert last == "model_0000006.pth"

    resumed = trainer(data, tmp_path / "b", 24, "DATALOADER.NUM_WORKERS", "1")
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 7
    resumed.train()
    for name, value in undisturbed.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert tiny.curve(tmp_path / "a") == tiny.curve(tmp_path / "b")
    assert [line["iteration"] for line in tiny.curve(tmp_path / "b")] == [19, 23]


def test_evaluation_that_an_interruption_prevented_is_caught_up_with(data, tmp_path, monkeypatch):
    keys = ("TEST.EVAL_PERIOD", "3", "SOLVER.CHECKPOINT_PERIOD", "3")
    evaluated = []
    monkeypatch.setattr(Trainer, "test", classmethod(lambda *_: evaluated.append(1) or {"AP": 1.0}))
    killed = trainer(data, tmp_path, 5, *keys)

    def die():
        raise KeyboardInterrupt  # in the evaluation after iteration 2

    for hook in killed._hooks:
        if isinstance(hook, hooks.EvalHook):
            hook._func = die
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    assert not evaluated
    resumed = trainer(data, tmp_path, 5, *keys)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3
    resumed.train()
    assert len(evaluated) == 2  # after iteration 2, and in the end
    lines = tiny.curve(tmp_path)
    assert [line["iteration"] for line in lines if "AP" in line] == [2, 5]
    assert [line["iteration"] for line in lines if "loss_mask" in line] == [4]


def test_a_checkpoint_holds_everything(data, tmp_path):
    run = trainer(data, tmp_path, 2)
    run.train()
    content = torch.load(tmp_path / "model_final.pth", weights_only=True)
    state = content["trainer"]
    assert content["iteration"] == state["iteration"] == 1
    assert state["data_loader"] == {"seed": 7, "batches": 2, "batch_size": 2}
    assert len(state["_trainer"]["optimizer"]["state"]) == sum(
        parameter.requires_grad for parameter in run.model.parameters()
    )
    assert state["hooks"]["LRScheduler"]["last_epoch"] == 2
    assert content["model"]["object_stream.loss_normalizer"] != 100


def test_weights_that_cannot_be_downloaded_are_named_with_what_to_do(model, monkeypatch):
    def unreachable(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr(PathManager, "get_local_path", unreachable)
    address = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    with pytest.raises(OSError) as error:
        Checkpointer(model).load(address)
    for words in (address, "not known", "https://dl.", "MODEL.WEIGHTS FILE", "--config small"):
        assert words in str(error.value)
