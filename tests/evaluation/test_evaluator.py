"""RDSNetEvaluator against pycocotools run by hand on hand-made predictions."""

import contextlib
import io
import json
import logging
import math
import uuid

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rdsnet import get_cfg
from rdsnet.evaluation import RDSNetEvaluator, instances_to_coco_json, results_table
from rdsnet.evaluation.breakdown import read_breakdown
from rdsnet.ops import CompactMasks
from rdsnet.ops.masks import run_lengths_from_window

HEIGHT, WIDTH = 120, 160
CATEGORY_IDS = [3, 7]  # not contiguous, as COCO's own


def rectangle(x1, y1, x2, y2):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def compact(masks):
    """CompactMasks of (N, H, W) bool masks whose windows are the whole image."""
    masks = torch.as_tensor(masks)
    whole = (0, 0, WIDTH, HEIGHT)
    runs = [run_lengths_from_window(mask, whole, (HEIGHT, WIDTH)) for mask in masks]
    lengths = torch.tensor([0] + [len(r) for r in runs])
    return CompactMasks(
        (HEIGHT, WIDTH),
        torch.tensor([whole]).expand(len(masks), 4),
        masks.sum((1, 2)),
        masks.amax(2).float() if len(masks) else torch.zeros(0, HEIGHT),
        masks.amax(1).float() if len(masks) else torch.zeros(0, WIDTH),
        torch.cat(runs) if runs else torch.zeros(0, dtype=torch.int64),
        lengths.cumsum(0),
    )


@pytest.fixture
def dataset(tmp_path):
    """A registered data set of 5 images; returns its name, json and true boxes per image."""
    generator = np.random.default_rng(0)
    images, annotations, truth = [], [], {}
    for image_id in range(1, 6):
        images.append(
            {"id": image_id, "file_name": f"{image_id}.png", "height": HEIGHT, "width": WIDTH}
        )
        truth[image_id] = []
        for k in range(3):
            x, y = 5 + 50 * k, int(generator.integers(2, 40))
            w, h = int(generator.integers(8, 45)), int(generator.integers(8, 75))
            rle = coco_mask.encode(np.asfortranarray(rectangle(x, y, x + w, y + h), np.uint8))
            rle["counts"] = rle["counts"].decode()
            truth[image_id].append((x, y, x + w, y + h, k % 2))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[k % 2],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": rle,
                }
            )
    categories = [
        {"id": i, "name": name} for i, name in zip(CATEGORY_IDS, ("disc", "bar"), strict=True)
    ]
    path = tmp_path / "truth.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    name = f"evaluator_{uuid.uuid4().hex}"
    MetadataCatalog.get(name).set(
        json_file=str(path),
        thing_classes=["disc", "bar"],
        thing_dataset_id_to_contiguous_id={3: 0, 7: 1},
        evaluator_type="coco",
    )
    return name, path, truth


def predictions(truth, *, copies=1, compact_masks=False):
    """Boxes after MBRM nearly right, boxes before further off, masks shifted by 2 pixels."""
    generator = torch.Generator().manual_seed(1)
    outputs = {}
    for image_id, objects in truth.items():
        boxes = torch.tensor([o[:4] for o in objects] * copies).float()
        masks = torch.as_tensor(np.stack([rectangle(*o[:4]) for o in objects] * copies))
        masks = masks.roll(2, dims=2)
        outputs[image_id] = Instances(
            (HEIGHT, WIDTH),
            pred_boxes=Boxes(boxes + torch.randn(boxes.shape, generator=generator)),
            regressed_boxes=Boxes(boxes + 4 * torch.randn(boxes.shape, generator=generator)),
            scores=torch.rand(len(boxes), generator=generator),
            pred_classes=torch.tensor([o[4] for o in objects] * copies),
            pred_masks=compact(masks) if compact_masks else masks,
        )
    return outputs


def nothing():
    return Instances(
        (HEIGHT, WIDTH),
        pred_boxes=Boxes(torch.zeros(0, 4)),
        regressed_boxes=Boxes(torch.zeros(0, 4)),
        scores=torch.zeros(0),
        pred_classes=torch.zeros(0, dtype=torch.int64),
        pred_masks=torch.zeros(0, HEIGHT, WIDTH, dtype=torch.bool),
    )


def run(evaluator, outputs):
    evaluator.reset()
    for image_id, instances in outputs.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()


def by_hand(path, outputs, boxes_of, iou_type, max_dets=100):
    """AP, AP50, AP75, AP90, APs, APm, APl and AP per class of pycocotools, without our code."""
    entries = []
    for image_id, instances in outputs.items():
        for k in range(len(instances)):
            entry = {
                "image_id": image_id,
                "category_id": CATEGORY_IDS[int(instances.pred_classes[k])],
                "score": float(instances.scores[k]),
            }
            if iou_type == "bbox":
                x1, y1, x2, y2 = getattr(instances, boxes_of).tensor[k].tolist()
                entry["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            else:
                mask = np.asfortranarray(instances.pred_masks[k].numpy(), np.uint8)
                entry["segmentation"] = coco_mask.encode(mask)
            entries.append(entry)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluation = COCOeval(truth, truth.loadRes(entries), iou_type)
        evaluation.params.maxDets = [1, 10, max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]  # the largest number of detections

    def mean(values):
        return 100 * values[values > -1].mean() if (values > -1).any() else math.nan

    figures = {
        "AP": mean(precision[..., 0]),
        "AP50": mean(precision[0, ..., 0]),
        "AP75": mean(precision[5, ..., 0]),
        "AP90": mean(precision[8, ..., 0]),
        "APs": mean(precision[..., 1]),
        "APm": mean(precision[..., 2]),
        "APl": mean(precision[..., 3]),
    }
    for k, name in enumerate(("disc", "bar")):
        figures[f"AP-{name}"] = mean(precision[:, :, k, 0])
    return figures


@pytest.mark.parametrize("compact_masks", [False, True])
def test_box_box_before_mbrm_and_mask_ap_are_pycocotools_own(dataset, compact_masks):
    name, path, truth = dataset
    results = run(RDSNetEvaluator(name), predictions(truth, compact_masks=compact_masks))

    outputs = predictions(truth)
    expected = {
        "bbox": by_hand(path, outputs, "pred_boxes", "bbox"),
        "bbox_regressed": by_hand(path, outputs, "regressed_boxes", "bbox"),
        "segm": by_hand(path, outputs, None, "segm"),
    }
    assert list(results) == ["bbox", "bbox_regressed", "segm"]
    for task, figures in expected.items():
        assert results[task] == pytest.approx(figures, abs=1e-6, nan_ok=True), task
    assert 0 < results["bbox_regressed"]["AP"] < results["bbox"]["AP"] < 100
    assert 0 < results["segm"]["AP90"] < results["segm"]["AP50"]


def test_more_than_100_detections_per_image_count_when_the_config_says_so(dataset):
    name, path, truth = dataset
    outputs = predictions(truth, copies=80)  # 240 per image, 160 of them discs
    for instances in outputs.values():  # what is good comes last
        instances.scores = torch.linspace(0.9, 0.1, len(instances))
        instances.pred_boxes.tensor[:-3] += 30
    cfg = get_cfg()
    cfg.TEST.DETECTIONS_PER_IMAGE = 300
    cfg.OUTPUT_DIR = str(path.parent)
    cfg.DATASETS.TEST = (name,)
    results = run(RDSNetEvaluator.from_config(cfg, name), outputs)
    expected = by_hand(path, outputs, "pred_boxes", "bbox", max_dets=300)
    assert expected["AP"] > 0
    assert by_hand(path, outputs, "pred_boxes", "bbox", max_dets=100)["AP-disc"] == 0
    assert results["bbox"] == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert (path.parent / "inference" / "coco_instances_results.json").is_file()


def test_images_with_as_many_detections_as_there_may_be_are_counted(dataset, caplog):
    """Five images of three objects; one of them gets two detections, the others three."""
    name, _, truth = dataset
    caplog.set_level(logging.INFO)
    logging.getLogger("detectron2").propagate = True  # Detectron2 may have set up logging
    outputs = predictions(truth)
    outputs[4] = outputs[4][:2]
    for limit, said in (
        (
            2,
            "5 of 5 images reached TEST.DETECTIONS_PER_IMAGE, 2 detections; what was less certain "
            "does not count. 5 of them have more annotated objects than that. rdsnet eval "
            "--max-detections N",
        ),
        (
            3,
            "4 of 5 images reached TEST.DETECTIONS_PER_IMAGE, 3 detections; what was less certain "
            "does not count. rdsnet eval",
        ),
        (4, None),
    ):
        caplog.clear()
        run(RDSNetEvaluator(name, max_dets_per_image=limit), outputs)
        assert said in caplog.text if said else "reached TEST" not in caplog.text


def test_no_detection_at_all_keeps_every_task(dataset):
    name, _, truth = dataset
    results = run(RDSNetEvaluator(name), {image_id: nothing() for image_id in truth})
    assert list(results) == ["bbox", "bbox_regressed", "segm"]
    for figures in results.values():
        assert {"AP", "AP50", "AP75", "AP90", "APs", "APm", "APl"} <= set(figures)
        assert all(math.isnan(value) for value in figures.values())


def test_images_without_detections_are_allowed_among_others(dataset):
    name, path, truth = dataset
    outputs = predictions(truth)
    outputs[2] = nothing()
    results = run(RDSNetEvaluator(name), outputs)
    assert results["segm"] == pytest.approx(by_hand(path, outputs, None, "segm"), nan_ok=True)


def test_processes_of_a_distributed_run_are_evaluated_together(dataset, monkeypatch):
    name, _, truth = dataset
    outputs = predictions(truth)
    whole = run(RDSNetEvaluator(name), outputs)
    other = RDSNetEvaluator(name)
    other.reset()
    for image_id in (2, 4):
        other.process([{"image_id": image_id}], [{"instances": outputs.pop(image_id)}])
    gathered = "detectron2.utils.comm.gather"
    monkeypatch.setattr(gathered, lambda data, dst=0: [data, other._predictions])
    together = run(RDSNetEvaluator(name), outputs)
    for task in ("bbox", "bbox_regressed", "segm"):
        assert together[task] == pytest.approx(whole[task], nan_ok=True)
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: False)
    assert run(RDSNetEvaluator(name), outputs) == {}


def test_results_file_has_both_boxes_and_is_loaded_by_pycocotools(dataset, tmp_path):
    name, path, truth = dataset
    outputs = predictions(truth, compact_masks=True)
    run(RDSNetEvaluator(name, output_dir=str(tmp_path / "out")), outputs)
    file = tmp_path / "out" / "coco_instances_results.json"
    entries = json.loads(file.read_text())
    first = entries[0]
    before = outputs[1].regressed_boxes.tensor[0]
    assert first["category_id"] in CATEGORY_IDS
    assert first["bbox_regressed"][:2] == pytest.approx(before[:2].tolist())
    width = (before[2].double() - before[0].double()).item()
    rounding = 2**-24 * before.abs().max().item()  # of float32
    assert first["bbox_regressed"][2] == pytest.approx(width, abs=rounding)
    assert first["bbox"] != first["bbox_regressed"]
    assert {"id", "area"}.isdisjoint(first)
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(str(path)).loadRes(str(file))
    assert len(loaded.anns) == sum(len(instances) for instances in outputs.values())


def test_compact_masks_are_never_made_dense(dataset, monkeypatch):
    name, _, truth = dataset

    def refuse(self):
        raise AssertionError("dense masks were asked for")

    outputs = predictions(truth, compact_masks=True)
    monkeypatch.setattr(CompactMasks, "dense", refuse)
    assert run(RDSNetEvaluator(name), outputs)["segm"]["AP50"] > 0


def test_compact_and_dense_masks_give_the_same_entries(dataset):
    _, _, truth = dataset
    dense = instances_to_coco_json(predictions(truth)[1], 1)
    rle = instances_to_coco_json(predictions(truth, compact_masks=True)[1], 1)
    assert dense == rle


def test_model_without_mbrm_has_the_same_box_ap_twice(dataset):
    name, _, truth = dataset
    outputs = predictions(truth)
    for instances in outputs.values():
        instances.remove("regressed_boxes")
    results = run(RDSNetEvaluator(name), outputs)
    assert results["bbox_regressed"] == pytest.approx(results["bbox"], nan_ok=True)


def test_model_without_masks_has_no_mask_ap(dataset):
    name, _, truth = dataset
    outputs = predictions(truth)
    for instances in outputs.values():
        instances.remove("pred_masks")
    assert list(run(RDSNetEvaluator(name), outputs)) == ["bbox", "bbox_regressed"]


def test_table_shows_before_and_after_mbrm():
    results = {
        "bbox": {"AP": 41.26, "AP50": 60.0, "AP75": math.nan},
        "bbox_regressed": {"AP": 40.0, "AP50": 61.5, "AP75": 44.4},
        "segm": {"AP": 36.0, "AP50": 58.0, "AP75": 38.0},
    }
    table = results_table(results, metrics=("AP", "AP50", "AP75"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[0] == ["", "AP", "AP50", "AP75"]
    assert rows[2] == ["box", "41.3", "60.0", "-"]
    assert rows[3] == ["box without MBRM", "40.0", "61.5", "44.4"]
    assert rows[4] == ["mask", "36.0", "58.0", "38.0"]


def test_two_classes_of_one_name_have_an_ap_each(dataset, tmp_path):
    """Every object of the one class is found exactly, and none of the other."""
    name, json_file, truth = dataset
    twins = f"twins_{name}"
    MetadataCatalog.get(twins).set(
        json_file=str(json_file),
        thing_classes=["knot", "knot"],
        thing_dataset_id_to_contiguous_id={3: 0, 7: 1},
    )
    outputs = {}
    for image_id, objects in truth.items():
        boxes = torch.tensor([o[:4] for o in objects if o[4] == 1]).float()
        outputs[image_id] = Instances(
            (HEIGHT, WIDTH),
            pred_boxes=Boxes(boxes),
            scores=torch.full((len(boxes),), 0.9),
            pred_classes=torch.ones(len(boxes), dtype=torch.int64),
        )
    results = run(RDSNetEvaluator(twins, output_dir=str(tmp_path)), outputs)
    assert results["bbox"]["AP-knot (id 3)"] == 0
    assert results["bbox"]["AP-knot (id 7)"] == pytest.approx(100)
    classes = read_breakdown(tmp_path)["breakdown"]["bbox"]["classes"]
    assert [c["name"] for c in classes] == ["knot (id 3)", "knot (id 7)"]
