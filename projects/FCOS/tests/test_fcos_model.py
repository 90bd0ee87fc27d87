"""The whole model on FCOS: configs, batches of all kinds, training, evaluation, prediction."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor, default_argument_parser
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from PIL import Image

import rdsnet
from rdsnet import training
from rdsnet.checkpoint import load_config
from rdsnet.cli import main as command_line
from rdsnet.data.shapes import make_shapes_dataset

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = str(Path(__file__).parents[3] / "configs" / "small" / "rdsnet_small.yaml")
FCOS = ["MODEL.RDSNET.OBJECT_STREAM", "FCOSStream", "MODEL.RETINANET.NMS_THRESH_TEST", "0.6"]


@pytest.fixture(scope="module")
def model():
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file(SMALL)
    cfg.merge_from_list([*FCOS, "MODEL.RETINANET.NUM_CLASSES", "3", "MODEL.DEVICE", "cpu"])
    torch.manual_seed(0)
    return build_model(cfg)


def image(height, width, boxes=None):
    generator = torch.Generator().manual_seed(height)
    data = {"image": torch.rand(3, height, width, generator=generator) * 255}
    if boxes is None:
        return data
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    instances = Instances(
        (height, width),
        gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4)),
        gt_classes=torch.arange(len(boxes)) % 3,
        gt_masks=BitMasks(masks),
    )
    return {**data, "instances": instances}


def test_a_batch_of_mixed_sizes_trains_every_parameter(model):
    model.train().zero_grad()
    boxes = [[10, 10, 60, 50], [30, 40, 100, 90]]
    losses = model([image(100, 120, boxes), image(33, 150, []), image(64, 40, [[3, 5, 30, 60]])])
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_centerness", "loss_mask"}
    assert all(loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == ["mbrm.weight", "mbrm.bias"]  # trained on its own, afterwards
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_batch_without_any_object_trains(model):
    model.train().zero_grad()
    losses = model([image(64, 64, [])])
    assert losses["loss_mask"] == losses["loss_box_reg"] == losses["loss_centerness"] == 0
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None and "mbrm" not in n] == []


@torch.no_grad()
@pytest.mark.parametrize("threshold", [0.05, 0.999])
def test_results_have_every_field_also_when_there_is_none(model, threshold, monkeypatch):
    monkeypatch.setattr(model.object_stream, "score_threshold", threshold)
    batch = [image(100, 120) | {"height": 210, "width": 333}, image(1, 50)]
    results = model.eval()(batch)
    assert (len(results[0]["instances"]) > 0) == (threshold == 0.05)
    for result, size in zip(results, [(210, 333), (1, 50)], strict=True):
        found = result["instances"]
        n = len(found)
        assert found.image_size == size
        assert found.pred_boxes.tensor.shape == found.regressed_boxes.tensor.shape == (n, 4)
        assert found.pred_masks.shape == (n, *size) and found.pred_masks.dtype == torch.bool
        assert found.scores.shape == found.pred_classes.shape == (n,)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_config_builds_a_model_on_fcos(path, monkeypatch):
    monkeypatch.setenv("RDSNET_DATA", "/nowhere")
    cfg = load_config(str(path), ["DATASETS.COCO_FILES", "[]", "MODEL.DEVICE", "meta"])
    assert cfg.MODEL.META_ARCHITECTURE == "RDSNet"
    cfg.MODEL.DEVICE = "cpu"
    stream = build_model(cfg).object_stream
    assert type(stream).__name__ == "FCOSStream"
    assert (stream.score_threshold, stream.nms_threshold) == (0.2, 0.6)
    assert stream.num_classes == (1 if "nuclei" in path.stem else 80)


def test_p6_and_p7_come_from_p5():
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file(str(CONFIGS / "rdsnet_fcos_R_50_FPN_1x.yaml"))
    top = build_model(cfg).backbone.top_block
    assert top.in_feature == "p5" and top.p6.in_channels == 256


def test_train_evaluate_and_predict_on_own_data(tmp_path):
    """One story: classes from the json, two iterations, evaluation, prediction."""
    data = make_shapes_dataset(tmp_path / "shapes", num_train=4, num_val=2, size=(96, 128), seed=3)
    files = [["fcos_train", data["train_json"], data["train_images"]]]
    files += [["fcos_val", data["val_json"], data["val_images"]]]
    opts = [*FCOS, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.05"]
    opts += ["DATASETS.COCO_FILES", str(files), "OUTPUT_DIR", str(tmp_path / "out"), "SEED", "1"]
    opts += ["DATASETS.TRAIN", "('fcos_train',)", "DATASETS.TEST", "('fcos_val',)"]
    opts += ["INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96", "SOLVER.STEPS", "()"]
    opts += ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"]
    args = default_argument_parser().parse_args(["--config-file", SMALL, *opts])
    results = training.main(args)
    assert set(results) >= {"bbox", "bbox_regressed", "segm"}

    trained = str(tmp_path / "out" / "config.yaml")
    weights = str(tmp_path / "out" / "model_final.pth")
    evaluate = ["eval", "--config-file", trained, "MODEL.WEIGHTS", weights]
    assert command_line(evaluate) in (0, None)
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file(trained)
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 5  # settled from the json when training began
    cfg.MODEL.WEIGHTS = weights
    picture = np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8)
    instances = DefaultPredictor(cfg)(picture)["instances"]
    assert len(instances) > 0 and instances.pred_masks.shape[1:] == (90, 140)
    assert instances.has("regressed_boxes")

    Image.fromarray(picture).save(tmp_path / "a.png")
    words = ["predict", "--config-file", trained, "--weights", weights]
    words += ["--input", str(tmp_path / "a.png"), "--output", str(tmp_path / "predictions")]
    assert command_line([*words, "--format", "coco,png", "--score-threshold", "0.05"]) == 0
    assert (tmp_path / "predictions" / "overlays" / "a.png").is_file()
