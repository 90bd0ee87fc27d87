"""The file that is shipped: small, safe, without traces of the training, and the same model."""

import os

import cv2
import pack_model
import pytest
import torch
from helpers.boxes import CARD, CLASSES, data_words
from helpers.predicting import picture

from rdsnet.checkpoint import load_config, load_model, read_checkpoint
from rdsnet.checkpoint.description import read_config, save_model
from rdsnet.checkpoint.packing import Card, pack, read_card
from rdsnet.config import flat


@pytest.fixture(scope="module")
def packed(trained_model, tmp_path_factory):
    return pack(trained_model, tmp_path_factory.mktemp("packed") / "small.pth", CARD)


def test_it_is_little_more_than_half_as_large(trained_model, packed):
    before = (trained_model / "model_best.pth").stat().st_size
    assert packed.size == packed.path.stat().st_size < 0.6 * before


def test_kernels_are_halved_and_all_else_is_as_it_was(trained_model, packed):
    before = read_checkpoint(trained_model / "model_best.pth")["model"]
    after = read_checkpoint(packed.path)["model"]  # weights_only
    assert list(after) == list(before)
    for name, value in after.items():
        is_kernel = value.ndim == 4
        assert value.dtype == (torch.float16 if is_kernel else before[name].dtype), name
        # Half precision has 11 bits: rounding moves a number by at most half of the last one.
        limit = 2.0**-11 * before[name].abs() + 2.0**-25 if is_kernel else 0
        assert ((value.to(before[name]) - before[name]).abs() <= limit).all(), name
    assert after["mbrm.weight"].dtype == torch.float32
    halved = sum(value.dtype == torch.float16 for value in after.values())
    assert (packed.halved, packed.kept) == (halved, len(after) - halved)
    assert 0 < packed.largest_change <= 2.0**-11


def test_loaded_it_is_float32_again(packed):
    model = load_model(load_config(str(packed.path), ["MODEL.WEIGHTS", str(packed.path)]))
    floating = [v for v in model.state_dict().values() if v.is_floating_point()]
    assert {value.dtype for value in floating} == {torch.float32}


def test_it_sees_what_the_model_saw(trained_model, packed):
    """Scores of random weights lie too close together to compare objects."""
    images = [{"image": torch.from_numpy(picture(64, 96, seed=s)).permute(2, 0, 1)} for s in (1, 2)]
    found = []
    for path in (str(trained_model / "model_best.pth"), str(packed.path)):
        model = load_model(load_config(path, ["MODEL.WEIGHTS", path, "MODEL.DEVICE", "cpu"]))
        with torch.no_grad():
            features = model.backbone(model.preprocess_image(images).tensor)
        found.append({**features, "psi": model.pixel_stream(features)})
    for name, before in found[0].items():
        difference = (found[1][name] - before).norm() / before.norm()
        # A few dozen layers, each of which adds an error of its own of at most 2^-11.
        assert 0 < difference < 40 * 2.0**-11, name


def test_settings_stay_and_traces_of_the_training_go(trained_model, packed):
    before = flat(read_config(trained_model / "model_best.pth"))
    after = flat(read_config(packed.path))
    assert after["MODEL.RDSNET.MASK_THRESHOLD"] == 0.31
    assert after["DATASETS.CLASSES"] == CLASSES
    gone = before.keys() - after.keys()
    assert gone == {
        *("DATASETS.COCO_FILES", "DATASETS.TRAIN", "DATASETS.TEST", "OUTPUT_DIR", "SEED"),
        *("MODEL.DEVICE", "MODEL.WEIGHTS"),
    }
    assert all(after[key] == before[key] for key in after)
    content = packed.path.read_bytes()
    assert os.fsencode(trained_model) not in content and b"cli_test" not in content
    assert "best" not in read_checkpoint(packed.path)


def test_the_card_is_in_the_file(packed, trained_model):
    assert read_card(packed.path) == CARD
    assert read_card(trained_model / "model_best.pth") is None
    assert CARD.figures_text() == "box AP 12.3 on other noise"
    assert Card("a", "b", "c").figures_text() == ""


def test_a_tensor_that_half_precision_would_spoil_is_kept(trained_model, tmp_path):
    content = read_checkpoint(trained_model / "model_best.pth")
    name = "backbone.fpn_lateral3.weight"
    cfg = read_config(trained_model / "model_best.pth")
    for scale in (1e9, 1e-9):  # beyond its largest number, and below its smallest
        weights = {**content["model"], name: content["model"][name] * scale}
        save_model(tmp_path / "extreme.pth", weights, cfg)
        pack(tmp_path / "extreme.pth", tmp_path / "packed.pth", CARD)
        assert torch.equal(read_checkpoint(tmp_path / "packed.pth")["model"][name], weights[name])


def test_what_cannot_be_shipped_is_refused(trained_model, model_files, tmp_path):
    target = tmp_path / "packed.pth"
    with pytest.raises(FileNotFoundError, match="model_best.pth' does not exist"):
        pack(tmp_path, target, CARD)
    with pytest.raises(ValueError, match="holds no config. Give the output folder"):
        pack(model_files["weights"], target, CARD)
    path = trained_model / "model_best.pth"
    content, cfg = read_checkpoint(path), read_config(path)
    content["model"]["mbrm.bias"] = torch.tensor([float("nan")])
    save_model(tmp_path / "nan.pth", content["model"], cfg)
    with pytest.raises(ValueError, match="not finite, in mbrm.bias"):
        pack(tmp_path / "nan.pth", target, CARD)
    cfg.DATASETS.CLASSES = []
    save_model(tmp_path / "nameless.pth", content["model"], cfg)
    with pytest.raises(ValueError, match="no names of its classes"):
        pack(tmp_path / "nameless.pth", target, CARD)
    assert not target.exists()


def test_the_lowest_scores_to_show_stay_or_are_given(trained_model, packed, tmp_path):
    key = "MODEL.RDSNET.SCORE_THRESHOLDS"
    assert flat(read_config(packed.path))[key] == []
    pack(packed.path, tmp_path / "given.pth", CARD, score_thresholds=[0.25, 0.5])
    assert flat(read_config(tmp_path / "given.pth"))[key] == [0.25, 0.5]
    pack(tmp_path / "given.pth", tmp_path / "again.pth", CARD)
    assert flat(read_config(tmp_path / "again.pth"))[key] == [0.25, 0.5]


@pytest.mark.slow
def test_the_tool_evaluates_before_and_after(trained_model, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), picture())
    data_words(tmp_path, tmp_path)
    words = [str(trained_model), str(tmp_path / "packed.pth"), "--finds", "discs"]
    words += ["--data", "noise", "--licence", "MIT", "--evaluated-on", "one image"]
    assert pack_model.main([*words, "--val", str(tmp_path / "data.json"), str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("box without MBRM") >= 2 and "in half precision" in printed
    card = read_card(tmp_path / "packed.pth")
    assert (card.finds, card.data, card.licence) == ("discs", "noise", "MIT")
    assert set(card.figures) == {"box AP", "mask AP", "mask AP50"}
    assert pack_model.main([str(tmp_path / "nowhere"), *words[1:]]) == 2
    assert "does not exist" in capsys.readouterr().err
