"""The mask threshold: chosen by masks whose best one is known, and kept with the model."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, Instances
from helpers.exporting import random_image, tiny_config, untrained
from PIL import Image
from pycocotools import mask as coco_mask
from torch.nn import functional as F

import rdsnet
from rdsnet.checkpoint.description import read_config, save_model
from rdsnet.data.datasets import register_coco_files
from rdsnet.fitting import threshold as fitting
from rdsnet.fitting.threshold import ThresholdFit, fit_threshold
from rdsnet.training import finish as finishing

SIZE = (96, 128)


def blob(image_id: int) -> torch.Tensor:
    """Logits on the grid (24, 32): a hill that is foreground for every threshold."""
    y, x = torch.arange(24)[:, None] - 12.0, torch.arange(32) - 16.0
    wide = 1 + 0.2 * image_id
    return 3 - (x / wide) ** 2 / 4 - y**2 / 5


def true_mask(logits: torch.Tensor, threshold: float) -> np.ndarray:
    fine = F.interpolate(logits[None, None], SIZE, mode="bilinear", align_corners=False)[0, 0]
    return (fine > math.log(threshold / (1 - threshold))).numpy()


@pytest.fixture
def cfg(tmp_path, request) -> CfgNode:
    """Three images with one object each, whose mask is where the probability is above 0.3."""
    images, annotations = [], []
    for i in (1, 2, 3):
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 96, "width": 128})
        rle = coco_mask.encode(np.asfortranarray(true_mask(blob(i), 0.3)))
        box, area = coco_mask.toBbox(rle).tolist(), int(coco_mask.area(rle))
        rle["counts"] = rle["counts"].decode()
        annotations.append(
            {"id": i, "image_id": i, "category_id": 5, "bbox": box, "area": area, "iscrowd": 0}
            | {"segmentation": rle}
        )
    categories = [{"id": 5, "name": "hill"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "val.json").write_text(json.dumps(content))
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file("configs/small/rdsnet_small.yaml")
    cfg.MODEL.RETINANET.NUM_CLASSES = 1
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.MIN_SIZE_TEST, cfg.DATALOADER.NUM_WORKERS = 0, 0
    name = f"threshold_{request.node.name}"
    cfg.DATASETS.COCO_FILES = [[name, str(tmp_path / "val.json"), str(tmp_path)]]
    cfg.DATASETS.TEST = (name,)
    cfg.OUTPUT_DIR = str(tmp_path)
    register_coco_files(cfg)
    return cfg


def seeing(model, boxes_of, sees=blob):
    """The model, made to see a hill in every image in turn, in the boxes of ``boxes_of(image)``."""
    calls = []

    def pixel_stream(features):
        calls.append(len(calls) + 1)
        psi = torch.zeros(1, 32, 24, 32)
        psi[0, 0] = sees(calls[-1])
        return psi

    def represented(predictions, sizes, inputs):
        boxes = boxes_of(inputs[0]["image_id"])
        phi = torch.zeros(len(boxes), 2, 32)
        phi[:, 1, 0] = 1
        return [
            Instances(
                SIZE,
                pred_boxes=Boxes(boxes),
                scores=torch.linspace(0.9, 0.5, len(boxes)),
                pred_classes=torch.zeros(len(boxes), dtype=torch.int64),
                phi=phi,
            )
        ]

    model.pixel_stream.forward = pixel_stream
    model.represented = represented
    return model


def object_box(image_id: int) -> torch.Tensor:
    y, x = np.nonzero(true_mask(blob(image_id), 0.3))
    return torch.tensor([[x.min(), y.min(), x.max() + 1, y.max() + 1]]).float()


def test_the_threshold_that_the_masks_were_drawn_with_is_found(cfg):
    model = seeing(build_model(cfg).train(), object_box)
    fit = fit_threshold(cfg, model)
    assert fit.threshold == 0.3 and fit.objects == 3
    assert fit.quality[0.3] == 1.0
    assert fit.quality[0.6] < fit.quality[0.4] < 1 and fit.quality[0.2] < 1
    assert "0.3" in fit.text() and "3 objects" in fit.text()
    assert model.training and model.mask_threshold == 0.4


def test_quality_is_the_share_of_ious_that_masks_reach(cfg):
    fit = fit_threshold(cfg, seeing(build_model(cfg), object_box))
    for threshold in (0.2, 0.5):
        reached = []
        for i in (1, 2, 3):
            found, truth = true_mask(blob(i), threshold), true_mask(blob(i), 0.3)
            x1, y1, x2, y2 = object_box(i)[0].tolist()
            inside = np.zeros_like(found)  # the box grown by 1.2
            dx, dy = 0.1 * (x2 - x1), 0.1 * (y2 - y1)
            centre_x, centre_y = np.arange(128) + 0.5, np.arange(96)[:, None] + 0.5
            inside = (centre_x >= x1 - dx) & (centre_x < x2 + dx)
            inside = inside & (centre_y >= y1 - dy) & (centre_y < y2 + dy)
            iou = (found & inside & truth).sum() / (found & inside | truth).sum()
            reached += [iou >= limit for limit in np.linspace(0.5, 0.95, 10)]
        assert fit.quality[threshold] == pytest.approx(np.mean(reached), abs=1e-4)


@pytest.mark.parametrize("prior", ["none", "ellipse"])
def test_masks_are_those_of_inference(prior):
    """The model's only mask, taken for the truth, is met at the model's own threshold."""
    cfg = tiny_config("MODEL.RDSNET.MASK_PRIOR", prior, "TEST.DETECTIONS_PER_IMAGE", "1")
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    model = untrained(cfg)
    inputs = {"image": random_image(64, 96), "height": 64, "width": 96}
    with torch.no_grad():
        (found,) = model([inputs])
    found = found["instances"]
    mask = found.pred_masks[0].numpy()
    assert 0 < mask.sum() < mask.size
    truth = coco_mask.encode(np.asfortranarray(mask))
    annotation = {"bbox": found.pred_boxes.tensor[0].tolist(), "bbox_mode": BoxMode.XYXY_ABS}
    annotation |= {"category_id": int(found.pred_classes), "segmentation": truth}
    record = {"height": 64, "width": 96, "annotations": [annotation]}
    own, other = model.mask_threshold, 0.9
    ious = fitting._mask_ious(model, [inputs], record, (own, other))
    assert ious.shape == (2, 1) and ious[0, 0] == 1 > ious[1, 0]
    assert model.mask_threshold == own


def test_detections_that_have_found_nothing_do_not_count(cfg):
    def boxes_of(image_id):
        elsewhere = torch.tensor([[0.0, 0.0, 9.0, 9.0]])
        own = object_box(image_id)
        return {1: torch.cat([elsewhere, own, own]), 2: elsewhere, 3: own[:0]}[image_id]

    assert fit_threshold(cfg, seeing(build_model(cfg), boxes_of)).objects == 1
    nothing = seeing(build_model(cfg), lambda image_id: torch.zeros(0, 4))
    with pytest.raises(ValueError, match="finds no object in threshold_test"):
        fit_threshold(cfg, nothing)


def test_without_validation_images_there_is_nothing_to_choose_by(cfg):
    cfg.DATASETS.TEST = ()
    with pytest.raises(ValueError, match="DATASETS.TEST is empty"):
        fit_threshold(cfg, build_model(cfg))


@pytest.fixture
def finished(cfg, tmp_path, monkeypatch):
    """A training that is over; its evaluation says which threshold it was given."""
    cfg.MODEL.RDSNET.FIT_MASK_THRESHOLD = True
    cfg.TEST.BEST_METRIC = "segm/AP"
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    best = {"metric": "segm/AP", "value": 7.0, "iteration": 3, "box_ap": 20.6}
    save_model(tmp_path / "model_best.pth", build_model(cfg).state_dict(), cfg, best=best)

    def evaluate(cfg, weights):
        return {"bbox": {"AP": 20.2}, "threshold": cfg.MODEL.RDSNET.MASK_THRESHOLD}

    monkeypatch.setattr(finishing, "evaluate", evaluate)
    return cfg


def test_the_threshold_is_kept_in_the_checkpoint(finished, tmp_path, monkeypatch):
    before = torch.load(tmp_path / "model_best.pth", weights_only=True)
    fit = ThresholdFit(0.25, 12, {0.25: 0.9, 0.4: 0.8})
    monkeypatch.setattr(finishing, "fit_threshold", lambda cfg, model: fit)
    assert finishing.finish(finished, None)["threshold"] == 0.25
    kept = read_config(tmp_path / "model_best.pth")
    assert kept.MODEL.RDSNET.MASK_THRESHOLD == 0.25
    after = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert after["best"] == {**before["best"], "box_ap": 20.2}  # of evaluate()
    assert all(torch.equal(after["model"][name], own) for name, own in before["model"].items())
    assert finished.MODEL.RDSNET.MASK_THRESHOLD == 0.4  # the caller's


def test_mbrm_is_compared_with_box_ap_of_the_new_threshold(finished, tmp_path, monkeypatch):
    """20.2 before and 20.4 after: kept, though with the threshold of the training it was 20.6."""
    finished.MODEL.RDSNET.MBRM.FIT.AFTER_TRAINING = True
    fit = SimpleNamespace(choice=None, objects=9, loss_initial=2.0, loss=1.0)
    chosen = ThresholdFit(0.25, 12, {0.25: 0.9, 0.4: 0.8})
    monkeypatch.setattr(finishing, "fit_threshold", lambda cfg, model: chosen)
    monkeypatch.setattr(finishing, "fit_mbrm", lambda cfg: (None, fit))
    monkeypatch.setattr(finishing, "with_kernel", lambda weights, *_: {"fitted": torch.ones(1)})
    monkeypatch.setattr(finishing, "results_table", str)

    def evaluate(cfg, weights):
        return {"bbox": {"AP": 20.4 if "fitted" in weights else 20.2}}

    monkeypatch.setattr(finishing, "evaluate", evaluate)
    assert finishing.finish(finished, None)["bbox"]["AP"] == 20.4
    assert "fitted" in torch.load(tmp_path / "model_best.pth", weights_only=True)["model"]


def test_a_model_that_finds_nothing_keeps_its_threshold(finished, tmp_path, monkeypatch, caplog):
    def nothing(cfg, model):
        raise ValueError("the model finds no object")

    monkeypatch.setattr(finishing, "fit_threshold", nothing)
    assert finishing.finish(finished, "as before") == "as before"
    assert read_config(tmp_path / "model_best.pth").MODEL.RDSNET.MASK_THRESHOLD == 0.4
    assert "mask threshold stays 0.4: the model finds no object" in caplog.text


def test_thresholds_include_the_papers():
    assert 0.4 in fitting.THRESHOLDS
