"""Data sets whose ids are any integers and texts are evaluated as if they were 1, 2, 3, ..."""

import json
import uuid

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rdsnet import get_cfg
from rdsnet.data.datasets import register_coco_files
from rdsnet.evaluation import RDSNetEvaluator
from rdsnet.evaluation.box_ap import BoxAP, ImageBoxes
from rdsnet.evaluation.detections import Detections, image_quality
from rdsnet.evaluation.truth import CocoTruth, without_objects

HEIGHT, WIDTH = 60, 80
BOXES = [(4, 5, 24, 30), (30, 8, 50, 28), (55, 30, 78, 58)]
# One class is found well, the other badly, and nothing of image 4: all APs differ from 0 and 100.
SHIFTS = {1: 0.0, 2: 2.0, 3: 5.0}

PLAIN = [1, 2, 3, 4]
ODD_IDS = {
    "above 2**63": [2**63 + 11, 2**63 + 12, 2**64 + 1, 2**64 + 2],
    "digits that floats lose": [2**53, 2**53 + 1, 2**53 + 2, 2**53 + 3],
    "longer than any machine's": [10**30, 10**30 + 1, 10**300, 10**300 + 1],
    "negative": [-4, -3, -2, -1],
    "text": ["0a3f-a", "0a3f-b", "ä", ""],
    "numbers and text": [-5, 7, "8", "x"],
    "alike": [1, "1", "01", "1.0"],
}


@pytest.fixture
def register(tmp_path):
    """Register a data set of 4 images with the given ids of images; returns its name."""
    names = []

    def call(ids, *, category_ids=(3, 7), annotation_id=lambda n: n, crowd=False):
        name = f"truth_{uuid.uuid4().hex}"
        folder = tmp_path / name
        folder.mkdir()
        images, annotations = [], []
        for place, id_ in enumerate(ids):
            Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{place}.png")
            size = {"height": HEIGHT, "width": WIDTH}
            images.append({"id": id_, "file_name": f"{place}.png", **size})
            for k, (x1, y1, x2, y2) in enumerate(BOXES):
                annotations.append(
                    {
                        "id": annotation_id(len(annotations)),
                        "image_id": id_,
                        "category_id": category_ids[k % 2],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": int(crowd),
                        "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                    }
                )
        categories = [
            {"id": id_, "name": n} for id_, n in zip(category_ids, ("disc", "bar"), strict=True)
        ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "truth.json").write_text(json.dumps(content))
        cfg = get_cfg()
        cfg.DATASETS.COCO_FILES = [[name, str(folder / "truth.json"), str(folder)]]
        register_coco_files(cfg)
        names.append(name)
        return name

    yield call
    for name in names:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


def found(ids):
    """{image id: detections}, the same ones whatever the ids are."""
    outputs = {}
    for place, shift in SHIFTS.items():
        boxes = torch.tensor(BOXES, dtype=torch.float32)
        boxes[1] += shift
        masks = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = True
        outputs[ids[place - 1]] = Instances(
            (HEIGHT, WIDTH),
            pred_boxes=Boxes(boxes),
            regressed_boxes=Boxes(boxes + 1),
            scores=torch.tensor([0.9, 0.5 + place / 10, 0.3]),
            pred_classes=torch.tensor([0, 1, 0]),
            pred_masks=masks,
        )
    return outputs


def evaluate(name, outputs, folder=None):
    DatasetCatalog.get(name)  # as the test loader does
    evaluator = RDSNetEvaluator(name, output_dir=folder and str(folder))
    evaluator.reset()
    for id_, instances in outputs.items():
        evaluator.process([{"image_id": id_}], [{"instances": instances}])
    return evaluator.evaluate()


@pytest.mark.parametrize("kind", ODD_IDS)
def test_ap_and_quality_are_those_of_plain_ids_and_results_keep_the_given_ones(
    register, tmp_path, kind
):
    plain, ids = register(PLAIN), ODD_IDS[kind]
    odd = register(ids, category_ids=("a", 2**65), annotation_id=lambda n: f"{n}" if n % 2 else -n)
    expected = evaluate(plain, found(PLAIN), tmp_path / "plain")
    # "a" comes after the number, so that the classes are the other way round.
    assert MetadataCatalog.get(odd).thing_classes == ["bar", "disc"]
    swapped = found(ids)
    for instances in swapped.values():
        instances.pred_classes = 1 - instances.pred_classes
    results = evaluate(odd, swapped, tmp_path / "odd")
    assert {task: dict(metrics) for task, metrics in results.items()} == {
        task: pytest.approx(dict(metrics), nan_ok=True) for task, metrics in expected.items()
    }
    assert 0 < results["segm"]["AP"] < 75
    entries = json.loads((tmp_path / "odd" / "coco_instances_results.json").read_text())
    assert {e["image_id"] for e in entries} == set(ids[:3])
    assert {e["category_id"] for e in entries} == {"a", 2**65}
    one = image_quality(Detections(plain, tmp_path / "plain"), "segm")
    other = image_quality(Detections(odd, tmp_path / "odd"), "segm")
    assert [other.images[id_] for id_ in ids] == pytest.approx([one.images[n] for n in PLAIN])


def test_box_ap_of_any_ids(register):
    def box_ap(name, ids):
        images = [
            ImageBoxes(id_, i.pred_boxes.tensor, i.scores, i.pred_classes)
            for id_, i in found(ids).items()
        ]
        return BoxAP(name)(images)

    ids = ODD_IDS["numbers and text"]
    assert box_ap(register(ids), ids) == pytest.approx(box_ap(register(PLAIN), PLAIN), nan_ok=True)


def test_numbering_does_not_change_what_pycocotools_says(register):
    """COCOeval on the file itself, whose ids it can hold, against COCOeval on the numbered one."""
    ids = [40, 10, 30, 20]
    json_file = MetadataCatalog.get(register(ids, annotation_id=lambda n: 100 - n)).json_file
    entries = [
        {"image_id": id_, "category_id": [3, 7][k % 2], "bbox": [x, y, X - x, Y - y], "score": 0.5}
        for id_ in ids[:3]
        for k, (x, y, X, Y) in enumerate(BOXES)
    ]
    stats = []
    for truth in (COCO(json_file), CocoTruth.read(json_file)):
        evaluation = COCOeval(truth, truth.loadRes([dict(entry) for entry in entries]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        stats.append(evaluation.stats.tolist())
    assert stats[0] == stats[1] and 0 < stats[0][0] < 1
    numbered = CocoTruth.read(json_file)
    assert numbered.image_numbers == {10: 1, 20: 2, 30: 3, 40: 4}
    assert min(numbered.anns) == 1 and numbered.num_objects == 12


def test_a_result_of_an_unknown_image_is_named(register):
    truth = CocoTruth.read(MetadataCatalog.get(register(PLAIN)).json_file)
    with pytest.raises(ValueError, match="image 'elsewhere' and category 3"):
        truth.loadRes([{"image_id": "elsewhere", "category_id": 3, "score": 1, "bbox": [0] * 4}])


def test_only_some_images_may_count(register):
    ids = ODD_IDS["text"]
    name = register(ids)
    evaluator = RDSNetEvaluator(name)
    evaluator.reset()
    for id_, instances in found(ids).items():
        evaluator.process([{"image_id": id_}], [{"instances": instances}])
    assert evaluator.evaluate(img_ids=ids[:1])["bbox"]["AP"] == pytest.approx(100)


def test_data_sets_without_objects_are_known(register):
    full, crowds = register(PLAIN), register(PLAIN, crowd=True)
    assert without_objects([full, crowds, "not registered"]) == [crowds]


@pytest.mark.parametrize("crowd", [True, False])
def test_an_ap_that_does_not_exist_is_explained(register, caplog, crowd):
    name = register(PLAIN, crowd=crowd)
    outputs = found(PLAIN) if crowd else {id_: found(PLAIN)[id_][:0] for id_ in PLAIN[:3]}
    with caplog.at_level("INFO"):
        evaluate(name, outputs)
    reason = f"'{name}' has no objects" if crowd else "nothing was detected"
    assert f"There is no AP: {'data set ' if crowd else ''}{reason}" in caplog.text


def test_a_missing_size_is_explained(register, caplog):
    with caplog.at_level("INFO"):
        evaluate(register(PLAIN), found(PLAIN))
    assert "has no objects of that size" in caplog.text and "There is no AP" not in caplog.text
