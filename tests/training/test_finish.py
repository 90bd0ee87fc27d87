"""After training, the log says how the model to use was chosen."""

import logging

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

import rdsnet
from rdsnet.checkpoint.description import read_config
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


def test_the_sizes_of_the_trainings_objects_are_kept_with_the_model(finished, caplog, tmp_path):
    box = {"bbox": [0, 0, 30, 30], "bbox_mode": BoxMode.XYWH_ABS}
    record = {"height": 100, "width": 100, "annotations": [box]}
    DatasetCatalog.register("v", lambda: [record])
    finished.DATASETS.TRAIN, finished.MODEL.META_ARCHITECTURE = ("v",), "RDSNet"
    finished.INPUT.MIN_SIZE_TEST = 50
    best = {"model": {"weight": torch.tensor(5.0)}, "best": {"value": 7.0}}
    torch.save(best, tmp_path / "model_best.pth")
    assert "30 to 30 px (percentiles 5 and 95), in the network's input of 15" in said(
        finished, caplog
    )
    kept = read_config(tmp_path / "model_best.pth").DATASETS.OBJECT_SIZES
    assert kept.IN_IMAGES == [30.0] * 3 and kept.IN_INPUT == [15.0] * 3
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["best"] == {"value": 7.0}
    assert list(finished.DATASETS.OBJECT_SIZES.IN_IMAGES) == []  # the caller's


def test_data_that_is_gone_is_said_and_the_model_kept(finished, caplog, tmp_path):
    finished.DATASETS.TRAIN, finished.MODEL.META_ARCHITECTURE = ("gone",), "RDSNet"
    assert "is not kept with the model" in said(finished, caplog)
    assert (tmp_path / "model_best.pth").is_file()
