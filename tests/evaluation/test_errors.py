"""Kinds of errors: hand-made images, and TIDE's own package on random ones."""

import numpy as np
import pytest

from rdsnet.evaluation.errors import KINDS, ImageObjects, average_precision, error_breakdown

CAT, DOG = 0, 1


def box(x, y=0.0, width=10.0, height=10.0):
    return [x, y, width, height]


def image(detections, objects):
    """detections: (box, score, class); objects: (box, class, is crowd)."""
    return ImageObjects(
        regions=[d[0] for d in detections],
        scores=np.array([d[1] for d in detections], float),
        classes=np.array([d[2] for d in detections], int),
        gt_regions=[o[0] for o in objects],
        gt_classes=np.array([o[1] for o in objects], int),
        gt_ignore=np.array([len(o) > 2 and o[2] for o in objects], bool),
    )


def only(**counts):
    return {**dict.fromkeys(KINDS, 0), **counts}


HIT = (box(0), 0.9, CAT)
OBJECT = (box(0), CAT)


@pytest.mark.parametrize(
    ("detections", "objects", "counts"),
    [
        ([HIT], [OBJECT], only()),
        # Shifted by 4 of 10 pixels: IoU 6 / 14 = 0.43.
        ([(box(4), 0.9, CAT)], [OBJECT], only(location=1)),
        ([(box(0), 0.9, DOG)], [OBJECT], only(classification=1)),
        ([(box(4), 0.9, DOG)], [OBJECT], only(both=1, missed=1)),
        ([HIT, (box(1), 0.8, CAT)], [OBJECT], only(duplicate=1)),
        ([HIT, (box(50), 0.8, CAT)], [OBJECT], only(background=1)),
        ([HIT], [OBJECT, (box(50), DOG)], only(missed=1)),
        ([], [OBJECT], only(missed=1)),
        ([HIT], [], only(background=1)),
        # In a crowd of its class a detection is no error; in one of another class it is.
        ([(box(2, 2, 4, 4), 0.9, CAT)], [(box(0), CAT, True)], only()),
        ([(box(2, 2, 4, 4), 0.9, DOG)], [(box(0), CAT, True)], only(background=1)),
    ],
)
def test_each_kind_is_recognised(detections, objects, counts):
    assert error_breakdown([image(detections, objects)]).counts == counts


def test_costs_are_what_ap50_gains():
    """Two cats; a good detection (0.9), then one on background (0.8), then a shifted one (0.7).

    Precisions 1, 1/2, 1/3 at recalls 1/2, 1/2, 1/2: COCO's AP50 is 51/101. Without the background
    error nothing changes, since the recall it reaches has been read before. With the shifted box
    put right the second cat is found at precision 2/3: AP50 (51 + 50 * 2/3) / 101. It stays a
    location error, so no cat counts as missed.
    """
    detections = [HIT, (box(90), 0.8, CAT), (box(34), 0.7, CAT)]
    errors = error_breakdown([image(detections, [OBJECT, (box(30), CAT)])])
    assert errors.ap50 == pytest.approx(100 * 51 / 101)
    assert errors.costs["location"] == pytest.approx(100 * (50 * 2 / 3) / 101)
    assert errors.costs["background"] == errors.costs["missed"] == 0
    assert errors.counts == only(location=1, background=1)


def test_repairing_a_class_moves_the_detection_to_it():
    """A cat called a dog: repaired, cats rise from 0 to 100 and dogs lose a false detection."""
    detections = [(box(0), 0.9, DOG), (box(30), 0.8, DOG)]
    errors = error_breakdown([image(detections, [OBJECT, (box(30), DOG)])])
    assert errors.ap50 == pytest.approx((0 + 50) / 2)
    assert errors.costs["classification"] == pytest.approx(75)


def test_one_object_repairs_one_detection():
    """Two shifted boxes of one object: the better becomes a hit, the other goes."""
    errors = error_breakdown([image([(box(4), 0.9, CAT), (box(-4), 0.8, CAT)], [OBJECT])])
    assert errors.counts["location"] == 2
    assert errors.costs["location"] == pytest.approx(100)


def test_without_any_detection_everything_is_lost_to_missed_objects():
    errors = error_breakdown([image([], [OBJECT]), image([], [(box(3), DOG)])])
    assert errors.ap50 == 0 and errors.costs["missed"] == 100
    assert errors.counts == only(missed=2)


def test_without_objects_there_is_no_ap():
    errors = error_breakdown([image([HIT], [])])
    assert np.isnan(errors.ap50) and errors.counts == only(background=1)


def test_average_precision_of_a_list():
    # Hit, miss, hit of 3 objects: precision 1 up to recall 1/3, 2/3 up to 2/3, then 0.
    ap = average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 3)
    assert ap == pytest.approx((34 * 1 + 33 * 2 / 3) / 101)


def random_images(seed, count=30, classes=3):
    """Objects, and detections that are jittered, mislabelled, doubled or invented."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        objects = [(rng.uniform([0, 0, 8, 8], [80, 80, 30, 30]), int(rng.integers(classes)))
                   for _ in range(rng.integers(1, 6))]  # fmt: skip
        detections = []
        for region, number in objects:
            for _ in range(rng.integers(0, 4)):
                jitter = region + rng.normal(0, rng.choice([0.5, 4.0]), 4)
                jitter[2:] = jitter[2:].clip(3)
                called = number if rng.random() < 0.7 else int(rng.integers(classes))
                detections.append((jitter, rng.random(), called))
        detections.append((rng.uniform([0, 0, 8, 8], [80, 80, 30, 30]), rng.random(), 0))
        images.append(
            image(
                [(list(map(float, r)), s, c) for r, s, c in detections],
                [(list(map(float, r)), c) for r, c in objects],
            )
        )
    return images


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_package_of_the_method(seed):
    """tidecv 1.0.1 on boxes, crowds aside: the same counts, AP50 and costs."""
    tidecv = pytest.importorskip("tidecv")
    images = random_images(seed)
    truth, found = tidecv.Data("truth"), tidecv.Data("found")
    for number, one in enumerate(images):
        for region, k in zip(one.gt_regions, one.gt_classes):
            truth.add_ground_truth(number, int(k), region)
        for region, score, k in zip(one.regions, one.scores, one.classes):
            found.add_detection(number, int(k), float(score), region)
    run = tidecv.TIDE(pos_threshold=0.5, background_threshold=0.1).evaluate(truth, found)
    names = {"Cls": "classification", "Loc": "location", "Both": "both", "Dupe": "duplicate",
             "Bkg": "background", "Miss": "missed"}  # fmt: skip
    errors = error_breakdown(images)
    assert errors.ap50 == pytest.approx(run.ap, abs=1e-9)
    fixed = run.fix_main_errors()
    for kind, reported in fixed.items():
        name = names[kind.short_name]
        assert errors.counts[name] == len(run.error_dict[kind]) > 0, name
        assert errors.costs[name] == pytest.approx(reported, abs=1e-9), name
