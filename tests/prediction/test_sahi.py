"""SAHI, which cuts images into slices, with a model of ours; where it is installed."""

import numpy as np
import pytest
import torch
from helpers.predicting import CATEGORIES, picture

# With rdsnet, its classes are registered: SAHI itself imports Detectron2 alone.
from rdsnet.checkpoint.configs import load_config

sahi = pytest.importorskip("sahi", reason="SAHI is not installed: pip install sahi")


@pytest.fixture
def detection_model(model_files, trained_model, tmp_path):
    """A model as a training leaves it, as SAHI's class for Detectron2 loads it."""
    weights = str(trained_model / "model_best.pth")
    options = ["MODEL.WEIGHTS", weights, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]
    cfg = load_config(model_files["config"], options)
    (tmp_path / "config.yaml").write_text(cfg.dump())  # every key, as a training writes it
    return sahi.AutoDetectionModel.from_pretrained(
        "detectron2",
        model_path=weights,
        config_path=str(tmp_path / "config.yaml"),
        confidence_threshold=0.0,
        device="cpu",
    )


def test_sahi_loads_a_config_that_a_training_has_saved(detection_model):
    names = [category["name"] for category in CATEGORIES]
    assert detection_model.category_names == names
    image = picture(96, 160)
    detection_model.perform_inference(image)
    found = detection_model.original_predictions["instances"]
    own = detection_model.model(np.ascontiguousarray(image[:, :, ::-1]))["instances"]
    assert len(found) > 0 and torch.equal(found.pred_boxes.tensor, own.pred_boxes.tensor)
    assert found.pred_masks.dtype == torch.bool and found.pred_masks.shape[1:] == (96, 160)


def test_sahi_predicts_slices(detection_model):
    from sahi.predict import get_sliced_prediction

    result = get_sliced_prediction(
        picture(200, 300),
        detection_model,
        slice_height=128,
        slice_width=128,
        overlap_height_ratio=0.25,
        overlap_width_ratio=0.25,
        verbose=0,
    )
    objects = result.object_prediction_list
    assert objects
    for one in objects:
        x1, y1, x2, y2 = one.bbox.to_xyxy()
        assert 0 <= x1 < x2 <= 300 and 0 <= y1 < y2 <= 200
        assert one.mask.bool_mask.shape == (200, 300)
        assert one.category.name in ("disc", "bar")
