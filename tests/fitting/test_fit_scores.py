"""The lowest scores to show: chosen from what an evaluation has left, kept in the checkpoint."""

import json

import pytest
import torch

import rdsnet
from rdsnet.checkpoint.description import read_config, save_model
from rdsnet.data.datasets import register_coco_files
from rdsnet.fitting.scores import fit_score_thresholds
from rdsnet.training import finish as finishing

CATEGORIES = [{"id": 5, "name": "bee"}, {"id": 2, "name": "ant"}]  # classes: ant, bee
BOXES = [[4, 4, 10, 10], [30, 4, 10, 10], [4, 30, 10, 10]]


@pytest.fixture
def cfg(tmp_path):
    """Two data sets of one image each with three ants and a bee."""
    cfg = rdsnet.get_cfg()
    files = []
    for name in ("one", "two"):
        annotations = [
            {"id": n, "image_id": 1, "category_id": c, "bbox": b, "area": 100, "iscrowd": 0}
            for n, (c, b) in enumerate([(2, b) for b in BOXES] + [(5, [40, 40, 10, 10])], start=1)
        ]
        for a in annotations:
            x, y, w, h = a["bbox"]
            a["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        images = [{"id": 1, "file_name": "a.png", "height": 60, "width": 60}]
        content = {"images": images, "categories": CATEGORIES, "annotations": annotations}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        files.append([f"{name}_{tmp_path.name}", str(tmp_path / f"{name}.json"), str(tmp_path)])
    (tmp_path / "a.png").write_bytes(b"not read")
    cfg.DATASETS.COCO_FILES = files
    cfg.DATASETS.TEST = tuple(file[0] for file in files)
    cfg.MODEL.RETINANET.NUM_CLASSES = 2
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    register_coco_files(cfg)
    return cfg


def leave_results(cfg, tmp_path, per_set):
    """Per data set (category id, box, score) of detections, as an evaluation writes them."""
    for name, found in zip(cfg.DATASETS.TEST, per_set, strict=True):
        folder = tmp_path / "output" / "inference"
        folder = folder / name if len(per_set) > 1 else folder
        folder.mkdir(parents=True, exist_ok=True)
        results = [
            {"image_id": 1, "category_id": c, "bbox": box, "score": score}
            for c, box, score in found
        ]
        (folder / "coco_instances_results.json").write_text(json.dumps(results))


NOWHERE = [50, 10, 8, 8]
# Ants are right from 0.41 on, bees from 0.83 on.
FOUND = (
    [(2, BOXES[0], 0.9), (2, BOXES[1], 0.41), (2, NOWHERE, 0.4), (5, [40, 40, 10, 10], 0.83)],
    [(2, BOXES[0], 0.8), (2, BOXES[2], 0.5), (5, NOWHERE, 0.8), (5, BOXES[0], 0.7)],
)


def test_every_class_has_its_own_over_all_data_sets(cfg, tmp_path):
    leave_results(cfg, tmp_path, FOUND)
    fit = fit_score_thresholds(cfg)
    assert fit.best_scores == [0.41, 0.83]
    assert [curve.objects for curve in fit.classes] == [6, 2]


@pytest.fixture
def finished(cfg, tmp_path, monkeypatch):
    """A training that is over; its evaluation leaves FOUND and says that it took place."""
    cfg.MODEL.RDSNET.FIT_SCORE_THRESHOLDS = True
    cfg.TEST.BEST_METRIC = "segm/AP"
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "last_checkpoint").write_text("model_final.pth")
    torch.save({"model": {"weight": torch.tensor(5.0)}}, folder / "model_final.pth")
    best = {"metric": "segm/AP", "value": 7.0, "iteration": 3}
    save_model(folder / "model_best.pth", {"weight": torch.tensor(5.0)}, cfg, best=best)

    def evaluate(cfg, weights):
        assert weights["weight"] == 5
        leave_results(cfg, tmp_path, FOUND)
        return "evaluated"

    monkeypatch.setattr(finishing, "evaluate", evaluate)
    return cfg


def test_the_thresholds_are_kept_in_the_checkpoint(finished, tmp_path, caplog):
    caplog.set_level("INFO", logger="rdsnet")
    assert finishing.finish(finished, "of the last model") == "evaluated"
    path = tmp_path / "output" / "model_best.pth"
    assert read_config(path).MODEL.RDSNET.SCORE_THRESHOLDS == [0.41, 0.83]
    kept = torch.load(path, weights_only=True)
    assert kept["best"]["value"] == 7 and kept["model"]["weight"] == 5
    assert list(finished.MODEL.RDSNET.SCORE_THRESHOLDS) == []  # the caller's
    assert "Best F1" in caplog.text


def test_what_was_evaluated_for_another_fit_is_not_evaluated_again(finished, tmp_path, monkeypatch):
    finished.MODEL.RDSNET.MBRM.FIT.AFTER_TRAINING = True
    leave_results(finished, tmp_path, FOUND)
    monkeypatch.setattr(finishing, "_fit_mbrm", lambda cfg, best: "with the new kernel")
    monkeypatch.setattr(finishing, "evaluate", None)
    assert finishing.finish(finished, None) == "with the new kernel"
    stored = read_config(tmp_path / "output" / "model_best.pth")
    assert stored.MODEL.RDSNET.SCORE_THRESHOLDS == [0.41, 0.83]


@pytest.mark.parametrize("reason", ["finds no object in one_", "DATASETS.TEST is empty"])
def test_where_nothing_can_be_chosen_that_is_said(finished, tmp_path, monkeypatch, caplog, reason):
    def evaluate(cfg, weights):
        leave_results(cfg, tmp_path, [[(2, NOWHERE, 0.9)], []])
        return "evaluated"

    monkeypatch.setattr(finishing, "evaluate", evaluate)
    if "empty" in reason:
        finished.DATASETS.TEST = ()
    assert finishing.finish(finished, "last") == ("last" if "empty" in reason else "evaluated")
    assert "Objects are shown from score 0.5 on:" in caplog.text and reason in caplog.text
    stored = read_config(tmp_path / "output" / "model_best.pth")
    assert stored.MODEL.RDSNET.SCORE_THRESHOLDS == []
