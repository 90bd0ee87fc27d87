"""The model in the box: small, safe, open, and at work on every kind of image that it is for."""

import json
import os
from collections import defaultdict
from pathlib import Path

import cv2
import pytest

from rdsnet import get_cfg
from rdsnet.checkpoint.description import read_config
from rdsnet.checkpoint.packing import read_card
from rdsnet.checkpoint.shipped import shipped_models
from rdsnet.checkpoint.trained import prediction_config
from rdsnet.config import flat
from rdsnet.prediction.predictor import Predictor

PROJECT = Path(__file__).resolve().parents[1]
WEIGHTS = PROJECT / "nuclei" / "nuclei.pth"
MOST_BYTES = 12_000_000

needs_weights = pytest.mark.skipif(
    not WEIGHTS.is_file(), reason="this checkout is without nuclei.pth"
)
needs_data = pytest.mark.skipif(
    "RDSNET_DATA" not in os.environ, reason="RDSNET_DATA names no data folder"
)


def test_the_config_completes_the_model_and_finds_them_all():
    cfg = get_cfg()
    cfg.merge_from_file(str(PROJECT / "configs" / "rdsnet_lite0_96_nuclei.yaml"))
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 1 and cfg.TEST.DETECTIONS_PER_IMAGE == 500
    assert cfg.MODEL.RDSNET.FIT_MASK_THRESHOLD and cfg.MODEL.RDSNET.MBRM.FIT.AFTER_TRAINING
    assert cfg.MODEL.RDSNET.FIT_SCORE_THRESHOLDS
    assert "lite0" in cfg.MODEL.WEIGHTS  # it began with ImageNet's
    last = get_cfg()
    last.merge_from_file(str(PROJECT / "configs" / "rdsnet_lite0_96_nuclei_mosaic.yaml"))
    assert last.INPUT.MOSAIC > cfg.INPUT.MOSAIC == 0
    assert last.MODEL.WEIGHTS == f"{cfg.OUTPUT_DIR}/model_final.pth"


def test_the_card_says_what_it_is_made_of_and_what_it_is_not_for():
    card = (PROJECT / "nuclei" / "model_card.md").read_text()
    for words in ("CC0 1.0", "BBBC038", "Apache-2.0", "## Not for", "## Limits"):
        assert words in card


@needs_weights
def test_the_file_is_small_and_without_paths():
    assert shipped_models()["nuclei"].file == WEIGHTS
    assert WEIGHTS.stat().st_size <= MOST_BYTES
    config = flat(read_config(WEIGHTS))
    assert [name for _, name in config["DATASETS.CLASSES"]] == ["nucleus"]
    assert not [key for key, value in config.items() if str(value).startswith(("/", "~"))]
    (score,) = config["MODEL.RDSNET.SCORE_THRESHOLDS"]
    text = (WEIGHTS.parent / "model_card.md").read_text()
    assert f"The best balance over all is at {score:g}" in text
    card = read_card(WEIGHTS)
    assert "CC0" in card.licence and "nuclei" in card.finds and card.figures


@pytest.mark.slow
@needs_weights
@needs_data
def test_it_finds_nuclei_in_every_kind_of_image():
    """Kinds of validation images: their size, grey or colour."""
    folder = Path(os.environ["RDSNET_DATA"]) / "nuclei"
    predictor = Predictor(prediction_config(None, "nuclei", 0.5))
    found = defaultdict(int)
    for info in json.loads((folder / "val.json").read_text())["images"]:
        path = str(folder / "images" / info["file_name"])
        is_grey = cv2.imread(path, cv2.IMREAD_UNCHANGED).ndim == 2
        instances = predictor(cv2.imread(path))["instances"]
        found[info["height"], info["width"], is_grey] += len(instances)
    assert min(found.values()) > 0, dict(found)
