"""Every config of the project loads, and the paper's models say what the paper says."""

from pathlib import Path

import pytest

import rdsnet
from rdsnet import model_zoo

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_loads_over_the_defaults(path):
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file(str(path))
    detector = "RDSNet"
    if path.parent.name == "paper":
        detector = "GeneralizedRCNN" if "rcnn" in path.stem else "YOLACT"
    assert cfg.MODEL.META_ARCHITECTURE == detector and cfg.MODEL.MASK_ON


def test_defaults_are_those_of_the_paper():
    keys = rdsnet.get_cfg().MODEL.RDSNET
    assert (keys.REPRESENTATION_DIM, keys.MASK_THRESHOLD) == (32, 0.4)
    assert (keys.TRAIN_EXPAND, keys.TEST_EXPAND) == (1.5, 1.2)
    assert keys.OHEM.ENABLED and keys.OHEM.NEGATIVES_PER_POSITIVE == 1
    assert (keys.MBRM.GAMMA, keys.MBRM.RADIUS) == (0.05, 4)
    assert keys.BOX_LOSS_WEIGHT == keys.MASK_LOSS_WEIGHT == 1
    assert keys.PIXEL_STREAM.CONV_DIM == 256


@pytest.mark.parametrize(
    ("name", "depth", "epochs", "sizes", "test_size"),
    [
        ("rdsnet_R_50_FPN_1x", 50, 12, (800,), 800),
        ("rdsnet_R_101_FPN_1x", 101, 12, (800,), 800),
        ("rdsnet_R_50_FPN_2x", 50, 24, (640, 800), 800),
        ("rdsnet_R_101_FPN_2x", 101, 24, (640, 800), 800),
        ("rdsnet_R_50_FPN_600_1x", 50, 12, (600,), 600),
        ("rdsnet_R_101_FPN_600_1x", 101, 12, (600,), 600),
    ],
)
def test_the_papers_models(name, depth, epochs, sizes, test_size):
    cfg = model_zoo.get_config(f"COCO-InstanceSegmentation/{name}.yaml")
    assert cfg.MODEL.RESNETS.DEPTH == depth and f"R-{depth}" in cfg.MODEL.WEIGHTS
    images = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
    assert images / 117_266 == pytest.approx(epochs, abs=1e-3)
    first, second = (8, 11) if epochs == 12 else (16, 22)
    for step, epoch in zip(cfg.SOLVER.STEPS, (first, second), strict=True):
        assert step * cfg.SOLVER.IMS_PER_BATCH / 117_266 == pytest.approx(epoch, abs=1e-3)
    assert cfg.INPUT.MIN_SIZE_TRAIN == sizes and cfg.INPUT.MIN_SIZE_TEST == test_size
    assert len(sizes) == 1 or cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range"
    assert cfg.SOLVER.IMS_PER_BATCH == 8 and cfg.SOLVER.BASE_LR == 0.005


def test_the_small_model_has_about_five_million_parameters():
    model = model_zoo.get("small/rdsnet_small.yaml", num_classes=5)
    assert 4e6 < sum(p.numel() for p in model.parameters()) < 6e6


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="no config 'nope.yaml'.*small/rdsnet_small.yaml"):
        model_zoo.get_config_file("nope.yaml")
