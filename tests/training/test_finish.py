"""After training, the log says how the model to use was chosen."""

import logging

import pytest
import torch
from detectron2.data import DatasetCatalog

import rdsnet
from rdsnet.training.finish import finish


@pytest.fixture
def finished(tmp_path):
    """The config of a run that has come to its end and has evaluated on data set "v"."""
    cfg = rdsnet.get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.TEST.BEST_METRIC, cfg.DATASETS.TEST = "segm/AP", ("v",)
    cfg.MODEL.RDSNET.MBRM.FIT.AFTER_TRAINING = False
    torch.save({"model": {"weight": torch.tensor(7.0)}}, tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    yield cfg
    if "v" in DatasetCatalog:
        DatasetCatalog.pop("v")


def said(cfg, caplog):
    with caplog.at_level(logging.INFO, logger="rdsnet"):
        finish(cfg, None)
    assert "The model to use is" in caplog.text
    return caplog.text


def test_data_without_objects_is_why_nothing_was_compared(finished, caplog, tmp_path):
    DatasetCatalog.register("v", lambda: [{"annotations": []}])
    text = said(finished, caplog)
    assert "model_best.pth is the model after the last iteration: nothing was compared" in text
    assert "segm/AP did not exist in any evaluation: data set 'v' has no objects" in text
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert best["model"]["weight"] == 7 and "best" not in best


def test_a_model_that_finds_nothing_is_why_nothing_was_compared(finished, caplog):
    DatasetCatalog.register("v", lambda: [{"annotations": [{"iscrowd": 0}]}])
    assert "in any evaluation: nothing was detected" in said(finished, caplog)


def test_no_validation_is_why_nothing_was_compared(finished, caplog):
    finished.DATASETS.TEST, finished.SOLVER.EMA.ENABLED = (), True
    assert "nothing was compared, since there is no validation data" in said(finished, caplog)


def test_the_best_model_is_not_said_to_be_the_last(finished, caplog, tmp_path):
    torch.save({"model": {"weight": torch.tensor(5.0)}}, tmp_path / "model_best.pth")
    assert "nothing was compared" not in said(finished, caplog)
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["model"]["weight"] == 5
