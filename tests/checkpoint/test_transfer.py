"""A training that starts from a model of other classes: what is taken over, and what is said."""

import logging
import pickle

import pytest
import torch
from detectron2.modeling import build_model
from helpers.boxes import CLASSES

from rdsnet.checkpoint import Checkpointer, load_config, read_checkpoint
from rdsnet.checkpoint.description import read_config, save_model
from rdsnet.checkpoint.transfer import ClassMap, load_first_weights, with_classes_of

SCORE = "object_stream.head.cls_score"


def config(path, classes, *opts):
    """The config in a checkpoint, with its weights and other classes."""
    keys = ["MODEL.WEIGHTS", str(path), "DATASETS.COCO_FILES", "[]", "DATASETS.TRAIN", "()"]
    keys += ["DATASETS.TEST", "()", "MODEL.RETINANET.NUM_CLASSES", str(len(classes))]
    return load_config(str(path), [*keys, "DATASETS.CLASSES", repr(classes), *opts])


def start(cfg, caplog):
    """Weights that a training begins with, those of a new model, and what is said."""
    model = build_model(cfg).train()
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        load_first_weights(Checkpointer(model), cfg)
    said = [r.message for r in caplog.records if r.name == "rdsnet.checkpoint.transfer"]
    return model.state_dict(), own, said


@pytest.fixture
def path(trained_model):
    return trained_model / "model_best.pth"


def test_the_same_classes_take_all(path, caplog):
    after, _, said = start(config(path, CLASSES), caplog)
    for name, value in read_checkpoint(path)["model"].items():
        assert torch.equal(after[name], value), name
    assert said == [f"Training starts from {path}: all weights were taken over."]


def test_classes_are_found_by_name_wherever_they_stand(path, caplog):
    """Channel anchor * K + class; the model has one size of anchors in three shapes."""
    after, own, said = start(config(path, [[1, "Bar"], [2, "cross"], [3, "disc"]]), caplog)
    before = read_checkpoint(path)["model"]
    for kind in ("weight", "bias"):
        old, new, first = (s[f"{SCORE}.{kind}"] for s in (before, after, own))
        assert (len(old), len(new)) == (3 * 2, 3 * 3)
        for anchor in range(3):
            assert torch.equal(new[3 * anchor], old[2 * anchor + 1])
            assert torch.equal(new[3 * anchor + 1], first[3 * anchor + 1])
            assert torch.equal(new[3 * anchor + 2], old[2 * anchor])
    others = [name for name in before if not name.startswith(SCORE)]
    assert all(torch.equal(after[name], before[name]) for name in others)
    assert said == [f"Training starts from {path}: the class layer begins anew for 'cross'."]


def test_other_classes_begin_anew(path, caplog):
    after, own, said = start(config(path, [[1, "leaf"]]), caplog)
    assert torch.equal(after[f"{SCORE}.weight"], own[f"{SCORE}.weight"])
    assert said == [
        f"Training starts from {path}: the class layer begins anew, for 'leaf' instead of 'disc', "
        "'bar'."
    ]


def test_as_many_classes_of_other_names_are_no_reason_to_take_them(path, caplog):
    after, own, said = start(config(path, [[4, "leaf"], [9, "bar"]]), caplog)
    old = read_checkpoint(path)["model"][f"{SCORE}.weight"]
    assert torch.equal(after[f"{SCORE}.weight"][0::2], own[f"{SCORE}.weight"][0::2])
    assert torch.equal(after[f"{SCORE}.weight"][1::2], old[1::2])
    assert "begins anew for 'leaf', 'disc' is left out" in said[0]


def test_the_only_class_of_both_is_taken_whatever_its_name():
    before, now = config_of("nucleus"), config_of("beetle")
    classes = ClassMap.between(before, now)
    assert classes.sources == (0,)
    assert classes.text() == "the class 'nucleus' becomes 'beetle', all else is the same"
    assert ClassMap.between(before, config_of("Nucleus")).text() == ""


def config_of(*names):
    from rdsnet import get_cfg

    cfg = get_cfg()
    cfg.MODEL.RETINANET.NUM_CLASSES = len(names)
    cfg.DATASETS.CLASSES = [[k, name] for k, name in enumerate(names)]
    return cfg


def test_names_that_several_classes_have_are_paired_in_order():
    classes = ClassMap.between(config_of("a", "b", "a"), config_of("a", "a", "a", "B "))
    assert classes.sources == (0, 2, None, 1)


def test_without_names_classes_are_those_of_the_same_number():
    nameless = config_of("a", "b")
    nameless.DATASETS.CLASSES = []
    assert ClassMap.between(nameless, config_of("b", "a")).sources == (0, 1)
    other = ClassMap.between(nameless, config_of("a"))
    assert other.sources == (None,) and "begins anew (1 classes)" in other.text()


def test_background_of_a_softmax_stays_behind_the_classes():
    """Two anchors; channels by anchor, then classes, then background."""
    old = torch.tensor([1.0, 2, 9, 11, 12, 19])  # classes a, b
    own = torch.full((2 * 4,), -1.0)
    classes = ClassMap(2, (1, None, 0))  # b, new, a
    taken = with_classes_of(own, old, classes, 1)
    assert taken.tolist() == [2, -1, 1, 9, 12, -1, 11, 19]
    assert with_classes_of(own, old[:4], classes, 1) is None  # another number of anchors


def test_half_precision_becomes_the_type_of_the_model(box, caplog):
    after, _, said = start(config(box, [[1, "bar"], [2, "leaf"]]), caplog)
    halved = read_checkpoint(box)["model"]
    assert {v.dtype for v in after.values() if v.is_floating_point()} == {torch.float32}
    name = next(name for name, value in halved.items() if value.dtype == torch.float16)
    assert torch.equal(after[name], halved[name].float())
    assert len(said) == 1


def test_a_kernel_of_another_radius_begins_as_published(path, caplog):
    after, own, said = start(config(path, CLASSES, "MODEL.RDSNET.MBRM.RADIUS", "2"), caplog)
    assert torch.equal(after["mbrm.weight"], own["mbrm.weight"])
    assert said == [f"Training starts from {path}: all weights were taken over."]


def test_another_model_is_refused_with_the_remedy(path, caplog):
    cfg = config(path, CLASSES, "MODEL.FPN.OUT_CHANNELS", "48")
    with pytest.raises(ValueError, match=f"another model .*backbone.fpn.*--weights {path} without"):
        start(cfg, caplog)
    # also where the body fits: what the weights are is known, and so is the model for them
    cfg = config(path, CLASSES, "MODEL.RDSNET.PIXEL_STREAM.CONV_DIM", "64")
    with pytest.raises(ValueError, match="are of another model .*pixel_stream"):
        start(cfg, caplog)


def test_the_body_of_another_library_is_taken_and_the_rest_begins_at_random(path, tmp_path, caplog):
    """As Detectron2 saves a Mask R-CNN: names of its own beside those of the backbone."""
    cfg = config(path, CLASSES)
    weights = read_checkpoint(path)["model"]
    weights = {name: v for name, v in weights.items() if name.startswith("backbone.bottom_up")}
    cfg.MODEL.WEIGHTS = str(tmp_path / "other.pkl")
    foreign = {"roi_heads.box_head.fc1.weight": torch.zeros(2, 2), **weights}
    arrays = {name: value.numpy() for name, value in foreign.items()}
    with open(cfg.MODEL.WEIGHTS, "wb") as file:
        pickle.dump({"model": arrays, "__author__": "somebody"}, file)
    after, own, said = start(cfg, caplog)
    assert all(torch.equal(after[name], value) for name, value in weights.items())
    assert torch.equal(after[f"{SCORE}.weight"], own[f"{SCORE}.weight"])
    assert said == [
        f"Training starts from {cfg.MODEL.WEIGHTS}: at random begin part of backbone, "
        "object_stream, pixel_stream."
    ]

    torch.save({"model": {"roi_heads.fc.weight": torch.zeros(2)}}, tmp_path / "none.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="another model .* give the config that they were trained"):
        start(cfg, caplog)


def test_a_model_without_a_description_is_taken_where_it_fits(path, tmp_path, caplog):
    cfg = config(path, [[1, "leaf"], [2, "stem"]])
    weights = read_checkpoint(path)["model"]
    torch.save({f"module.{name}": value for name, value in weights.items()}, tmp_path / "bare.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "bare.pth")
    after, _, said = start(cfg, caplog)
    assert all(torch.equal(after[name], value) for name, value in weights.items())
    assert "all weights were taken over" in said[0]


def test_weights_that_meant_something_else_are_warned_of(path, caplog):
    _, _, said = start(config(path, CLASSES, "INPUT.FORMAT", "RGB"), caplog)
    assert len(said) == 2
    assert "INPUT.FORMAT was BGR and is RGB" in said[1] and "brings its own config" in said[1]


def test_statistics_of_batch_norm_are_those_of_the_weights(path, tmp_path, caplog):
    """A backbone whose BatchNorm is frozen keeps what the weights have, learnt there or loaded."""
    keys = ["MODEL.BACKBONE.NAME", "build_retinanet_timm_fpn_backbone"]
    keys += ["MODEL.TIMM.NAME", "resnet10t", "MODEL.FPN.IN_FEATURES", "['res3','res4','res5']"]
    cfg = config(path, CLASSES, *keys)
    cfg.MODEL.WEIGHTS = ""
    model = build_model(cfg).train()
    name = next(n for n in model.state_dict() if n.endswith("running_mean") and "bottom_up" in n)
    model.state_dict()[name].fill_(0.25)
    save_model(tmp_path / "timm.pth", model.state_dict(), cfg)
    cfg.MODEL.WEIGHTS = str(tmp_path / "timm.pth")
    transferred = build_model(cfg).train()
    load_first_weights(Checkpointer(transferred), cfg)
    transferred.backbone(torch.randn(2, 3, 64, 64))  # in training
    assert (transferred.state_dict()[name] == 0.25).all()
    assert read_config(tmp_path / "timm.pth").MODEL.WEIGHTS == ""
