"""The best model, early stopping and averaged weights, in trainings of one number."""

import weakref

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog
from detectron2.engine import TrainerBase, hooks
from helpers.rounding import assert_within, gamma
from torch import nn

import rdsnet
from rdsnet.training.hooks import StopTraining, WeightAverage, with_own_hooks

NAN = float("nan")


class CountingTrainer(TrainerBase):
    """Its model is one weight, which after iteration i is i + 1; evaluations are scripted."""

    def __init__(self, cfg, scores=()):
        super().__init__()
        self.cfg, self.model = cfg, nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.checkpointer = DetectionCheckpointer(
            self.model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.scores, self.seen = list(scores), []
        found = [
            hooks.PeriodicCheckpointer(self.checkpointer, 1),
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self.evaluate),
        ]
        self.register_hooks(with_own_hooks(self, found))

    def evaluate(self):
        self.seen.append(self.model.weight.item())
        return {"segm": {"AP": self.scores[len(self.seen) - 1]}, "bbox": {"AP": 7.0}}

    def run_step(self):
        with torch.no_grad():
            self.model.weight += 1

    def run(self, iterations, start=0):
        try:
            self.train(start, iterations)
        except StopTraining:
            return "stopped"
        return "finished"

    def resume(self):
        self.checkpointer.resume_or_load("", resume=True)
        return self.iter + 1


@pytest.fixture
def cfg(tmp_path):
    cfg = rdsnet.get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.DATASETS.TEST = ("scripted",)
    cfg.TEST.EVAL_PERIOD, cfg.TEST.BEST_METRIC = 2, "segm/AP"
    return cfg


def best(cfg):
    content = torch.load(f"{cfg.OUTPUT_DIR}/model_best.pth", weights_only=True)
    return content["model"]["weight"].item(), content["best"]


def test_best_model_is_that_of_the_highest_value(cfg):
    trainer = CountingTrainer(cfg, [NAN, 20.0, 30.0, NAN, 30.0])
    assert trainer.run(10) == "finished"
    assert trainer.seen == [2, 4, 6, 8, 10]
    weight, record = best(cfg)
    assert weight == 6  # the first of two that are equal
    assert record == {"metric": "segm/AP", "value": 30.0, "iteration": 5, "box_ap": 7.0}


def test_a_metric_that_does_not_exist_is_said_and_not_compared(cfg, tmp_path, caplog):
    assert CountingTrainer(cfg, [NAN, NAN]).run(4) == "finished"
    assert caplog.text.count("segm/AP does not exist in this evaluation: nothing was compared") == 2
    assert "nan is not better" not in caplog.text
    assert not (tmp_path / "model_best.pth").exists()


def test_validation_data_without_objects_is_said_before_training(cfg, caplog):
    records = [{"image_id": "a", "annotations": [{"iscrowd": 1}]}, {"annotations": []}]
    DatasetCatalog.register("scripted", lambda: records)
    try:
        CountingTrainer(cfg, [NAN]).run(2)
    finally:
        DatasetCatalog.pop("scripted")
    assert "'scripted' has no objects (crowds do not count)" in caplog.text


def test_last_evaluation_counts_too(cfg):
    assert CountingTrainer(cfg, [1.0, 2.0, 3.0]).run(5) == "finished"
    assert best(cfg)[0] == 5 and best(cfg)[1]["iteration"] == 4


def test_best_model_of_an_earlier_run_is_forgotten(cfg):
    CountingTrainer(cfg, [50.0, 60.0]).run(4)
    CountingTrainer(cfg, [10.0, 9.0]).run(4)
    assert best(cfg)[0] == 2 and best(cfg)[1]["value"] == 10.0


def test_best_model_survives_resuming(cfg):
    CountingTrainer(cfg, [50.0, 40.0]).run(4)
    trainer = CountingTrainer(cfg, [45.0, 55.0])
    start = trainer.resume()
    trainer.start_iter = start
    assert trainer.run(8, start) == "finished"
    assert trainer.seen == [6, 8]
    assert best(cfg)[0] == 8 and best(cfg)[1]["value"] == 55.0


def test_damaged_best_model_does_not_stop_the_resume(cfg, tmp_path, caplog):
    CountingTrainer(cfg, [50.0, 40.0]).run(4)
    content = (tmp_path / "model_best.pth").read_bytes()
    (tmp_path / "model_best.pth").write_bytes(content[: len(content) // 2])
    trainer = CountingTrainer(cfg, [30.0, 20.0])
    trainer.start_iter = trainer.resume()
    assert trainer.run(8, trainer.start_iter) == "finished"
    assert "model_best.pth is damaged" in caplog.text
    assert best(cfg)[0] == 6 and best(cfg)[1]["value"] == 30.0


def test_best_model_that_cannot_be_written_leaves_the_one_before(cfg, tmp_path, monkeypatch):
    CountingTrainer(cfg, [50.0, 40.0]).run(4)
    before = (tmp_path / "model_best.pth").read_bytes()
    trainer = CountingTrainer(cfg, [60.0, 70.0])
    trainer.start_iter = trainer.resume()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"model_best.pth' could not be written: .*No space left"):
        trainer.run(8, trainer.start_iter)
    assert (tmp_path / "model_best.pth").read_bytes() == before


def test_last_checkpoint_is_never_the_best_model(cfg, tmp_path):
    CountingTrainer(cfg, [50.0, 60.0]).run(3)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_training_stops_when_patience_is_over(cfg, tmp_path):
    cfg.TEST.PATIENCE = 3
    trainer = CountingTrainer(cfg, [1.0, 5.0, 4.0, NAN, 3.0, 99.0])
    assert trainer.run(20) == "stopped"
    assert trainer.seen == [2, 4, 6, 8, 10]  # three evaluations after the best
    assert best(cfg)[0] == 4
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert final["iteration"] == 9 and final["model"]["weight"].item() == 10


def test_patience_without_evaluations_is_refused(cfg):
    cfg.TEST.PATIENCE, cfg.TEST.EVAL_PERIOD = 3, 0
    with pytest.raises(ValueError, match="TEST.EVAL_PERIOD above 0"):
        CountingTrainer(cfg)


def test_unknown_metric_lists_the_known(cfg):
    cfg.TEST.BEST_METRIC = "segm/mAP"
    with pytest.raises(ValueError, match="'segm/mAP' is not among .* bbox/AP, segm/AP|segm/AP"):
        CountingTrainer(cfg, [1.0]).run(3)


def averages(decay, iterations):
    """By the recursion, in float64."""
    value = 1.0
    for n in range(1, iterations):
        d = min(decay, (1 + n) / (10 + n))
        value = d * value + (1 - d) * (n + 1)
    return value


def test_average_follows_its_recursion_and_is_what_is_evaluated(cfg):
    cfg.SOLVER.EMA.ENABLED, cfg.SOLVER.EMA.DECAY = True, 0.6
    trainer = CountingTrainer(cfg, range(10))
    trainer.run(20)
    assert trainer.model.weight.item() == 20  # the average was taken back
    expected = [averages(0.6, n) for n in range(2, 21, 2)]
    # Each step rounds a few times, and takes 0.6 of what the one before was off.
    error = gamma(4) / (1 - 0.6)
    assert trainer.seen == pytest.approx(expected, rel=error)
    assert best(cfg)[0] == pytest.approx(expected[-1], rel=error)


def test_resumed_average_equals_an_uninterrupted_one(cfg, tmp_path):
    cfg.SOLVER.EMA.ENABLED, cfg.TEST.BEST_METRIC, cfg.TEST.EVAL_PERIOD = True, "", 0
    whole = CountingTrainer(cfg, [0.0])
    whole.run(9)
    expected = whole.checkpointer.checkpointables["ema"].state_dict()
    for file in tmp_path.glob("*.pth"):
        file.unlink()
    CountingTrainer(cfg, [0.0]).run(4)
    second = CountingTrainer(cfg, [0.0])
    start = second.resume()
    assert start == 4
    second.run(9, start)
    state = second.checkpointer.checkpointables["ema"].state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


def test_average_copies_buffers_and_works_on_the_real_model():
    model = rdsnet.model_zoo.get("small/rdsnet_small.yaml", num_classes=2)
    average = WeightAverage(model, 0.9)
    for n in range(3):
        with torch.no_grad():
            model.object_stream.loss_normalizer.fill_(n)
            for parameter in model.parameters():
                parameter.add_(0.01)
        average.after_step()
    averaged = average.average.module
    assert averaged.object_stream.loss_normalizer == 2
    name, parameter = next(iter(model.named_parameters()))
    d1, d2 = 2 / 11, 3 / 12
    shift = 0.01 * (d2 * (d1 * 1 + (1 - d1) * 2) + (1 - d2) * 3)
    start = parameter.detach() - 0.03
    limit = gamma(12) * (start.abs() + 0.03)  # three additions, and as many averages
    assert_within(dict(averaged.named_parameters())[name], start + shift, limit)
    with average.applied():
        assert not torch.equal(parameter, start + 0.03)
    assert_within(parameter, start + 0.03, limit)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match="SOLVER.EMA.DECAY"):
        WeightAverage(nn.Linear(1, 1), decay)
