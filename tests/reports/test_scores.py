"""The report's section on scores."""

from types import SimpleNamespace

import numpy as np

from rdsnet.evaluation.errors import ImageObjects
from rdsnet.evaluation.thresholds import measure_thresholds, write_thresholds
from rdsnet.reports.scores import scores_section


def image(classes, scores, gt_classes):
    """Detection n lies exactly on object n; what is beyond the objects lies on nothing."""
    places = [[20 * n, 0, 10, 10] for n in range(max(len(classes), len(gt_classes)))]
    return ImageObjects(
        regions=places[: len(classes)],
        scores=np.array(scores, float),
        classes=np.array(classes, int),
        gt_regions=places[: len(gt_classes)],
        gt_classes=np.array(gt_classes, int),
        gt_ignore=np.zeros(len(gt_classes), bool),
    )


def section(tmp_path, images, names):
    write_thresholds(tmp_path, measure_thresholds(images, names, "bbox"))
    return scores_section(SimpleNamespace(folder=tmp_path))


def test_the_table_has_the_best_score_of_every_class(tmp_path):
    """Of dogs the right ones are at 0.9 and 0.6, a false one at 0.3; the only cat is a dog."""
    images = [image([0, 0, 0], [0.9, 0.6, 0.3], [0, 0]), image([0], [0.2], [1])]
    made = section(tmp_path, images, ["dog", "cat"])
    (table,) = made.tables
    assert table.headers == ("class", "objects", "score", "precision", "recall", "F1")
    assert table.rows[1] == ("dog", "2", "0.600", "1.000", "1.000", "1.000")
    assert table.rows[2] == ("cat", "1", "–", "–", "–", "–")
    assert table.rows[0] == ("all, with one score", "3", "0.600", "1.000", "0.667", "0.800")
    assert "the score of all classes serves" in table.caption
    curves, confusion = made.figures
    assert "0.6" in curves.caption and "F1 of every class" in curves.svg
    assert "annotated as" in confusion.svg and ">cat<" in confusion.svg


def test_one_class_is_one_curve_and_one_row(tmp_path):
    made = section(tmp_path, [image([0, 0], [0.8, 0.4], [0])], ["leaf"])
    assert [row[0] for row in made.tables[0].rows] == ["leaf"]
    assert "F1 of every class" not in made.figures[0].svg


def test_of_many_classes_the_most_frequent_confusions_are_named(tmp_path):
    """Every object k is found, and on three objects of class 4 there is a 7 instead."""
    names = [f"kind {k}" for k in range(30)]
    right = image(range(30), [0.5] * 30, range(30))
    confused = image([7, 7, 7, 2], [0.9, 0.8, 0.7, 0.6], [4, 4, 4, 3])
    made = section(tmp_path, [right, confused], names)
    assert len(made.figures) == 1 and "6 with most objects" in made.figures[0].caption
    assert made.tables[1].rows == [
        ("kind 4, found as kind 7", "3"),
        ("kind 3, found as kind 2", "1"),
    ]


def test_where_nothing_is_found_or_measured_there_is_no_section(tmp_path):
    assert scores_section(SimpleNamespace(folder=tmp_path)) is None
    assert section(tmp_path, [image([], [], [0])], ["leaf"]) is None
