"""Models in the box: found by name, and the same wherever a file of weights may be given."""

from importlib.metadata import entry_points

import cv2
import pytest
import torch
from helpers.boxes import CLASSES, data_words
from helpers.predicting import load_coco, picture

from rdsnet import model_zoo
from rdsnet.app.page import Finder
from rdsnet.checkpoint import Checkpointer, load_config, load_model, shipped
from rdsnet.checkpoint.shipped import shipped_models, weights_file
from rdsnet.cli import main
from rdsnet.fitting import fit
from rdsnet.prediction.predictor import Predictor


def test_a_name_stands_for_the_file_of_its_package(box):
    assert weights_file("shapes_in_noise") == str(box)
    assert model_zoo.get_weights_file("shapes_in_noise") == str(box)
    assert list(shipped_models()) == ["lost", "shapes_in_noise"]


@pytest.mark.parametrize(
    "text", ["", "timm://resnet18", "detectron2://x/y.pkl", "a.pth", "./lost", "no/such"]
)
def test_paths_and_addresses_are_left_alone(box, text):
    assert weights_file(text) == text


def test_a_file_of_that_name_wins_and_a_folder_does_not(box, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes_in_noise").mkdir()  # as that of the data
    assert weights_file("shapes_in_noise") == str(box)
    (tmp_path / "shapes_in_noise").rmdir()
    (tmp_path / "shapes_in_noise").write_bytes(b"weights")
    assert weights_file("shapes_in_noise") == "shapes_in_noise"


def test_an_unknown_name_lists_the_known_ones(box):
    with pytest.raises(FileNotFoundError, match="'shapes' are neither .* lost, shapes_in_noise"):
        weights_file("shapes")


def test_a_file_that_is_missing_is_said_to_be(box):
    with pytest.raises(FileNotFoundError, match="lost' belongs to this installation, but .*lost"):
        weights_file("lost")


def test_where_no_package_brings_one_that_is_said(monkeypatch, capsys):
    monkeypatch.setattr(shipped, "entry_points", lambda group: [])
    with pytest.raises(FileNotFoundError, match="No package brings one"):
        weights_file("nuclei")
    assert main(["models"]) == 0
    assert "No model is in the box" in capsys.readouterr().out


def test_a_package_that_is_gone_is_missing(box, monkeypatch):
    entries = shipped.entry_points(shipped.GROUP)
    (gone,) = [e for e in entries if e.name == "lost"]
    vars(gone)["value"] = "no_such_package.inside"
    with pytest.raises(FileNotFoundError, match="the package no_such_package.inside is missing"):
        weights_file("lost")


def test_the_list_has_what_each_card_says(box, capsys):
    assert main(["models"]) == 0
    lost, shapes = capsys.readouterr().out.split("\n\n")[:2]
    assert lost.startswith("lost\n  not there: ") and "CC0" not in lost
    for words in (
        "discs and bars in noise",
        "classes: disc, bar",
        "box AP 12.3 on other noise",
        "licence: CC0 1.0",
        str(box),
        f"({box.stat().st_size / 1e6:.1f} MB)",
        "model_card.md",
    ):
        assert words in shapes


def test_a_damaged_file_does_not_hide_the_others(box, capsys):
    box.write_bytes(box.read_bytes()[:1000])
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert "shapes_in_noise\n  not usable: " in printed and "lost\n" in printed


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "a.png"), picture())
    return tmp_path / "photos"


def test_prediction_needs_nothing_but_the_name(box, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = {}
    for weights in ("shapes_in_noise", str(box)):
        words = ["predict", "--weights", weights, "--input", str(photos), "--output", "out"]
        assert main([*words, "--format", "coco", "--score-threshold", "0"]) == 0
        content, results[weights] = load_coco(tmp_path / "out")
        assert [(c["id"], c["name"]) for c in content["categories"]] == list(map(tuple, CLASSES))
    assert results["shapes_in_noise"] and results["shapes_in_noise"] == results[str(box)]


def test_the_page_takes_a_name(box):
    assert Finder(None, "shapes_in_noise", 50).class_names == ["disc", "bar"]


def test_a_predictor_takes_a_name(box):
    cfg = load_config(str(box), ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"])
    by_path = cfg.clone()
    cfg.MODEL.WEIGHTS, by_path.MODEL.WEIGHTS = "shapes_in_noise", str(box)
    found, same = (Predictor(c)(picture(seed=1))["instances"] for c in (cfg, by_path))
    assert len(found) and torch.equal(found.scores, same.scores)


def test_a_config_takes_a_name(box):
    cfg = load_config(str(box), ["MODEL.WEIGHTS", "shapes_in_noise"])
    assert cfg.MODEL.WEIGHTS == str(box)
    model = load_model(cfg)
    Checkpointer(model).load("shapes_in_noise")
    with pytest.raises(FileNotFoundError, match="neither a file nor the name"):
        Checkpointer(model).load("noise")


def test_evaluation_takes_a_name_and_its_config(box, photos, tmp_path, capsys):
    words = data_words(tmp_path, photos)
    assert main(["eval", "--weights", "shapes_in_noise", *words, "TEST.REPORT", "False"]) == 0
    assert "box without MBRM" in capsys.readouterr().out


def test_the_fit_takes_a_name_and_its_config(box, photos, tmp_path, monkeypatch):
    fitted = []

    def stop(cfg, trust):
        fitted.append(cfg)
        raise ValueError("far enough")

    monkeypatch.setattr(fit, "fit_mbrm", stop)
    assert main(["fit-mbrm", "--weights", "shapes_in_noise", *data_words(tmp_path, photos)]) == 2
    assert fitted[0].MODEL.WEIGHTS == str(box)
    assert fitted[0].MODEL.RDSNET.MASK_THRESHOLD == 0.31  # of the checkpoint


def test_commands_without_weights_and_config_say_what_to_give(capsys):
    for command in ("eval", "fit-mbrm"):
        assert main([command]) == 2
        assert "give --weights FILE" in capsys.readouterr().err


def test_export_takes_a_name(box, tmp_path):
    words = ["export", "--weights", "shapes_in_noise", "--output", str(tmp_path / "model.pt2")]
    assert main([*words, "--size", "64", "96", "--max-detections", "3"]) == 0
    assert (tmp_path / "model.pt2").is_file()


def test_the_nuclei_model_belongs_to_the_installation():
    names = {entry.name: entry.value for entry in entry_points(group=shipped.GROUP)}
    assert names.get("nuclei") == "rdsnet.projects.nuclei"
    assert shipped_models()["nuclei"].card.read_text().startswith("# Model card")
