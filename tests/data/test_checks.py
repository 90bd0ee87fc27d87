"""Whatever is wrong with the entries of a COCO file is named, with what to do about it."""

import json
import logging
import os

import numpy as np
import pycocotools.mask as mask_util
import pytest
from helpers.counting import assert_work_is_linear

from rdsnet.data.checks import check_coco, clean_coco, usable_annotations
from rdsnet.data.coco_json import read_coco_json
from rdsnet.data.findings import Finding, report


def check(coco, on_invalid="error"):
    return check_coco(coco.write(), coco.image_root, on_invalid)


def assert_mentions(error: pytest.ExceptionInfo, *words: str) -> None:
    for word in words:
        assert word in str(error.value), f"'{word}' is not in: {error.value}"


def test_a_sound_file_passes_unchanged(coco):
    assert check(coco) == coco.content


# Structure ------------------------------------------------------------------------------------


def break_category_id(content):
    content["categories"][0].pop("id")


def double_category_id(content):
    content["categories"][0]["id"] = 2


def break_category_name(content):
    content["categories"][0].pop("name")


def no_categories(content):
    content["categories"] = []


def break_image_id(content):
    content["images"][1]["id"] = 3.5


def double_image_id(content):
    content["images"][1]["id"] = 7


def image_that_is_no_object(content):
    content["images"].append("cat.png")


def break_file_name(content):
    content["images"][1]["file_name"] = ""


def break_height(content):
    content["images"][1]["height"] = 0


def no_width(content):
    content["images"][1].pop("width")


def half_a_pixel(content):
    content["images"][1]["width"] = 60.5


def size_in_words(content):
    content["images"][1]["height"] = "forty"


def no_annotation_id(content):
    content["annotations"][2].pop("id")


def double_annotation_id(content):
    content["annotations"][2]["id"] = 11


def unknown_image(content):
    content["annotations"][2]["image_id"] = 1234


def no_image_id(content):
    content["annotations"][2].pop("image_id")


@pytest.mark.parametrize(
    "break_it, words",
    [
        (break_category_id, ["category number 0", "'id' is missing"]),
        (double_category_id, ["category 2", "occurs 2 times"]),
        (break_category_name, ["category 8", "'name' is missing"]),
        (no_categories, ["categories", "empty"]),
        (break_image_id, ["image number 1", "'id' is 3.5", "integer"]),
        (double_image_id, ["image 7", "occurs 2 times"]),
        (image_that_is_no_object, ["image number 5", "'cat.png'"]),
        (break_file_name, ["image 3", "'file_name' is ''"]),
        (break_height, ["image 3", "'height' is 0"]),
        (no_width, ["image 3", "'width' is missing"]),
        (half_a_pixel, ["image 3", "'width' is 60.5", "whole number of pixels"]),
        (size_in_words, ["image 3", "'height' is 'forty'", "whole number of pixels"]),
        (no_annotation_id, ["annotation number 2", "'id' is missing"]),
        (double_annotation_id, ["annotation 11", "occurs 2 times"]),
        (unknown_image, ["annotation 13", "'image_id' is 1234", "3, 4, 5, 7, 9"]),
        (no_image_id, ["annotation 13", "'image_id' is missing"]),
    ],
)
@pytest.mark.parametrize("on_invalid", ["error", "skip"])
def test_structural_problems_are_errors_that_cannot_be_skipped(coco, break_it, words, on_invalid):
    break_it(coco.content)
    with pytest.raises(ValueError) as error:
        check(coco, on_invalid)
    assert_mentions(error, coco.json_file, *words)


def test_missing_images_are_counted_and_the_first_listed(coco):
    for name in ("rle.png", "mixed.png"):
        os.remove(coco.image_path(name))
    with pytest.raises(FileNotFoundError) as error:
        check(coco)
    assert_mentions(
        error, "image file: 2", coco.image_path("rle.png"), coco.image_path("mixed.png"), "image 3"
    )
    assert_mentions(error, "DATASETS.COCO_FILES")


def test_missing_image_folder_is_one_finding(coco):
    with pytest.raises(FileNotFoundError) as error:
        check_coco(coco.write(), coco.image_root + "_typo")
    assert_mentions(error, coco.image_root + "_typo", "all 5 images")


def test_images_in_subfolders_are_found(coco):
    os.makedirs(coco.image_path("sub"))
    os.rename(coco.image_path("rle.png"), coco.image_path("sub/rle.png"))
    coco.content["images"][1]["file_name"] = "sub/rle.png"
    assert len(check(coco)["images"]) == 5


# Single annotations ---------------------------------------------------------------------------

BROKEN = {
    "no box": ("bbox", None, "box", ["not four finite numbers", "None"]),
    "box of three numbers": ("bbox", [1, 2, 3], "box", ["[1, 2, 3]"]),
    "box with nan": ("bbox", [1, 2, float("nan"), 3], "box", ["nan"]),
    "box with text": ("bbox", [1, 2, "three", 4], "box", ["'three'"]),
    "box without width": ("bbox", [1, 2, 0, 4], "box", ["[1, 2, 0, 4]", "no area"]),
    "box of negative height": ("bbox", [1, 2, 3, -4], "box", ["[1, 2, 3, -4]", "no area"]),
    "box outside": ("bbox", [60, 2, 3, 4], "box", ["outside", "60 x 40"]),
    "unknown category": ("category_id", 1, "unknown category", ["'category_id' is 1", "2, 8"]),
    "no category": ("category_id", None, "unknown category", ["'category_id' is None"]),
    "odd iscrowd": ("iscrowd", "no", "iscrowd", ["'iscrowd' is 'no'"]),
    "no segmentation": ("segmentation", None, "no segmentation", ["None"]),
    "empty segmentation": ("segmentation", [], "no segmentation", ["[]"]),
    "flat line": ("segmentation", [1, 2, 3, 4], "polygon", ["a list of numbers, and no polygon"]),
    "points in space": (
        "segmentation",
        [[[1, 2, 0], [3, 4, 0], [5, 6, 0]]],
        "polygon",
        ["neither numbers nor points"],
    ),
    "two points": ("segmentation", [[1, 2, 3, 4]], "polygon", ["fewer than three points"]),
    "odd count": ("segmentation", [[1, 2, 3, 4, 5, 6, 7]], "polygon", ["odd count", "7"]),
    "infinite": ("segmentation", [[1, 2, 3, 4, 5, float("inf")]], "polygon", ["finite"]),
    "segmentation is text": ("segmentation", "mask.png", "polygon", ["'mask.png'"]),
    "size of RLE": (
        "segmentation",
        {"size": [60, 40], "counts": [2400]},
        "RLE",
        ["[60, 40]", "[40, 60]"],
    ),
    "RLE too short": (
        "segmentation",
        {"size": [40, 60], "counts": [1000, 10]},
        "RLE",
        ["1010 pixels", "2400"],
    ),
    "negative run": (
        "segmentation",
        {"size": [40, 60], "counts": [2401, -1]},
        "RLE",
        ["run of -1 pixels"],
    ),
    "counts are no code": (
        "segmentation",
        {"size": [40, 60], "counts": "~~"},
        "RLE",
        ["not a run-length code", "~~"],
    ),
    "no counts": ("segmentation", {"size": [40, 60]}, "RLE", ["None"]),
    "empty mask": ("segmentation", {"size": [40, 60], "counts": [2400]}, "RLE", ["empty"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_unusable_annotation_is_an_error_with_remedy(coco, case):
    key, value, kind, words = BROKEN[case]
    coco.annotation(13)[key] = value
    with pytest.raises(ValueError) as error:
        check(coco)
    assert_mentions(error, coco.json_file, f"{kind}: 1", "annotation 13", "image 3", "rle.png")
    assert_mentions(error, "DATASETS.INVALID_ANNOTATIONS skip", *words)


@pytest.mark.parametrize("case", BROKEN)
def test_unusable_annotation_is_left_out_with_a_warning(coco, case, caplog):
    key, value, kind, words = BROKEN[case]
    coco.annotation(13)[key] = value
    with caplog.at_level(logging.WARNING, logger="rdsnet"):
        content = check(coco, "skip")
    assert [a["id"] for a in content["annotations"]] == [11, 12, 14, 15, 16, 17, 18]
    (record,) = caplog.records
    for word in ["1 of 8 annotations", coco.json_file, f"{kind}: 1", "annotation 13", *words]:
        assert word in record.getMessage()


def test_good_polygons_beside_a_broken_one_are_kept(coco):
    good = coco.annotation(11)["segmentation"][0]
    coco.annotation(11)["segmentation"] = [[1, 2, 3, 4], good]
    content = check(coco, "skip")
    assert content["annotations"][0]["segmentation"] == [good]
    assert len(content["annotations"]) == 8


def test_all_kinds_are_collected_and_five_of_each_shown(coco):
    for i in range(30, 38):
        broken = {**coco.annotation(11), "id": i, "bbox": [0, 0, 0, 0]}
        coco.content["annotations"].append(broken)
    coco.annotation(12)["category_id"] = 99
    with pytest.raises(ValueError) as error:
        check(coco)
    assert_mentions(error, "9 problems", "box: 8", "unknown category: 1", "... and 3 more")
    assert_mentions(error, "annotation 34", "annotation 12")
    assert "annotation 35" not in str(error.value)


def test_unknown_value_of_on_invalid(coco):
    with pytest.raises(ValueError, match="'ignore'"):
        check(coco, "ignore")


def test_crowd_with_uncompressed_counts_is_normal(coco):
    assert coco.annotation(17)["iscrowd"] == 1
    assert isinstance(coco.annotation(17)["segmentation"]["counts"], list)
    assert 17 in [a["id"] for a in check(coco)["annotations"]]


def test_findings_are_data(coco):
    coco.annotation(11)["bbox"] = [0, 0, 0, 1]
    _, findings = usable_annotations(coco.content)
    where = "annotation 11 of image 7 ('polygons.png')"
    assert findings == [Finding("box", where, "'bbox' [0, 0, 0, 1] has no area")]
    assert where in report(findings, "my.json") and "my.json" in report(findings, "my.json")


# What evaluation needs ------------------------------------------------------------------------


def test_missing_area_and_iscrowd_are_completed_from_the_mask(coco):
    for annotation in coco.content["annotations"]:
        annotation.pop("area")
        if not annotation["iscrowd"]:
            annotation.pop("iscrowd")
    areas = {a["id"]: a["area"] for a in check(coco)["annotations"]}
    assert areas == {11: 300, 12: 100, 13: 300, 14: 42, 15: 300, 16: 225, 17: 480, 18: 300}
    assert {a["id"] for a in check(coco)["annotations"] if a["iscrowd"]} == {17}


def test_id_0_is_renumbered_because_cocoeval_takes_it_for_no_match(coco):
    coco.annotation(14)["id"] = 0
    assert [a["id"] for a in check(coco)["annotations"]] == [11, 12, 13, 19, 15, 16, 17, 18]


def test_cleaning_leaves_its_input_unchanged(coco):
    coco.annotation(14)["id"] = 0
    coco.annotation(11)["bbox"] = [0, 0, 0, 1]
    before = json.dumps(coco.content)
    clean_coco(coco.content, "data.json", coco.image_root, "skip")
    assert json.dumps(coco.content) == before


# Real data and work ---------------------------------------------------------------------------


@pytest.mark.parametrize("split, count", [("train", 470), ("val", 382)])
def test_coco_photographs_pass(real_data, split, count):
    folder = real_data / "tiny_coco"
    json_file = folder / "annotations" / f"instances_{split}2017.json"
    content = check_coco(json_file, folder / f"{split}2017")
    assert len(content["annotations"]) == count
    assert content == read_coco_json(json_file)


def test_nuclei_pass(real_data):
    content = check_coco(real_data / "nuclei" / "train.json", real_data / "nuclei" / "images")
    assert len(content["annotations"]) == 21954


def test_the_work_grows_with_the_number_of_annotations_alone():
    y, x = np.mgrid[:240, :160]
    mask = ((y - 120) ** 2 + 2 * (x - 80) ** 2 < 100**2).astype(np.uint8)
    rle = mask_util.encode(np.asfortranarray(mask))["counts"].decode()
    polygon = np.random.default_rng(0).uniform(0, 100, 60).tolist()

    def check_so_many(count):
        content = {
            "images": [
                {"id": i, "file_name": f"{i}.jpg", "height": 240, "width": 160}
                for i in range(count // 5)
            ],
            "categories": [{"id": 1, "name": "a"}],
            "annotations": [
                {
                    "id": i,
                    "image_id": i % (count // 5),
                    "category_id": 1,
                    "bbox": [1, 2, 3, 4],
                    "segmentation": [polygon] if i % 4 else {"size": [240, 160], "counts": rle},
                }
                for i in range(count)
            ],
        }
        usable, findings = usable_annotations(content)
        assert (len(usable), findings) == (count, [])

    assert_work_is_linear(check_so_many, 500)
