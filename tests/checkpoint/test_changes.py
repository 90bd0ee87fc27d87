"""Which runs --resume goes on with, and what is said of weights that are used otherwise."""

import ast

import pytest
import torch
import yaml

from rdsnet import get_cfg
from rdsnet.checkpoint import changes
from rdsnet.checkpoint.changes import check_other_use, flat, is_fixed, refuse_other_run
from rdsnet.checkpoint.description import KEY, save_model

CLASSES = [[3, "leaf"], [7, "stem"], [8, "root"]]


def config(folder, **values):
    """A config of three classes; ``values`` are full keys with "__" for the dots."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "RDSNet"
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.DATASETS.CLASSES = CLASSES
    cfg.OUTPUT_DIR = str(folder)
    for key, value in values.items():
        node = cfg
        *path, last = key.split("__")
        for name in path:
            node = node[name]
        node[last] = value
    return cfg


def save_run(folder, cfg):
    """What a training leaves in its folder, with a weight in place of the model."""
    save_model(folder / "model_0000009.pth", {"weight": torch.zeros(2)}, cfg)
    (folder / "last_checkpoint").write_text("model_0000009.pth")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("DATASETS__CLASSES", [[3, "stem"], [7, "leaf"], [8, "root"]], "3 was 'leaf' and is 'stem"),
        ("DATASETS__CLASSES", [[3, "leaf"], [7, "stem"], [9, "root"]], "9 'root' is new"),
        ("DATASETS__CLASSES", [[3, "leaf"], [7, "Stem"], [8, "root"]], "7 was 'stem' and is 'Stem"),
        ("DATASETS__MAPPER", "AnotherMapper", "was RDSNetDatasetMapper and is AnotherMapper"),
        ("INPUT__FORMAT", "RGB", "INPUT.FORMAT was BGR and is RGB"),
        ("MODEL__PIXEL_MEAN", [0.0, 1.0, 2.0], "is [0.0, 1.0, 2.0]"),
        ("MODEL__PIXEL_STD", [57.0, 57.0, 58.0], "was [1.0, 1.0, 1.0]"),
        ("MODEL__META_ARCHITECTURE", "AuthorsRDSNet", "was RDSNet and is AuthorsRDSNet"),
        ("MODEL__RDSNET__OBJECT_STREAM", "FCOSStream", "was RetinaNetStream and is FCOSStream"),
        ("MODEL__RDSNET__REPRESENTATION_DIM", 24, "was 32 and is 24"),
        ("MODEL__RDSNET__PIXEL_STREAM__NORM", "", "was GN and is ''"),
        ("MODEL__RDSNET__MBRM__RADIUS", 6, "was 4 and is 6"),
        ("MODEL__ANCHOR_GENERATOR__SIZES", [[8, 16]], "was [[32, 64, 128, 256, 512]] and is [[8, "),
        ("MODEL__ANCHOR_GENERATOR__ASPECT_RATIOS", [[1.0]], "is [[1.0]]"),
        ("MODEL__ANCHOR_GENERATOR__OFFSET", 0.5, "was 0.0 and is 0.5"),
        ("MODEL__RETINANET__NUM_CONVS", 2, "was 4 and is 2"),
        ("MODEL__RETINANET__NORM", "GN", "was '' and is GN"),
        ("MODEL__RETINANET__BBOX_REG_WEIGHTS", (10.0, 10.0, 5.0, 5.0), "[10.0, 10.0, 5.0, 5.0]"),
        ("MODEL__BACKBONE__NAME", "build_another_backbone", "is build_another_backbone"),
        ("MODEL__FPN__OUT_CHANNELS", 128, "was 256 and is 128"),
        ("MODEL__RESNETS__DEPTH", 101, "was 50 and is 101"),
        ("MODEL__FCOS__CENTER_SAMPLING_RADIUS", 2.5, "was 1.5 and is 2.5"),
        ("SOLVER__OPTIMIZER", "AdamW", "was SGD and is AdamW"),
        ("SOLVER__WEIGHT_DECAY_BIAS", 0.1, "was None and is 0.1"),
    ],
)
def test_a_run_that_would_mean_something_else_is_refused(tmp_path, key, value, said):
    save_run(tmp_path, config(tmp_path))
    before = contents(tmp_path)
    with pytest.raises(ValueError) as error:
        refuse_other_run(config(tmp_path, **{key: value}))
    message = str(error.value)
    assert said in message
    assert "--resume cannot go on with" in message and "model_0000009.pth" in message
    assert "--output DIR" in message and "OUTPUT_DIR" in message and "MODEL.WEIGHTS" in message
    assert contents(tmp_path) == before


def test_more_and_fewer_classes_are_named_and_not_counted(tmp_path):
    save_run(tmp_path, config(tmp_path))
    for classes, said in (
        ([*CLASSES, [9, "fruit"]], "category 9 'fruit' is new"),
        (CLASSES[:1], "category 7 'stem' is gone; category 8 'root' is gone"),
    ):
        cfg = config(
            tmp_path,
            DATASETS__CLASSES=classes,
            MODEL__RETINANET__NUM_CLASSES=len(classes),
        )
        with pytest.raises(ValueError) as error:
            refuse_other_run(cfg)
        assert said in str(error.value) and "NUM_CLASSES" not in str(error.value)


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        (
            {"MODEL__WEIGHTS": "a.pth"},
            {"MODEL__WEIGHTS": "a.pth", "SOLVER__BACKBONE_LR_FACTOR": 0.25},
            "had the learning rate of all others.*SOLVER.BACKBONE_LR_FACTOR 1.0 at the end",
        ),
        (
            {"MODEL__WEIGHTS": "a.pth", "SOLVER__BACKBONE_LR_FACTOR": 0.25},
            {"SOLVER__BACKBONE_LR_FACTOR": 0.25},
            "had a learning rate of its own.*FACTOR 0.25 MODEL.WEIGHTS a.pth at the end",
        ),
        (
            {"SOLVER__BACKBONE_LR_FACTOR": 0.25},
            {"MODEL__WEIGHTS": "a.pth", "SOLVER__BACKBONE_LR_FACTOR": 0.25},
            "had the learning rate of all others.*FACTOR 0.25 MODEL.WEIGHTS '' at the end",
        ),
        (
            {"MODEL__WEIGHTS": "a.pth", "SOLVER__BACKBONE_LR_FACTOR": 0.25},
            {"MODEL__WEIGHTS": "b.pth", "SOLVER__BACKBONE_LR_FACTOR": 0.1},
            "",
        ),
        ({}, {"SOLVER__BACKBONE_LR_FACTOR": 0.25}, ""),  # random weights
    ],
)
def test_a_backbone_with_a_rate_of_its_own_goes_on_with_one(tmp_path, then, now, said):
    """Its parameters are groups of their own in the optimizer; the rate itself may change."""
    save_run(tmp_path, config(tmp_path, **then))
    if said:
        with pytest.raises(ValueError, match=f"--resume cannot go on .*{said} of the command"):
            refuse_other_run(config(tmp_path, **now))
    else:
        assert "SOLVER.BACKBONE_LR_FACTOR" in refuse_other_run(config(tmp_path, **now))


def test_what_a_resumed_run_may_change_is_told(tmp_path):
    save_run(tmp_path, config(tmp_path))
    values = {
        "SOLVER__MAX_ITER": 77,
        "SOLVER__STEPS": (50,),
        "SOLVER__BASE_LR": 0.25,
        "SOLVER__IMS_PER_BATCH": 6,
        "SOLVER__EMA__ENABLED": True,
        "TEST__EVAL_PERIOD": 11,
        "TEST__DETECTIONS_PER_IMAGE": 300,
        "DATALOADER__NUM_WORKERS": 0,
        "DATASETS__TRAIN": ("elsewhere",),
        "INPUT__MIN_SIZE_TRAIN": (320, 352),
        "MODEL__DEVICE": "cuda:3",
        "MODEL__WEIGHTS": "other.pkl",
        "MODEL__RETINANET__SCORE_THRESH_TEST": 0.3,
        "MODEL__RDSNET__MASK_THRESHOLD": 0.5,
        "MODEL__RDSNET__SCORE_THRESHOLDS": [0.25],
        "MODEL__RDSNET__MBRM__GAMMA": 0.1,
        "MODEL__RDSNET__MASK_LOSS_WEIGHT": 2.0,
    }
    changed = refuse_other_run(config(tmp_path, **values))
    assert changed.keys() == {key.replace("__", ".") for key in values}
    assert changed["SOLVER.BASE_LR"] == (0.001, 0.25)
    assert refuse_other_run(config(tmp_path)) == {}


def test_every_key_of_the_model_is_fixed_unless_it_is_known_to_be_free():
    cfg = get_cfg()
    cfg.MODEL["A_LATER_PROJECT"] = type(cfg.MODEL)({"CHANNELS": 3})
    of_model = [key for key in flat(cfg) if key.startswith("MODEL.")]
    free = [key for key in of_model if not is_fixed(key)]
    assert "MODEL.A_LATER_PROJECT.CHANNELS" in of_model and len(free) < len(of_model) / 4
    assert not any(word in key for key in free for word in ("ANCHOR", "BACKBONE", "FPN", "NORM"))
    assert not is_fixed("MODEL.RDSNET.OHEM.ENABLED")
    assert is_fixed("MODEL.WEIGHTS_OF_SOMETHING")  # another key than MODEL.WEIGHTS


def test_without_a_config_in_the_checkpoint_the_one_beside_it_counts(tmp_path):
    torch.save({"model": {}}, tmp_path / "model_final.pth")
    other = config(tmp_path, INPUT__FORMAT="RGB")
    assert refuse_other_run(other) == {}  # nothing to compare with
    (tmp_path / "config.yaml").write_text("- no config\n")
    assert refuse_other_run(other) == {}
    (tmp_path / "config.yaml").write_text(config(tmp_path).dump())
    with pytest.raises(ValueError, match="INPUT.FORMAT was BGR and is RGB"):
        refuse_other_run(other)
    # What an earlier --resume has overwritten says less than the checkpoint.
    save_run(tmp_path, other)
    assert refuse_other_run(other) == {}


def test_a_folder_without_checkpoint_is_a_new_run(tmp_path):
    (tmp_path / "config.yaml").write_text(config(tmp_path, INPUT__FORMAT="RGB").dump())
    assert refuse_other_run(config(tmp_path)) == {}
    assert refuse_other_run(config(tmp_path / "nowhere")) == {}


def test_configs_of_other_versions_are_compared_where_they_can_be(tmp_path):
    """A key that is gone is nobody's business; one that was not there was as by default."""
    stored = yaml.safe_load(config(tmp_path).dump())
    stored["MODEL"]["OLD_PROJECT"] = {"DEPTH": 3}
    del stored["MODEL"]["RDSNET"]["REPRESENTATION_DIM"], stored["MODEL"]["YOLACT"]
    entry = {"version": "0", "config": yaml.safe_dump(stored)}
    torch.save({"model": {}, KEY: entry}, tmp_path / "model_final.pth")
    assert refuse_other_run(config(tmp_path)) == {}
    with pytest.raises(ValueError, match="REPRESENTATION_DIM was 32 and is 8"):
        refuse_other_run(config(tmp_path, MODEL__RDSNET__REPRESENTATION_DIM=8))


def test_unknown_classes_and_numbers_are_not_compared(tmp_path):
    unknown = {"DATASETS__CLASSES": [], "MODEL__RETINANET__NUM_CLASSES": -1}
    save_run(tmp_path, config(tmp_path, **unknown))
    assert refuse_other_run(config(tmp_path)) == {}


def test_a_written_value_is_the_same_value(tmp_path):
    """yaml has no tuples, and a command line gives text."""
    cfg = config(tmp_path, MODEL__RETINANET__BBOX_REG_WEIGHTS=(2.0, 2.0, 1.0, 1.0))
    save_run(tmp_path, cfg)
    again = config(tmp_path)
    again.merge_from_list(["MODEL.RETINANET.BBOX_REG_WEIGHTS", "[2, 2, 1, 1]"])
    assert refuse_other_run(again) == {}
    assert ast.literal_eval(str(again.MODEL.RETINANET.BBOX_REG_WEIGHTS)) == (2, 2, 1, 1)


def test_weights_that_hold_no_config_are_nobodys_business(tmp_path):
    weights = {"model": {"weight": torch.zeros(2)}}
    torch.save(weights, tmp_path / "new.pth")
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("new.pth", "old.pth", "missing.pth"):
        check_other_use(config(tmp_path), str(tmp_path / name))
    check_other_use(config(tmp_path), "detectron2://ImageNetPretrained/MSRA/R-50.pkl")


def test_weights_used_with_classes_in_another_order_are_refused(tmp_path):
    save_run(tmp_path, config(tmp_path))
    other = config(tmp_path, DATASETS__CLASSES=[[1, "root"], [2, "leaf"], [3, "stem"]])
    with pytest.raises(ValueError, match="learnt the classes leaf, stem, root in this order"):
        check_other_use(other, str(tmp_path / "model_0000009.pth"))


def test_weights_used_otherwise_are_warned_of(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(changes.logger, "warning", said.append)
    save_run(tmp_path, config(tmp_path))
    weights = str(tmp_path / "model_0000009.pth")
    same = config(
        tmp_path,
        # Other ids of the same classes, and what concerns a training alone or can be chosen.
        DATASETS__CLASSES=[[1, "leaf"], [2, "stem"], [4, "root"]],
        MODEL__BACKBONE__FREEZE_AT=4,
        MODEL__RDSNET__MBRM__RADIUS=2,
        MODEL__RDSNET__TEST_EXPAND=1.4,
        SOLVER__OPTIMIZER="AdamW",
    )
    check_other_use(same, weights)
    check_other_use(config(tmp_path, INPUT__FORMAT="RGB"), "")
    assert not said
    renamed = config(
        tmp_path, DATASETS__CLASSES=[[3, "leaf"], [7, "stalk"], [8, "root"]], INPUT__FORMAT="RGB"
    )
    check_other_use(renamed, weights)
    assert "stem for stalk" in said[0] and "INPUT.FORMAT was BGR and is RGB" in said[1]
    assert f"--config-file {weights}" in said[1]
