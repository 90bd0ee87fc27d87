"""Files of DATASETS.COCO_FILES become Detectron2 datasets; categories and config must fit."""

import contextlib
import io
import json
import os

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import rdsnet
from rdsnet.data.datasets import (
    check_num_classes,
    coco_files,
    register_coco_files,
    with_num_classes,
)


def config(*files, train=(), test=(), num_classes=-1, invalid="error"):
    cfg = rdsnet.get_cfg()
    cfg.DATASETS.COCO_FILES = [list(file) for file in files]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(train), tuple(test)
    cfg.DATASETS.INVALID_ANNOTATIONS = invalid
    cfg.MODEL.RETINANET.NUM_CLASSES = num_classes
    return cfg


@pytest.fixture
def mine(coco):
    """The entry of a data set called 'mine', with categories 2 'cat' and 8 'dog'."""
    coco.write()
    return ["mine", coco.json_file, coco.image_root]


@pytest.fixture
def other(tmp_path):
    """Writes another json with given categories and gives its entry."""

    def write(name, categories):
        path = tmp_path / f"{name}.json"
        categories = [{"id": id_, "name": label} for id_, label in categories.items()]
        path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
        return [name, str(path), str(tmp_path)]

    return write


# Registration ---------------------------------------------------------------------------------


def test_registered_file_loads_as_detectron2_dataset_dicts(mine, coco):
    register_coco_files(config(mine))
    records = DatasetCatalog.get("mine")
    assert [r["image_id"] for r in records] == [3, 4, 5, 7, 9]
    assert records[3]["file_name"] == coco.image_path("polygons.png")
    assert (records[3]["height"], records[3]["width"]) == (40, 60)
    assert [len(r["annotations"]) for r in records] == [2, 0, 2, 2, 2]
    first = records[3]["annotations"][0]
    assert first["bbox"] == [10, 5, 20, 15] and first["bbox_mode"].name == "XYWH_ABS"
    assert first["segmentation"] == [[10, 5, 30, 5, 30, 20, 10, 20]]
    # Category ids 2 (cat) and 8 (dog), given in the order 8, 2, become 0 and 1.
    assert [a["category_id"] for r in records for a in r["annotations"]] == [0, 0, 1, 0, 0, 1, 0, 1]
    assert [a["iscrowd"] for a in records[4]["annotations"]] == [1, 0]


def test_uncompressed_masks_are_compressed_when_loaded(mine):
    register_coco_files(config(mine))
    corner = DatasetCatalog.get("mine")[0]["annotations"][1]["segmentation"]
    expected = np.zeros((40, 60))
    expected[:7, :6] = 1
    np.testing.assert_array_equal(mask_util.decode(corner), expected)


def test_metadata_is_there_before_loading(mine, coco):
    register_coco_files(config(mine))
    metadata = MetadataCatalog.get("mine")
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {2: 0, 8: 1}
    assert (metadata.json_file, metadata.image_root) == (coco.json_file, coco.image_root)
    assert metadata.evaluator_type == "coco"


def test_registration_reads_neither_images_nor_annotations(mine, coco):
    for name in os.listdir(coco.image_root):
        os.remove(coco.image_path(name))
    coco.content["annotations"][0]["bbox"] = "broken"
    coco.write()
    register_coco_files(config(mine))
    with pytest.raises(FileNotFoundError):
        DatasetCatalog.get("mine")


def test_registration_may_be_repeated(mine):
    register_coco_files(config(mine))
    metadata = MetadataCatalog.get("mine")
    metadata.thing_colors = [(1, 2, 3), (4, 5, 6)]
    register_coco_files(config(mine))
    assert MetadataCatalog.get("mine") is metadata


def test_repeated_registration_sees_a_changed_file_and_mode(mine, coco):
    register_coco_files(config(mine))
    coco.content["categories"].append({"id": 30, "name": "cow"})
    coco.annotation(11)["bbox"] = [0, 0, 0, 0]
    coco.write()
    os.utime(coco.json_file, (1, 1))
    register_coco_files(config(mine, invalid="skip"))
    assert MetadataCatalog.get("mine").thing_classes == ["cat", "dog", "cow"]
    assert sum(len(r["annotations"]) for r in DatasetCatalog.get("mine")) == 7


def test_another_file_under_the_same_name_is_refused(mine, other):
    register_coco_files(config(mine))
    _, json_file, image_root = other("b", {1: "x"})
    with pytest.raises(ValueError, match="'mine' already stands for") as error:
        register_coco_files(config(["mine", json_file, image_root]))
    assert mine[1] in str(error.value) and json_file in str(error.value)


def test_two_files_with_one_name_are_refused(mine, other):
    with pytest.raises(ValueError, match="'mine' for two files"):
        coco_files(config(mine, ["mine", *other("b", {1: "x"})[1:]]))


def test_name_of_a_built_in_dataset_is_refused(mine):
    with pytest.raises(ValueError, match="'coco_2017_train' already belongs to a dataset"):
        register_coco_files(config(["coco_2017_train", *mine[1:]]))


def test_missing_json_is_named_at_registration(mine):
    with pytest.raises(FileNotFoundError, match="nowhere.json does not exist"):
        register_coco_files(config(["mine", "nowhere.json", mine[2]]))


def test_environment_variable_that_is_not_set_is_named(mine, monkeypatch):
    monkeypatch.delenv("MY_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="the environment variable MY_DATA is not set"):
        register_coco_files(config(["mine", "$MY_DATA/data.json", "$MY_DATA/images"]))


@pytest.mark.parametrize(
    "entries", ["mine", ["mine"], [["mine", "a.json"]], [["mine", "a.json", 3]], [["", "a", "b"]]]
)
def test_entries_that_are_no_triples_show_the_expected_form(entries):
    cfg = config()
    cfg.DATASETS.COCO_FILES = entries
    with pytest.raises(ValueError) as error:
        register_coco_files(cfg)
    assert "[['name', 'annotations.json', 'image folder'], ...]" in str(error.value)


def test_unknown_mode_for_invalid_annotations(mine):
    with pytest.raises(ValueError, match="DATASETS.INVALID_ANNOTATIONS .*'drop'"):
        register_coco_files(config(mine, invalid="drop"))


def test_home_folder_and_environment_variables_are_expanded(mine, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MY_DATA", str(tmp_path))
    register_coco_files(config(["mine", "~/data.json", "$MY_DATA/images"]))
    assert len(DatasetCatalog.get("mine")) == 5


def test_files_can_be_given_on_the_command_line(mine):
    cfg = rdsnet.get_cfg()
    cfg.merge_from_list(["DATASETS.COCO_FILES", repr([mine])])
    register_coco_files(cfg)
    assert len(DatasetCatalog.get("mine")) == 5


def test_files_can_be_given_in_yaml(mine, tmp_path):
    name, json_file, image_root = mine
    path = tmp_path / "config.yaml"
    path.write_text(f"DATASETS:\n  COCO_FILES:\n    - [{name}, {json_file}, {image_root}]\n")
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file(str(path))
    register_coco_files(cfg)
    assert len(DatasetCatalog.get("mine")) == 5


# Evaluation reads the json itself --------------------------------------------------------------


def test_evaluation_gets_the_file_itself_when_nothing_was_changed(mine, coco):
    register_coco_files(config(mine))
    DatasetCatalog.get("mine")
    assert MetadataCatalog.get("mine").json_file == coco.json_file


def test_perfect_detections_score_100_on_a_file_with_skipped_and_incomplete_annotations(mine, coco):
    for annotation in coco.content["annotations"]:
        annotation.pop("area")
    coco.annotation(13)["id"] = 0  # COCOeval takes a match with id 0 for no match
    coco.annotation(14).pop("segmentation")  # COCOeval would stop here
    coco.write()
    register_coco_files(config(mine, invalid="skip"))
    records = DatasetCatalog.get("mine")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(MetadataCatalog.get("mine").json_file)
        results = truth.loadRes(
            [
                {
                    "image_id": r["image_id"],
                    "category_id": [2, 8][a["category_id"]],
                    "score": 0.9,
                    "segmentation": truth.annToRLE({**a, "image_id": r["image_id"]}),
                }
                for r in records
                for a in r["annotations"]
                if not a["iscrowd"]
            ]
        )
        evaluation = COCOeval(truth, results, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


# Number of classes ----------------------------------------------------------------------------


def test_known_number_of_classes_reads_no_file():
    cfg = config(["mine", "nowhere.json", "nowhere"], train=["mine"], num_classes=80)
    assert with_num_classes(cfg) is cfg


@pytest.mark.parametrize("where", [{"train": ["mine"]}, {"test": ["mine"]}])
def test_number_of_classes_comes_from_the_json(mine, where):
    cfg = config(mine, **where)
    cfg.freeze()
    known = with_num_classes(cfg)
    assert known.MODEL.RETINANET.NUM_CLASSES == 2 and known.is_frozen()
    assert cfg.MODEL.RETINANET.NUM_CLASSES == -1


def test_number_of_classes_comes_from_a_registered_dataset():
    cfg = config(train=["coco_2017_train"])
    assert with_num_classes(cfg).MODEL.RETINANET.NUM_CLASSES == 80


def test_no_dataset_to_take_the_number_of_classes_from():
    with pytest.raises(ValueError, match="DATASETS.TEST are empty.*Set MODEL.RETINANET.NUM_CLASS"):
        with_num_classes(config())


def test_unknown_dataset_to_take_the_number_of_classes_from(mine):
    with pytest.raises(ValueError, match="'theirs' is neither in DATASETS.COCO_FILES nor"):
        with_num_classes(config(mine, train=["theirs"]))


def test_missing_json_to_take_the_number_of_classes_from(mine):
    with pytest.raises(ValueError, match="nowhere.json does not exist.*Set MODEL.RETINANET.NUM"):
        with_num_classes(config(["mine", "nowhere.json", "x"], train=["mine"]))


def test_zero_classes_are_refused():
    with pytest.raises(ValueError, match="NUM_CLASSES must be positive, or -1"):
        with_num_classes(config(num_classes=0))


def test_fitting_categories_pass(mine, other):
    same = other("val", {8: "dog", 2: "cat"})
    check_num_classes(config(mine, same, train=["mine"], test=["val"]))
    check_num_classes(config(mine, same, train=["mine"], test=["val"], num_classes=2))


@pytest.mark.parametrize("where", [{"train": ["mine"]}, {"test": ["mine"]}])
def test_number_of_classes_that_is_not_the_files(mine, where):
    with pytest.raises(ValueError) as error:
        check_num_classes(config(mine, **where, num_classes=80))
    for word in ("'mine' declares 2", "2 'cat', 8 'dog'", "NUM_CLASSES is 80", "Set it to 2"):
        assert word in str(error.value)


def test_built_in_dataset_that_does_not_fit_the_number_of_classes():
    with pytest.raises(ValueError, match="'coco_2017_val' declares 80 categories"):
        check_num_classes(config(test=["coco_2017_val"], num_classes=5))


def test_train_and_test_with_different_categories_list_the_differences(mine, other):
    val = other("val", {2: "kitten", 9: "dog"})
    with pytest.raises(ValueError) as error:
        check_num_classes(config(mine, val, train=["mine"], test=["val"]))
    for word in ("'mine' and 'val'", "only in 'mine': 8 'dog'", "only in 'val': 9 'dog'"):
        assert word in str(error.value)
    assert "2 is 'cat' and 'kitten'" in str(error.value)


# Real data ------------------------------------------------------------------------------------


def test_tiny_coco_is_loaded_as_pycocotools_reads_it(real_data):
    folder = real_data / "tiny_coco"
    json_file = str(folder / "annotations" / "instances_val2017.json")
    cfg = config(["tiny", json_file, str(folder / "val2017")], train=["tiny"])
    register_coco_files(cfg)
    assert with_num_classes(cfg).MODEL.RETINANET.NUM_CLASSES == 80
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(json_file)
    ids = MetadataCatalog.get("tiny").thing_dataset_id_to_contiguous_id
    records = DatasetCatalog.get("tiny")
    assert [r["image_id"] for r in records] == sorted(api.imgs)
    crowds = 0
    for record in records:
        expected = api.imgToAnns[record["image_id"]]
        assert len(record["annotations"]) == len(expected)
        for got, want in zip(record["annotations"], expected, strict=True):
            assert got["bbox"] == want["bbox"]
            assert got["category_id"] == ids[want["category_id"]]
            crowds += got["iscrowd"]
            if isinstance(got["segmentation"], dict):
                mask = mask_util.decode(got["segmentation"])
                np.testing.assert_array_equal(mask, api.annToMask(want))
            else:
                assert got["segmentation"] == want["segmentation"]
    assert crowds == sum(a["iscrowd"] for a in api.anns.values()) > 0


def test_nuclei_load(real_data):
    folder = real_data / "nuclei"
    files = [[f"nuclei_{s}", f"{folder}/{s}.json", f"{folder}/images"] for s in ("train", "val")]
    cfg = config(*files, train=["nuclei_train"], test=["nuclei_val"])
    register_coco_files(cfg)
    check_num_classes(cfg)
    assert with_num_classes(cfg).MODEL.RETINANET.NUM_CLASSES == 1
    for name, images, annotations in (("nuclei_train", 500, 21954), ("nuclei_val", 80, 3581)):
        records = DatasetCatalog.get(name)
        assert len(records) == images
        assert sum(len(r["annotations"]) for r in records) == annotations
