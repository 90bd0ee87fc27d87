"""Two categories of one name stay two classes that people can tell apart."""

import pytest
from detectron2.data import Metadata, MetadataCatalog

from rdsnet import get_cfg
from rdsnet.data.class_names import (
    class_name_findings,
    class_numbers,
    distinct_names,
    metadata_names,
)
from rdsnet.data.datasets import class_metadata, register_class_names, register_coco_files
from rdsnet.data.statistics import data_statistics

TWINS = [{"id": 8, "name": "seal"}, {"id": 2, "name": "seal"}]


def test_only_names_that_occur_twice_get_their_ids():
    assert distinct_names({1: "cat", 5: "dog"}) == ["cat", "dog"]
    assert distinct_names({1: "cat", 5: "dog", 7: "cat"}) == ["cat (id 1)", "dog", "cat (id 7)"]
    assert distinct_names({"a7": "x", 10**30: "x"}) == ["x (id 'a7')", f"x (id {10**30})"]


def test_names_stay_distinct_when_a_class_is_called_like_a_name_with_its_id():
    names = distinct_names({1: "cat", 2: "cat", 3: "cat (id 2)"})
    assert len(set(names)) == 3 and all(name.startswith("cat") for name in names)


def test_names_are_distinct_wherever_they_come_from(coco):
    """From the json, the registered data set, and a model's config without its data."""
    coco.content["categories"] = TWINS
    expected = ["seal (id 2)", "seal (id 8)"]  # in the order of the ids
    assert data_statistics(coco.content).class_names == expected

    cfg = get_cfg()
    cfg.DATASETS.COCO_FILES = [["twins", coco.write(), coco.image_root]]
    cfg.DATASETS.TRAIN = ("twins",)
    cfg.MODEL.RETINANET.NUM_CLASSES = 2
    register_coco_files(cfg)
    assert MetadataCatalog.get("twins").thing_classes == expected
    assert class_metadata(cfg) == (expected, [2, 8])

    cfg.DATASETS.COCO_FILES, cfg.DATASETS.TRAIN = [], ("gone",)
    cfg.DATASETS.CLASSES = [[2, "seal"], [8, "seal"]]
    assert class_metadata(cfg) == (expected, [2, 8])
    register_class_names(cfg)
    assert MetadataCatalog.get("gone").thing_classes == expected


def test_names_of_a_data_set_that_others_have_registered_are_distinct():
    metadata = Metadata(
        name="theirs",
        thing_classes=["seal", "bear", "seal"],
        thing_dataset_id_to_contiguous_id={31: 2, 4: 0, 9: 1},
    )
    assert metadata_names(metadata) == ["seal (id 4)", "bear", "seal (id 31)"]
    assert metadata_names(Metadata(name="bare", thing_classes=["b", "b"])) == [
        "b (id 0)",
        "b (id 1)",
    ]


@pytest.mark.parametrize(
    ("word", "expected"),
    [("seal", {0, 2}), ("seal (id 8)", {2}), ("8", {2}), ("bear", {1}), ("2", {1})],
)
def test_a_name_means_all_classes_that_have_it(word, expected):
    """The last: the class called "2" comes before the class with the id 2."""
    names = distinct_names({2: "seal", 5: "bear" if word != "2" else "2", 8: "seal"})
    assert class_numbers(names, [2, 5, 8])[word] == expected


def test_ids_stand_for_classes_without_names():
    assert class_numbers(None, [3, 9]) == {"3": {0}, "9": {1}}


def found(*names):
    categories = [{"id": 10 + k, "name": name} for k, name in enumerate(names)]
    return [(f.kind, f.where) for f in class_name_findings(categories)]


def test_equal_and_similar_names_are_found():
    assert found("tree", "bush") == []
    assert found("tree", "bush", "tree") == [("same class name", "categories 10, 12")]
    for other in ("Tree", " tree ", "t ree", "tree\u00a0"):
        assert found("tree", other) == [("similar class names", "categories 10, 11")]
    assert found("caf\u00e9", "cafe\u0301") == [("similar class names", "categories 10, 11")]
