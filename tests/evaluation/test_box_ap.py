"""BoxAP against Detectron2's COCO evaluator on the same detections."""

import json
import uuid

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from rdsnet.evaluation.box_ap import BoxAP, ImageBoxes

CATEGORY_IDS = [3, 7]  # not contiguous, as COCO's own


@pytest.fixture
def dataset(tmp_path):
    """Name and {image id: (boxes (N, 4) XYXY, classes (N,))} of a data set of 6 images."""
    generator = np.random.default_rng(0)
    images, annotations, truth = [], [], {}
    for image_id in range(1, 7):
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": 300, "width": 400})
        low = generator.uniform(0, 150, (8, 2))
        boxes = np.concatenate([low, low + generator.uniform(8, 140, (8, 2))], 1)
        classes = generator.integers(0, 2, 8)
        truth[image_id] = (torch.tensor(boxes, dtype=torch.float32), torch.tensor(classes))
        for (x1, y1, x2, y2), class_ in zip(boxes.tolist(), classes.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[class_],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(len(annotations) % 11 == 10),
                }
            )
    categories = [{"id": i, "name": str(i)} for i in CATEGORY_IDS]
    path = tmp_path / "truth.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    name = f"box_ap_{uuid.uuid4().hex}"
    DatasetCatalog.register(name, lambda: images)
    MetadataCatalog.get(name).set(
        json_file=str(path),
        thing_classes=["a", "b"],
        thing_dataset_id_to_contiguous_id={3: 0, 7: 1},
    )
    return name, truth


@pytest.mark.parametrize("max_detections", [12, 100])
def test_metrics_are_those_of_detectron2(dataset, max_detections):
    name, truth = dataset
    generator = torch.Generator().manual_seed(0)
    evaluator = COCOEvaluator(
        name, tasks=("bbox",), max_dets_per_image=max_detections, use_fast_impl=False
    )
    evaluator.reset()
    detections = []
    for image_id, (boxes, classes) in truth.items():
        boxes, classes = boxes.repeat(3, 1), classes.repeat(3)
        boxes = boxes + 6 * torch.randn(boxes.shape, generator=generator)
        scores = torch.rand(len(boxes), generator=generator)
        detections.append(ImageBoxes(image_id, boxes, scores, classes))
        instances = Instances(
            (300, 400), pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes
        )
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    expected = evaluator.evaluate()["bbox"]
    box_ap = BoxAP(name, max_detections)
    found = box_ap(detections)
    assert found.pop("AP90") < found["AP75"] < found["AP"] < found["AP50"]
    assert found == pytest.approx({metric: expected[metric] for metric in found})
    assert box_ap(detections, sizes=False)["AP"] == pytest.approx(expected["AP"])


def test_nothing_detected_is_zero(dataset):
    name, _ = dataset
    assert BoxAP(name)([])["AP"] == 0


def test_a_data_set_without_annotation_file_is_refused():
    name = f"box_ap_{uuid.uuid4().hex}"
    DatasetCatalog.register(name, lambda: [])
    with pytest.raises(ValueError, match="no COCO annotation file.*DATASETS.COCO_FILES"):
        BoxAP(name)
