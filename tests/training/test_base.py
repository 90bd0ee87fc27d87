"""`rdsnet train --data --weights`: the model is that of the weights, the rest is decided anew."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from rdsnet.checkpoint import load_config, read_checkpoint
from rdsnet.checkpoint.description import read_config, save_model
from rdsnet.cli import main
from rdsnet.data.shapes import make_shapes_dataset
from rdsnet.training.base import base
from rdsnet.training.own_data import prepare
from rdsnet.training.settings import Wishes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Of five classes."""
    folder = tmp_path_factory.mktemp("shapes")
    paths = make_shapes_dataset(folder, num_train=2, num_val=1, size=(64, 96), seed=5)
    return paths["train_json"], paths["train_images"]


def prepared(data, weights=None, config=None, opts=(), **more):
    """The config as the training will load it, and {topic: text} of what is printed."""
    file, words, settings = prepare(
        data, None, config=config, weights=weights, output="out", wishes=Wishes(), opts=opts, **more
    )
    return load_config(file, words), dict(settings.notes)


@pytest.fixture
def weights(trained_model):
    return str(trained_model / "model_best.pth")


def other(weights, path, **keys):
    """The same weights with other values in their config."""
    cfg = read_config(weights)
    for key, value in keys.items():
        *parts, name = key.split("__")
        node = cfg
        for part in parts:
            node = node[part]
        node[name] = value
    save_model(path, read_checkpoint(weights)["model"], cfg)
    return str(path)


def test_the_model_is_that_of_the_weights(data, weights, tmp_path):
    weights = other(
        weights,
        tmp_path / "w.pth",
        MODEL__PIXEL_MEAN=[1.0, 2.0, 3.0],
        INPUT__FORMAT="RGB",
        MODEL__RDSNET__TRAIN_EXPAND=1.1,
    )
    cfg, notes = prepared(data, weights)
    stored = read_config(weights)
    assert cfg.MODEL.FPN == stored.MODEL.FPN
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[16], [32], [64], [128], [256]]
    assert (cfg.MODEL.PIXEL_MEAN, cfg.INPUT.FORMAT) == ([1.0, 2.0, 3.0], "RGB")
    assert cfg.MODEL.RDSNET.TRAIN_EXPAND == 1.1
    assert cfg.MODEL.WEIGHTS == weights
    assert cfg.MODEL.RETINANET.NUM_CLASSES == len(cfg.DATASETS.CLASSES) == 5
    assert notes["Weights"].startswith(f"those of {weights}; what is not taken over")


def test_what_was_decided_for_other_data_is_decided_anew(data, weights, tmp_path):
    """As with --config small, the config of the project with this backbone."""
    weights = other(
        weights,
        tmp_path / "w.pth",
        INPUT__CROP__ENABLED=True,
        INPUT__MIN_SIZE_TRAIN=[0],
        INPUT__MIN_SIZE_TEST=0,
        SOLVER__BASE_LR=0.25,
        SOLVER__EMA__ENABLED=True,
        TEST__PATIENCE=3,
        TEST__EVAL_PERIOD=7,
        MODEL__DEVICE="cuda",
        MODEL__RDSNET__MBRM__FIT__MAX_IMAGES=3,
        MODEL__RDSNET__SCORE_THRESHOLDS=[0.3, 0.4],
        SEED=8,
    )
    cfg, _ = prepared(data, weights, opts=("MODEL.DEVICE", "cpu"))
    usual, _ = prepared(data, config="small", opts=("MODEL.DEVICE", "cpu"))
    assert cfg.INPUT == usual.INPUT and cfg.SOLVER == usual.SOLVER
    assert cfg.TEST.PATIENCE == cfg.TEST.EVAL_PERIOD == 0 and cfg.SEED == -1
    keys, usual = cfg.MODEL.RDSNET, usual.MODEL.RDSNET
    assert keys.MASK_THRESHOLD == usual.MASK_THRESHOLD == 0.4  # it was fitted: 0.31
    assert keys.MBRM.FIT == usual.MBRM.FIT
    assert keys.SCORE_THRESHOLDS == usual.SCORE_THRESHOLDS == []  # they were of other classes


def test_the_device_is_one_of_this_machine(data, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    weights = other(weights, tmp_path / "w.pth", MODEL__DEVICE="cuda")
    assert prepared(data, weights)[0].MODEL.DEVICE == "cpu"


def test_a_name_and_an_address_are_weights_too(data, box):
    cfg, notes = prepared(data, "shapes_in_noise")
    assert cfg.MODEL.WEIGHTS == str(box) and str(box) in notes["Model"]
    address = base("R_50", "detectron2://ImageNetPretrained/MSRA/R-101.pkl")
    assert address.cfg.MODEL.WEIGHTS.endswith("R-101.pkl") and not address.from_weights


def test_a_config_that_is_asked_for_wins(data, weights):
    cfg, _ = prepared(data, weights, config="small")
    assert cfg.MODEL.FPN.OUT_CHANNELS == 96 and cfg.MODEL.WEIGHTS == weights


def test_weights_without_a_config_go_with_the_usual_one(data, weights, tmp_path):
    path = str(tmp_path / "bare.pth")
    torch.save({"model": read_checkpoint(weights)["model"]}, path)
    start = base("small", path)
    assert start.cfg.MODEL.WEIGHTS == path and not start.from_weights
    # config.yaml beside it is its config, unless it is a detector of Detectron2's
    (tmp_path / "config.yaml").write_text(read_config(weights).dump())
    assert base(None, path).config_file == str(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("MODEL:\n  META_ARCHITECTURE: RetinaNet\n")
    assert base(None, path).cfg.MODEL.META_ARCHITECTURE == "RDSNet"


def test_weights_of_a_project_keep_their_own_settings(data, weights, tmp_path):
    """No config of the project has their backbone."""
    weights = other(
        weights,
        tmp_path / "w.pth",
        MODEL__BACKBONE__NAME="build_resnet_backbone",
        SOLVER__BASE_LR=0.125,
    )
    start = base(None, weights)
    assert start.cfg.SOLVER.BASE_LR == 0.125 and start.cfg.MODEL.RDSNET.MASK_THRESHOLD == 0.4


def shifted(data, tmp_path, side):
    """The same images with one object of this size each."""
    content = json.loads(open(data[0]).read())
    content["annotations"] = [
        {
            "id": image["id"],
            "image_id": image["id"],
            "category_id": content["categories"][0]["id"],
            "bbox": [8, 8, side, side],
            "segmentation": [[8, 8, 8 + side, 8, 8 + side, 8 + side, 8, 8 + side]],
            "area": side * side,
            "iscrowd": 0,
        }
        for image in content["images"]
    ]
    path = tmp_path / f"{side}.json"
    path.write_text(json.dumps(content))
    return str(path), data[1]


def test_learnt_anchors_stay_unless_hardly_any_object_matches(data, weights, tmp_path):
    """The input is enlarged four times, to a shorter side of 256 px."""
    cfg, notes = prepared(data, weights)
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[16], [32], [64], [128], [256]]
    assert "those that the weights have learnt" in notes["Anchors"]
    far = other(weights, tmp_path / "w.pth", MODEL__ANCHOR_GENERATOR__SIZES=[[8, 9, 10, 11, 12]])
    cfg, notes = prepared(shifted(data, tmp_path, 11), far)  # 44 px
    assert min(cfg.MODEL.ANCHOR_GENERATOR.SIZES[0]) > 8
    assert "WARNING: the weights have learnt the usual ones" in notes["Anchors"]


def test_weights_that_are_not_there_end_it_before_anything_is_written(data, tmp_path, capsys):
    words = ["train", "--data", *data, "--output", str(tmp_path / "out"), "--weights"]
    assert main([*words, str(tmp_path / "none.pth")]) == 2
    assert "do not exist" in capsys.readouterr().err
    assert main([*words, "nucleii"]) == 2
    assert "neither a file nor the name of a model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_train_resume_predict(data, box, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [
        "train",
        "--data",
        *data,
        "--weights",
        "shapes_in_noise",
        "--output",
        str(tmp_path / "out"),
    ]
    words += ["--batch-size", "2", "--device", "cpu"]
    keys = ["DATALOADER.NUM_WORKERS", "0", "SEED", "1", "TEST.REPORT", "False"]
    keys += ["MODEL.MASK_ON", "True"]
    keys += ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"]
    keys += ["MODEL.RDSNET.MBRM.FIT.AFTER_TRAINING", "False"]
    assert main([*words, "--iterations", "2", *keys]) == 0
    printed = capsys.readouterr().out
    sentence = f"Training starts from {box}: the class layer begins anew"
    assert printed.count(sentence) == 1
    assert (tmp_path / "out" / "log.txt").read_text().count(sentence) == 1
    assert main([*words, "--iterations", "3", "--resume", *keys]) == 0
    assert "Training starts from" not in capsys.readouterr().out
    content = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)
    assert content["iteration"] == 2
    assert content["model"]["object_stream.head.cls_score.bias"].shape == (3 * 5,)

    DatasetCatalog.clear()
    MetadataCatalog.clear()
    words = ["predict", "--weights", "out/model_final.pth", "--input", data[1], "--output", "found"]
    assert main([*words, "--format", "coco"]) == 0
    images = json.loads((tmp_path / "found" / "images.json").read_text())
    assert len(images["categories"]) == 5
