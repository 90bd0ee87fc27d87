"""Precision, recall, F1 and confusions against plain counting on random scenes, and COCO's AP50."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask

from rdsnet.evaluation import RDSNetEvaluator
from rdsnet.evaluation.breakdown import read_breakdown
from rdsnet.evaluation.errors import ImageObjects
from rdsnet.evaluation.thresholds import (
    ScoreCurve,
    measure_thresholds,
    read_thresholds,
    write_thresholds,
)

SIDE = 40
NAMES = ["moss", "fern", "reed"]


def rectangle(generator):
    x, y = generator.integers(0, SIDE - 12, 2)
    w, h = generator.integers(6, 13, 2)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[y : y + h, x : x + w] = True
    return mask


def scenes(seed, images=6):
    """Per image: masks, classes and crowds of objects; masks, classes and scores of detections.

    Scores are distinct multiples of 0.001. Most detections are objects moved by a pixel or two,
    some of them of another class; a few are anywhere.
    """
    generator = np.random.default_rng(seed)
    scores = iter(generator.permutation(np.arange(50, 1000)) / 1000)
    found = []
    for _ in range(images):
        masks = [rectangle(generator) for _ in range(generator.integers(0, 6))]
        classes = generator.integers(0, len(NAMES) - 1, len(masks))  # nothing is a reed
        crowds = generator.random(len(masks)) < 0.15
        detected, of_class = [], []
        for mask, k in zip(masks, classes):
            for _ in range(generator.integers(0, 4)):
                shift = tuple(generator.integers(-2, 3, 2))
                detected.append(np.roll(mask, shift, axis=(0, 1)))
                of_class.append(k if generator.random() < 0.7 else generator.integers(0, 3))
        for _ in range(generator.integers(0, 3)):
            detected.append(rectangle(generator))
            of_class.append(generator.integers(0, 3))
        of_class = np.array(of_class, int)
        of_score = np.array([next(scores) for _ in detected])
        found.append((masks, classes, crowds, detected, of_class, of_score))
    return found


def rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def as_objects(scene):
    masks, classes, crowds, detected, of_class, scores = scene
    regions, gt_regions = [rle(m) for m in detected], [rle(m) for m in masks]
    return ImageObjects(regions, scores, of_class, gt_regions, classes, crowds)


def measured(found):
    return measure_thresholds(map(as_objects, found), NAMES, "segm")


def matched(scene, lowest):
    """Pairs (detection, object) and the detections that count, of those at or above a score.

    The rule of the docstring, word by word, on pixels.
    """
    masks, classes, crowds, detected, of_class, scores = scene
    free = {m for m in range(len(masks)) if not crowds[m]}
    pairs, counted = [], []
    for n in sorted(range(len(detected)), key=lambda n: -scores[n]):
        if scores[n] < lowest[of_class[n]]:
            continue
        best, best_iou = None, 0.5
        for m in sorted(free):
            both = (masks[m] & detected[n]).sum()
            iou = both / (masks[m] | detected[n]).sum()
            if classes[m] == of_class[n] and iou >= best_iou and (best is None or iou > best_iou):
                best, best_iou = m, iou
        inside = [
            (masks[m] & detected[n]).sum() / detected[n].sum()
            for m in range(len(masks))
            if crowds[m] and classes[m] == of_class[n]
        ]
        if best is not None:
            free.remove(best)
            pairs.append((n, best))
        elif max(inside, default=0) >= 0.5:
            continue
        counted.append(n)
    return pairs, counted, free


def counts(found, k, score):
    """Right, shown and all objects of a class, with detections of at least a score."""
    right = shown = objects = 0
    for scene in found:
        _, classes, crowds, _, of_class, _ = scene
        pairs, counted, _ = matched(scene, [score] * len(NAMES))
        right += sum(1 for n, _ in pairs if of_class[n] == k)
        shown += sum(1 for n in counted if of_class[n] == k)
        objects += int(((classes == k) & ~crowds).sum())
    return right, shown, objects


@pytest.mark.parametrize("seed", range(6))
def test_curves_are_what_counting_at_every_score_gives(seed):
    found = scenes(seed)
    thresholds = measured(found)
    for k, curve in enumerate(thresholds.classes):
        best = 0.0
        for place, score in enumerate(curve.scores):
            right, shown, objects = counts(found, k, score)
            assert (curve.found[place], curve.detected[place]) == (right, shown)
            assert curve.objects == objects
            best = max(best, 2 * right / (shown + objects))
        if best:
            right, shown, objects = counts(found, k, curve.best_score)
            assert 2 * right / (shown + objects) == pytest.approx(best)
            assert curve.precision[curve.best] == pytest.approx(right / shown)
            assert curve.recall[curve.best] == pytest.approx(right / objects)
        else:
            assert curve.best_score is None
    assert thresholds.classes[0].best is not None


@pytest.mark.parametrize("seed", range(4))
def test_confusions_are_what_counting_at_the_best_scores_gives(seed):
    found = scenes(seed)
    thresholds = measured(found)
    lowest = thresholds.best_scores
    nothing = len(NAMES)
    expected = np.zeros((nothing + 1, nothing + 1), int)
    for scene in found:
        masks, classes, _, detected, of_class, scores = scene
        pairs, counted, free = matched(scene, lowest)
        for _, m in pairs:
            expected[classes[m], classes[m]] += 1
        left = set(counted) - {n for n, _ in pairs}
        for n in sorted(left, key=lambda n: -scores[n]):
            ious = {m: (masks[m] & detected[n]).sum() / (masks[m] | detected[n]).sum()
                    for m in sorted(free)}  # fmt: skip
            best = max(ious, key=ious.get, default=None)
            if best is not None and ious[best] >= 0.5:
                free.remove(best)
                expected[classes[best], of_class[n]] += 1
            else:
                expected[nothing, of_class[n]] += 1
        for m in free:
            expected[classes[m], nothing] += 1
    assert (thresholds.confusion == expected).all()
    objects = [curve.objects for curve in thresholds.classes]
    assert thresholds.confusion.sum(1)[:nothing].tolist() == objects


@pytest.mark.parametrize("seed", [3, 8])
def test_ap50_of_the_evaluation_follows_from_the_same_curves(seed, tmp_path):
    """AP50 of the masks, from breakdown.json, is the area under precision over recall."""
    found = scenes(seed, images=12)
    annotations = [
        {"id": 0, "image_id": i, "category_id": 10 + int(k), "iscrowd": int(crowd),
         "segmentation": rle(mask), "area": int(mask.sum()),
         "bbox": [float(v) for v in coco_mask.toBbox(rle(mask))]}
        for i, (masks, classes, crowds, *_) in enumerate(found)
        for mask, k, crowd in zip(masks, classes, crowds)
    ]  # fmt: skip
    content = {
        "images": [{"id": i, "height": SIDE, "width": SIDE} for i in range(len(found))],
        "categories": [{"id": 10 + k, "name": name} for k, name in enumerate(NAMES)],
        "annotations": [{**a, "id": n} for n, a in enumerate(annotations, start=1)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    name = f"thresholds_{tmp_path.name}_{seed}"
    MetadataCatalog.get(name).set(
        json_file=str(tmp_path / "truth.json"),
        thing_classes=NAMES,
        thing_dataset_id_to_contiguous_id={10 + k: k for k in range(len(NAMES))},
        evaluator_type="coco",
    )
    evaluator = RDSNetEvaluator(name, output_dir=str(tmp_path))
    evaluator.reset()
    for i, (_, _, _, detected, of_class, scores) in enumerate(found):
        masks = torch.as_tensor(np.array(detected).reshape(-1, SIDE, SIDE))
        instances = Instances(
            (SIDE, SIDE),
            pred_boxes=Boxes(torch.zeros(len(masks), 4)),
            scores=torch.tensor(scores),
            pred_classes=torch.tensor(of_class),
            pred_masks=masks,
        )
        evaluator.process([{"image_id": i}], [{"instances": instances}])
    evaluator.evaluate()
    kept = read_thresholds(tmp_path)
    for k, part in enumerate(read_breakdown(tmp_path)["breakdown"]["segm"]["classes"]):
        curve = kept.classes[k]
        if part["AP50"] is None:
            assert curve.objects == 0
            continue
        precision = np.maximum.accumulate(curve.precision[::-1])[::-1]
        at = [precision[curve.recall >= r].max(initial=0) for r in np.linspace(0, 1, 101)]
        assert part["AP50"] == pytest.approx(100 * np.mean(at))
    assert (kept.confusion == measured(found).confusion).all()


def test_detections_of_one_score_are_shown_together():
    """Of two with the score 0.7 one is right: no threshold shows it alone."""
    curve = ScoreCurve.of(np.array([0.7, 0.9, 0.7, 0.2]), np.array([0, 1, 1, 0]), objects=2)
    assert curve.scores.tolist() == [0.9, 0.7, 0.2]
    assert curve.detected.tolist() == [1, 3, 4] and curve.found.tolist() == [1, 2, 2]
    assert curve.best_score == 0.7 and curve.f1[curve.best] == pytest.approx(4 / 5)


@pytest.mark.parametrize("score", [0.29, 0.57, 0.58, 1.0, np.float32(0.29), np.float32(0.7)])
def test_a_threshold_never_excludes_the_detection_that_it_comes_from(score):
    curve = ScoreCurve.of(np.array([score]), np.array([True]), objects=1)
    assert float(score) - 0.001 < curve.best_score <= score
    assert curve.best_score == round(curve.best_score, 3)


def test_a_class_of_which_nothing_is_found_has_the_score_of_all():
    regions = [[0, 0, 10, 10], [20, 0, 10, 10]]
    image = ImageObjects(
        regions=[*regions, [0, 30, 5, 5]],
        scores=np.array([0.8, 0.6, 0.7]),
        classes=np.array([0, 0, 1]),
        gt_regions=[*regions, [30, 30, 5, 5]],
        gt_classes=np.array([0, 0, 1]),
        gt_ignore=np.zeros(3, bool),
    )
    thresholds = measure_thresholds([image], ["moss", "fern"], "bbox")
    assert thresholds.classes[1].best_score is None
    assert thresholds.best_scores == [0.6, 0.6]
    # The fern is missed, and a fern is seen where nothing is.
    assert thresholds.confusion.tolist() == [[2, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_without_any_detection_there_is_no_best_score(tmp_path):
    image = ImageObjects([], np.zeros(0), np.zeros(0, int), [[0, 0, 9, 9]], np.array([0]),
                         np.array([False]))  # fmt: skip
    for images in ([image], []):
        thresholds = measure_thresholds(images, ["moss"], "bbox")
        assert thresholds.best_scores is None and thresholds.text() == ""
        assert thresholds.confusion.tolist() == [[0, len(images)], [0, 0]]
        write_thresholds(tmp_path, thresholds)
        assert read_thresholds(tmp_path).classes[0].objects == len(images)


def test_what_is_kept_is_what_was_measured(tmp_path):
    thresholds = measured(scenes(5))
    assert read_thresholds(tmp_path) is None
    write_thresholds(tmp_path, thresholds)
    kept = read_thresholds(tmp_path)
    assert kept.best_scores == thresholds.best_scores and kept.class_names == NAMES
    assert kept.text() == thresholds.text() != ""
    for one, other in zip(kept.classes, thresholds.classes, strict=True):
        assert (one.f1 == other.f1).all()
