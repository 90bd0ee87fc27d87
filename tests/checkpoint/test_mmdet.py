"""Conversion of the authors' checkpoints."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from helpers.golden_data import authors_state_dict, rule_weight, state_dict_shapes

import rdsnet
from rdsnet.checkpoint import convert_mmdet_state_dict, read_state_dict
from rdsnet.cli import main

ROOT = Path(__file__).parents[2]
MODELS = {"r50": 393, "r50_mbrm": 395, "r101": 699, "r101_mbrm": 701}


def empty_state_dict(model: str) -> dict:
    """Right names and shapes, no weights to compute."""
    shapes = state_dict_shapes(model)
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def model_config(file: str):
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file(str(ROOT / file))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


CONFIGS = [
    ("r50", "configs/COCO-InstanceSegmentation/rdsnet_R_50_FPN_1x.yaml"),
    ("r50_mbrm", "projects/AuthorsCompat/configs/rdsnet_R_50_FPN_core.yaml"),
    ("r50_mbrm", "projects/AuthorsCompat/configs/rdsnet_R_50_FPN_mmdet.yaml"),
    ("r101", "configs/COCO-InstanceSegmentation/rdsnet_R_101_FPN_2x.yaml"),
    ("r101_mbrm", "projects/AuthorsCompat/configs/rdsnet_R_101_FPN_core.yaml"),
    ("r101_mbrm", "projects/AuthorsCompat/configs/rdsnet_R_101_FPN_mmdet.yaml"),
]


@pytest.mark.parametrize("name, config", CONFIGS)
def test_every_entry_arrives_in_a_model_of_ours(name, config):
    converted = convert_mmdet_state_dict(empty_state_dict(name))
    cfg = model_config(config)
    cfg.MODEL.DEVICE = "meta"  # shapes are enough
    ours = {k: v.shape for k, v in build_model(cfg).state_dict().items()}
    assert {k: v.shape for k, v in converted.items()} == ours


@pytest.mark.parametrize("name", MODELS)
def test_every_name_but_the_counters_has_its_own_place(name):
    state_dict = {
        key: torch.full(shape, float(i))
        for i, (key, shape) in enumerate(state_dict_shapes(name).items())
    }
    assert len(state_dict) == MODELS[name]
    converted = convert_mmdet_state_dict(state_dict)
    arrived = {
        value.flatten()[0].item()
        for key, value in converted.items()
        if key != "object_stream.loss_normalizer"
    }
    for i, key in enumerate(state_dict):
        assert (float(i) in arrived) != key.endswith("num_batches_tracked"), key


def test_values_of_layers_without_anchors_are_unchanged():
    state_dict = authors_state_dict("r50")
    converted = convert_mmdet_state_dict(state_dict)
    for theirs, ours in (
        ("backbone.layer3.5.bn2.running_var", "backbone.bottom_up.res4.5.conv2.norm.running_var"),
        ("backbone.layer4.0.downsample.0.weight", "backbone.bottom_up.res5.0.shortcut.weight"),
        ("neck.fpn_convs.2.conv.bias", "backbone.fpn_output5.bias"),
        ("neck.fpn_convs.4.conv.weight", "backbone.top_block.p7.weight"),
        ("bbox_head.rep_convs.3.gn.bias", "object_stream.head.rep_subnet.10.bias"),
        ("mask_head.lateral_convs.2.2.conv.weight", "pixel_stream.p5.2.weight"),
        ("mask_head.conv_reps.bias", "pixel_stream.predictor.bias"),
    ):
        assert torch.equal(converted[ours], state_dict[theirs])


@pytest.mark.parametrize(
    "theirs, ours, numbers",
    [
        ("retina_cls", "cls_score", 80),
        ("retina_reg", "bbox_pred", 4),
        ("retina_rep", "rep_pred", 64),
    ],
)
@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_anchors_are_reordered_from_ratio_size_to_size_ratio(theirs, ours, numbers, kind):
    state_dict = authors_state_dict("r50")
    their_rows = state_dict[f"bbox_head.{theirs}.{kind}"]
    our_rows = convert_mmdet_state_dict(state_dict)[f"object_stream.head.{ours}.{kind}"]
    for size in range(3):
        for ratio in range(3):
            for number in (0, numbers // 2, numbers - 1):
                our_row = (size * 3 + ratio) * numbers + number
                their_row = (ratio * 3 + size) * numbers + number
                assert torch.equal(our_rows[our_row], their_rows[their_row])


def test_published_kernel_is_added_where_mbrm_is_missing():
    converted = convert_mmdet_state_dict(empty_state_dict("r50"))
    for name in ("mbrm.weight", "mbrm.bias"):
        expected = rule_weight(name, state_dict_shapes("r50_mbrm")[name])
        assert torch.equal(converted[name], expected)


def test_a_trained_mbrm_is_kept():
    state_dict = empty_state_dict("r50_mbrm")
    state_dict["mbrm.weight"] += 5
    assert (convert_mmdet_state_dict(state_dict)["mbrm.weight"] == 5).all()


def test_prefix_of_a_parallel_model_is_removed():
    state_dict = {f"module.{name}": v for name, v in empty_state_dict("r50").items()}
    assert "pixel_stream.merge.weight" in convert_mmdet_state_dict(state_dict)


def test_other_numbers_of_classes_are_converted():
    state_dict = empty_state_dict("r50")
    state_dict["bbox_head.retina_cls.weight"] = torch.zeros(9 * 3, 256, 3, 3)
    state_dict["bbox_head.retina_cls.bias"] = torch.zeros(9 * 3)
    converted = convert_mmdet_state_dict(state_dict)
    assert converted["object_stream.head.cls_score.bias"].shape == (27,)


def test_unknown_missing_and_misshapen_entries_are_all_listed():
    state_dict = empty_state_dict("r50_mbrm")
    state_dict["mask_head.extra.weight"] = torch.zeros(1)
    state_dict["bbox_head.extra.num_batches_tracked"] = torch.zeros(())
    del state_dict["neck.lateral_convs.0.conv.bias"], state_dict["mbrm.bias"]
    state_dict["backbone.bn1.weight"] = torch.zeros(32)
    with pytest.raises(ValueError) as error:
        convert_mmdet_state_dict(state_dict)
    message = str(error.value)
    assert "2 unknown: mask_head.extra.weight, bbox_head.extra.num_batches_tracked" in message
    assert "2 missing: neck.lateral_convs.0.conv.bias, mbrm.bias" in message
    assert "backbone.bn1.weight (32,) instead of (64,)" in message


@pytest.mark.parametrize("wrong", [{}, {"state_dict": {}}, [1], {"a": 1}])
def test_what_is_no_state_dict_is_refused(wrong):
    with pytest.raises(ValueError, match="state_dict"):
        convert_mmdet_state_dict(wrong)


@pytest.mark.parametrize("wrapped", [True, False])
def test_command_writes_a_checkpoint_that_detectron2_loads(tmp_path, capsys, wrapped):
    state_dict = authors_state_dict("r50")
    content = {"meta": {"epoch": 12, "CLASSES": ("a", "b")}, "state_dict": state_dict}
    torch.save(content if wrapped else state_dict, tmp_path / "authors.pth")
    target = tmp_path / "new" / "rdsnet.pth"
    assert main(["convert", str(tmp_path / "authors.pth"), str(target)]) == 0
    printed = capsys.readouterr().out
    assert "ResNet-50, 80 classes, 393 entries" in printed
    assert "53 counters" in printed and "MBRM kernel added" in printed
    assert "projects/AuthorsCompat/configs/rdsnet_R_50_FPN_mmdet.yaml" in printed

    from detectron2.checkpoint import DetectionCheckpointer

    model = build_model(
        model_config("projects/AuthorsCompat/configs/rdsnet_R_50_FPN_mmdet.yaml")
    ).eval()
    DetectionCheckpointer(model).load(str(target))
    loaded = model.state_dict()
    for name, value in convert_mmdet_state_dict(state_dict).items():
        assert torch.equal(loaded[name], value), name


class NotATensor:
    pass


@pytest.mark.parametrize(
    "content, message",
    [
        (b"hello world", "not a PyTorch checkpoint"),
        ([1, 2], "holds no state_dict"),
        ({"state_dict": NotATensor()}, "more than tensors"),
        ({"state_dict": {"a": torch.zeros(1)}}, "1 unknown: a"),
    ],
)
def test_command_explains_files_that_it_cannot_convert(tmp_path, capsys, content, message):
    source = tmp_path / "source.pth"
    if isinstance(content, bytes):
        source.write_bytes(content)
    else:
        torch.save(content, source)
    assert main(["convert", str(source), str(tmp_path / "target.pth")]) == 2
    printed = capsys.readouterr().err
    assert str(source) in printed and message in printed
    assert not (tmp_path / "target.pth").exists()


def test_command_does_not_overwrite_its_source(tmp_path, capsys):
    source = tmp_path / "source.pth"
    torch.save({"a": torch.zeros(1)}, source)
    assert main(["convert", str(source), str(source)]) == 2
    assert "overwrite" in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        read_state_dict(tmp_path / "nowhere.pth")
