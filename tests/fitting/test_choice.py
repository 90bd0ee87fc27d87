"""Choosing MBRM's prior and readout, or no refinement, by what they make of stored profiles."""

import json
from dataclasses import replace

import pytest
import torch
from detectron2.modeling import build_model

from rdsnet import get_cfg
from rdsnet.checkpoint import Checkpointer
from rdsnet.fitting import fit as fitting
from rdsnet.fitting.choice import choose_refinement
from rdsnet.fitting.profiles import ImageProfiles, PackedProfiles
from rdsnet.modeling import MBRM


def rectangles(
    count: int, box_error: float, mask_offset: float = 0.0, fraction: float = 0.0, seed: int = 0
) -> ImageProfiles:
    """Sharp masks of rectangles of 40 px whose edges lie ``mask_offset`` px outside of the true
    ones; regressed boxes are off by normal errors. ``fraction``: of a pixel, of all true edges.
    """
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(20, 60, (count, 2), generator=generator).float()
    whole = torch.cat([low, low + 40], 1)
    truth = whole + fraction
    boxes = truth + box_error * torch.randn(count, 4, generator=generator)
    centre = torch.arange(140) + 0.5
    packed = []
    for axis in range(2):
        first, last = whole[:, axis, None] - mask_offset, whole[:, 2 + axis, None] + mask_offset
        inside = ((centre > first) & (centre < last)).float()
        inside = inside.clamp(0.02, 0.98)
        start = torch.zeros(count, dtype=torch.int64)
        packed.append(PackedProfiles.pack(inside, start, start + 140))
    scores, classes = torch.linspace(0.9, 0.2, count), torch.zeros(count, dtype=torch.int64)
    return ImageProfiles(1, (140, 140), boxes, scores, classes, truth, *packed)


def edge_detector() -> MBRM:
    """A kernel that is certain of the first pixel inside."""
    mbrm = MBRM(0.05)
    with torch.no_grad():
        mbrm.weight.zero_()
        mbrm.weight[0, 0, 3:5] = torch.tensor([-20.0, 20.0])
        mbrm.bias.fill_(-10.0)
    return mbrm


def test_boxes_far_off_and_exact_masks_ask_for_a_wide_prior():
    choice = choose_refinement(edge_detector(), [rectangles(60, box_error=4.0)])
    assert choice.best.gamma > 0.05
    assert choice.quality[str(choice.best)] > 0.9 > choice.quality["none"]


def test_exact_boxes_and_wrong_masks_ask_for_no_refinement():
    choice = choose_refinement(edge_detector(), [rectangles(60, 0.01, mask_offset=3.0)])
    assert choice.best.gamma is None and choice.best.keys() == {"METHOD": "none"}
    assert choice.quality["none"] == 1.0


def test_the_configured_refinement_stays_where_others_are_as_good():
    mbrm = edge_detector()
    choice = choose_refinement(mbrm, [rectangles(60, box_error=0.3)])
    assert (choice.best.gamma, choice.best.readout) == (mbrm.gamma, mbrm.readout)


@pytest.mark.parametrize(("far_off", "changes"), [(1, False), (15, True)])
def test_a_refinement_that_helps_a_single_object_is_not_taken(far_off, changes):
    """An edge 9 px off is out of reach of the configured prior, 2 px wide, and of no wider one."""
    image = rectangles(30, box_error=0.0)
    boxes = image.boxes.clone()
    boxes[:far_off, 2] -= 9
    choice = choose_refinement(edge_detector(), [replace(image, boxes=boxes)])
    assert max(choice.quality.values()) > choice.quality["gamma 0.05, argmax"]
    assert (choice.best.gamma != 0.05) == changes


def test_qualities_are_shares_of_ious_of_a_separate_computation():
    image = rectangles(30, box_error=2.0)
    choice = choose_refinement(edge_detector(), [image])
    reached = []
    for box, true in zip(image.boxes.tolist(), image.gt_boxes.tolist(), strict=True):
        width = max(0, min(box[2], true[2]) - max(box[0], true[0]))
        height = max(0, min(box[3], true[3]) - max(box[1], true[1]))
        area = (box[2] - box[0]) * (box[3] - box[1]) + 1600
        iou = width * height / (area - width * height)
        reached.append(sum(iou >= 0.5 + 0.05 * step for step in range(10)) / 10)
    assert choice.objects == 30
    assert choice.quality["none"] == pytest.approx(sum(reached) / 30, abs=1e-4)


def test_nothing_found_is_said():
    image = rectangles(3, 1.0)
    with pytest.raises(ValueError, match="no detection has found an object"):
        choose_refinement(edge_detector(), [replace(image, gt_boxes=torch.full((3, 4), torch.nan))])


@pytest.mark.parametrize(("offset", "method"), [(0.0, "mbrm"), (3.0, "none")])
def test_what_was_chosen_is_in_the_checkpoints_config(tmp_path, monkeypatch, offset, method):
    cfg = get_cfg()
    cfg.merge_from_file("configs/small/rdsnet_small.yaml")
    cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.DEVICE = 1, "cpu"
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = str(tmp_path / "model.pth"), str(tmp_path)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("train",), ("val",)
    cfg.MODEL.RDSNET.MBRM.FIT.CHOOSE, cfg.MODEL.RDSNET.MBRM.FIT.MAX_ITER = True, 100
    error = 4.0 if method == "mbrm" else 0.01
    images = {"train": [rectangles(40, 4.0)], "val": [rectangles(60, error, offset)]}
    monkeypatch.setattr(fitting, "collect_profiles", lambda cfg, model, name, *_: images[name])
    _, fit = fitting.fit_mbrm(cfg)
    written = get_cfg()
    written.merge_from_file(str(tmp_path / "mbrm" / "config.yaml"))
    assert written.MODEL.RDSNET.MBRM.METHOD == method == fit.choice.best.keys()["METHOD"]
    assert written.MODEL.RDSNET.MBRM.GAMMA == (fit.choice.best.gamma or 0.05)
    model = build_model(written)
    incompatible = Checkpointer(model).load(written.MODEL.WEIGHTS)
    assert incompatible is not None
    kernel = torch.load(written.MODEL.WEIGHTS, weights_only=True)["model"].get("mbrm.weight")
    assert (kernel is None) == (method == "none")
    report = json.loads((tmp_path / "mbrm" / "kernel.json").read_text())
    assert report["choice"]["quality"] == fit.choice.quality
