"""``--score-threshold auto``: what was best in validation, by class; a number overrides it."""

import pytest
import torch
from helpers.predicting import OBJECTS, load_coco, picture
from PIL import Image

from rdsnet.checkpoint import load_config
from rdsnet.checkpoint.description import save_model
from rdsnet.checkpoint.trained import score_thresholds
from rdsnet.cli import main
from rdsnet.prediction.thresholds import ScoreThresholds

CLASS = {4: 0, 9: 1}


@pytest.fixture
def run(model_files, tmp_path):
    """Predict with a checkpoint that holds these thresholds; returns its COCO results."""
    Image.fromarray(picture()).save(tmp_path / "a.png")

    def call(thresholds, *arguments):
        cfg = load_config(model_files["config"])
        cfg.MODEL.RDSNET.SCORE_THRESHOLDS = thresholds
        weights = torch.load(model_files["weights"], weights_only=True)["model"]
        save_model(tmp_path / "model.pth", weights, cfg)
        words = ["predict", "--weights", str(tmp_path / "model.pth"), "--format", "coco"]
        words += ["--input", str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
        # bfloat16 has too few digits to tell the scores of an untrained model apart.
        assert main([*words, "--precision", "float32", *arguments]) == 0
        return load_coco(tmp_path / "out")[1]

    return call


@pytest.fixture
def everything(run):
    """All objects of the model of random weights, which is sure of nothing."""
    results = run([], "--score-threshold", "0")
    assert len(results) == OBJECTS
    return results


def between(scores, k):
    """A threshold that the k best of these scores reach."""
    ordered = sorted(scores, reverse=True)
    return (ordered[k - 1] + ordered[k]) / 2


def test_one_threshold_of_all_classes(run, everything, capsys):
    middle = between([r["score"] for r in everything], 3)
    found = run([middle, middle])
    best = sorted(r["score"] for r in everything)[-3:]
    assert sorted(r["score"] for r in found) == pytest.approx(best)
    text = capsys.readouterr().out
    assert f"Shown from score {middle:g} on, which was best in validation" in text


def test_every_class_has_its_own_threshold(run, everything, capsys):
    """Everything of the one class, and nothing of the other."""
    for kept in CLASS:
        thresholds = [0.0 if category == kept else 1.0 for category in CLASS]
        expected = [r for r in everything if r["category_id"] == kept]
        found = run(thresholds, "--score-threshold", "auto")
        assert [r["category_id"] for r in found] == [kept] * len(expected)
        if expected:
            text = "0 (disc), 1 (bar)" if kept == 4 else "1 (disc), 0 (bar)"
            assert f"Shown from score {text} on" in capsys.readouterr().out


def test_a_number_overrides_them(run, everything, capsys):
    assert len(run([1.0, 1.0], "--score-threshold", "0")) == OBJECTS
    assert "validation" not in capsys.readouterr().out


def test_without_them_it_is_a_half_and_nothing_is_said_of_it(run, capsys):
    assert run([]) == []
    text = capsys.readouterr().out
    assert "validation" not in text and "No object reached the score 0.5;" in text


def test_thresholds_of_other_classes_are_refused(model_files, tmp_path, capsys):
    cfg = load_config(model_files["config"])
    for wrong in ([0.3], [0.3, 1.2]):
        cfg.MODEL.RDSNET.SCORE_THRESHOLDS = wrong
        with pytest.raises(ValueError, match="should be one number from 0 to 1 for each of 2 cla"):
            score_thresholds(cfg)
        assert ScoreThresholds.chosen(cfg, 0.3).of_classes == (0.3, 0.3)  # they do not matter


@pytest.mark.parametrize("wrong", ["automatic", "1.5", "-1", "nan"])
def test_what_is_no_score_is_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        main(["predict", "--weights", "x", "--input", "y", "--score-threshold", wrong])
    assert "is not a number from 0 to 1" in capsys.readouterr().err


def test_the_checkpoint_is_asked_where_the_config_does_not_say(model_files, tmp_path):
    cfg = load_config(model_files["config"])
    own = cfg.clone()
    own.MODEL.RDSNET.SCORE_THRESHOLDS = [0.25, 0.75]
    save_model(tmp_path / "model.pth", {}, own)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    assert score_thresholds(cfg) == [0.25, 0.75]
    cfg.MODEL.RDSNET.SCORE_THRESHOLDS = [0.5, 0.5]
    assert score_thresholds(cfg) == [0.5, 0.5]


def test_thresholds_are_named_while_they_are_few():
    few = ScoreThresholds((0.4, 0.35), ["dog", "cat"], fitted=True)
    assert few.text() == "0.4 (dog), 0.35 (cat)" and few.lowest == 0.35 and few.differ
    many = ScoreThresholds(tuple(k / 100 for k in range(20, 60)), None, fitted=True)
    assert many.text() == "0.2 to 0.59, by class"
    assert many.of(torch.tensor([0, 39])).tolist() == pytest.approx([0.2, 0.59])
