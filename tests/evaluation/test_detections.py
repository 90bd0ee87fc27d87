"""Quality of images and moves of edges, from the files of an evaluation."""

import json

import cv2
import numpy as np
import pytest

from rdsnet import get_cfg
from rdsnet.data.datasets import register_coco_files
from rdsnet.evaluation.detections import Detections, edge_shifts, image_quality


def result(image_id, bbox, score, shift=0.0, category_id=7):
    x, y, w, h = bbox
    regressed = [x + shift, y, w, h]
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        "bbox_regressed": regressed,
        "score": score,
    }


@pytest.fixture
def detections(tmp_path):
    """Image 1 has objects A and B, image 2 object C, image 3 none."""

    def make(results):
        name = f"detections_{tmp_path.name}"
        objects = [(1, [10, 10, 20, 20]), (1, [40, 10, 20, 20]), (2, [10, 10, 20, 20])]
        content = {
            "images": [
                {"id": i, "file_name": f"{i}.png", "height": 60, "width": 80} for i in (1, 2, 3)
            ],
            "categories": [{"id": 7, "name": "thing"}],
            "annotations": [
                {"id": n + 1, "image_id": i, "category_id": 7, "bbox": b, "area": 400, "iscrowd": 0,
                 "segmentation": [[b[0], b[1], b[0] + 20, b[1], b[0] + 20, b[1] + 20]]}
                for n, (i, b) in enumerate(objects)
            ],
        }  # fmt: skip
        for i in (1, 2, 3):
            cv2.imwrite(str(tmp_path / f"{i}.png"), np.zeros((60, 80, 3), np.uint8))
        (tmp_path / "a.json").write_text(json.dumps(content))
        (tmp_path / "coco_instances_results.json").write_text(json.dumps(results))
        cfg = get_cfg()
        cfg.DATASETS.COCO_FILES = [[name, str(tmp_path / "a.json"), str(tmp_path)]]
        register_coco_files(cfg)
        return Detections(name, tmp_path)

    return make


def test_quality_is_panoptic_quality_at_the_score_of_the_best_f1(detections):
    found = detections(
        [
            result(1, [10, 10, 20, 20], 0.9),  # A, IoU 1
            result(1, [40, 10, 20, 16], 0.8),  # B, IoU 0.8
            result(2, [60, 40, 9, 9], 0.7),  # false
            result(2, [10, 10, 20, 20], 0.6),  # C
            result(3, [10, 10, 20, 20], 0.1),  # false
        ]
    )
    quality = image_quality(found, "bbox")
    # F1 = 2 TP / (detections + 3 objects): 2/4, 4/5, 4/6, 6/7, 6/8.
    assert quality.score_threshold == 0.6 and quality.f1 == pytest.approx(6 / 7)
    # Image 1: (1 + 0.8) / 2; image 2: 1 hit and 1 false: 1 / 1.5. Image 3 has no object.
    assert quality.images == pytest.approx({1: 0.9, 2: 1 / 1.5})


def test_quality_without_detections_is_zero(detections):
    quality = image_quality(detections([]), "bbox")
    assert quality.images == {1: 0.0, 2: 0.0} and quality.f1 == 0


def test_edges_move_outwards_positively(detections):
    found = detections(
        [result(1, [10, 10, 20, 20], 0.9, shift=3.0), result(3, [5, 5, 9, 9], 0.9, shift=0.0)]
    )
    moves = edge_shifts(found, 0.5)
    # Regressed 3 px too far right: the left edge moves outwards by 3, the right one inwards.
    assert moves.shifts.tolist() == [3, 0, -3, 0, 0, 0, 0, 0]
    assert moves.before.tolist() == [-3, 0, 3, 0] and moves.after.tolist() == [0, 0, 0, 0]
    assert not len(edge_shifts(found, 0.95).shifts)


def test_missing_results_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="coco_instances_results.json"):
        Detections("any", tmp_path)
