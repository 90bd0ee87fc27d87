"""Values in another form than COCO's that mean one thing only are read as that, and said."""

import copy
import json
import logging

import pytest

from rdsnet.cli import main
from rdsnet.data.checks import check_coco, coco_categories
from rdsnet.data.normal_form import normal_form
from rdsnet.data.segmentation import normal_segmentation

TRIANGLE = [3.5, 4, 20, 6, 9, 31]
SQUARE = [40, 8, 52, 8, 52, 20, 40, 20]


def points(flat):
    return [flat[i : i + 2] for i in range(0, len(flat), 2)]


def objects(flat):
    return [{"x": x, "y": y} for x, y in points(flat)]


def rewritten(content, change):
    """A copy of a COCO content whose images, annotations and categories were changed in place."""
    content = copy.deepcopy(content)
    change(content)
    return content


def floats_and_text(content):
    for image in content["images"]:
        image["width"], image["height"] = float(image["width"]), f"{image['height']}.0"
        image["id"] = float(image["id"])
    for annotation in content["annotations"]:
        annotation["id"] = float(annotation["id"])
        annotation["image_id"] = str(annotation["image_id"])
        annotation["category_id"] = float(annotation["category_id"])
        annotation["bbox"] = [str(number) for number in annotation["bbox"]]
        annotation["iscrowd"] = bool(annotation["iscrowd"])


def deep(content):
    wrap = [
        lambda p: p,
        lambda p: [points(p)],
        lambda p: points(p),
        lambda p: [[p]],
        lambda p: objects(p),
        lambda p: [[str(v) for v in p]],
    ]
    for n, annotation in enumerate(content["annotations"]):
        if isinstance(annotation["segmentation"], list):
            (polygon,) = annotation["segmentation"]
            annotation["segmentation"] = wrap[n % len(wrap)](polygon)
        else:
            annotation["segmentation"] = [annotation["segmentation"]]


def rle_of_floats(content):
    for annotation in content["annotations"]:
        if isinstance(annotation["segmentation"], dict):
            rle = annotation["segmentation"]
            rle["size"] = [float(side) for side in rle["size"]]
            if isinstance(rle["counts"], list):
                rle["counts"] = [float(run) for run in rle["counts"]]


CHANGES = [floats_and_text, deep, rle_of_floats]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_beyond_doubt_is_read_as_the_file_that_it_means(coco, change):
    changed = rewritten(coco.content, change)
    before = copy.deepcopy(changed)
    normal, findings = normal_form(changed)
    assert findings and changed == before
    assert normal == coco.content
    # 1 == 1.0 == True in Python: the json says of what type they are.
    assert json.dumps(normal) == json.dumps(coco.content)


def test_a_file_in_normal_form_is_shared_not_copied(coco):
    normal, findings = normal_form(coco.content)
    assert normal is coco.content and findings == []


@pytest.mark.parametrize("change", CHANGES)
def test_training_check_and_fix_read_the_same(coco, change, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    expected = check_coco(coco.write(), coco.image_root)
    coco.content = rewritten(coco.content, change)
    coco.write()
    assert check_coco(coco.json_file, coco.image_root) == expected
    status = main(["check-data", coco.json_file, coco.image_root, "--fix", "fixed.json"])
    printed = capsys.readouterr().out
    assert status == 0 and "Training would work." in printed.partition("Repaired copy")[0]
    assert "in another form than COCO's" in printed.partition("Repaired copy")[0]
    assert "in another form" not in printed.partition("Repaired copy")[2]
    assert json.loads((tmp_path / "fixed.json").read_text()) == expected


def test_training_says_once_what_it_reads_in_another_way(coco, caplog):
    floats_and_text(coco.content)
    coco.write()
    with caplog.at_level(logging.WARNING, logger="rdsnet"):
        check_coco(coco.json_file, coco.image_root)
        check_coco(coco.json_file, coco.image_root)
    (record,) = caplog.records
    for words in (coco.json_file, "size: 10", "'width' 60.0 is read as 60", "'image_id' '7'"):
        assert words in record.getMessage()


def test_ids_as_text_stay_text(coco):
    for image in coco.content["images"]:
        image["id"] = f"image {image['id']}"
    for annotation in coco.content["annotations"]:
        annotation["image_id"] = f"image {annotation['image_id']}"
    content = check_coco(coco.write(), coco.image_root)
    assert content == coco.content


def test_a_number_as_name_is_text(coco):
    coco.content["categories"][0]["name"] = 12
    assert coco_categories(coco.write()) == {2: "cat", 8: "12"}


def test_categories_given_as_text_are_ordered_by_their_numbers(coco):
    coco.content["categories"] = [{"id": str(n), "name": f"n{n}"} for n in (10, 9, 100)]
    assert list(coco_categories(coco.write()).values()) == ["n9", "n10", "n100"]


@pytest.mark.parametrize(
    ("given", "polygons", "form"),
    [
        (TRIANGLE, [TRIANGLE], "[x1, y1, ...]"),
        (points(TRIANGLE), [TRIANGLE], "[[x, y], ...]"),
        ([points(TRIANGLE)], [TRIANGLE], "[[[x, y], ...]]"),
        ([[TRIANGLE]], [TRIANGLE], "[[[x1, y1, ...]]]"),
        (objects(SQUARE), [SQUARE], '[{"x": x, "y": y}, ...]'),
        ([points(TRIANGLE), points(SQUARE)], [TRIANGLE, SQUARE], "[[[x, y], ...], ...]"),
        ([[points(TRIANGLE)], [points(SQUARE)]], [TRIANGLE, SQUARE], "[[[[x, y], ...]], ...]"),
        ([[TRIANGLE, SQUARE]], [TRIANGLE, SQUARE], "[[[x1, y1, ...], ...]]"),
        ([TRIANGLE, points(SQUARE)], [TRIANGLE, SQUARE], "[[x1, y1, ...], ...]"),
        # GeoJSON repeats the first point: the same polygon.
        (
            [points(TRIANGLE + TRIANGLE[:2])],
            [TRIANGLE + TRIANGLE[:2]],
            "[[[x, y], ...]]",
        ),
        ([[f"{v}" for v in TRIANGLE]], [TRIANGLE], '[["x1", "y1", ...]]'),
    ],
)
def test_nested_forms_have_one_meaning(given, polygons, form):
    assert normal_segmentation(given) == (polygons, form)


@pytest.mark.parametrize(
    "given",
    [
        [TRIANGLE],  # is COCO's form
        [TRIANGLE, SQUARE],
        [TRIANGLE, [1, 2]],  # with a broken polygon, which the checks report
        [],
        None,
        "[[1, 2, 3, 4, 5, 6]]",
        [1, 2, 3, 4],  # a line, or a box
        points([1, 2, 3, 4]),
        [[[1, 2, 0], [3, 4, 0], [5, 6, 0]]],  # points in space
        [[[1, 2], [3, 4], [5, None]]],
        [[1, 2], [3, 4], [5, "six"]],
        [TRIANGLE, {"x": 1, "y": 2}],
        [{"x": 1, "y": 2, "z": 3}] * 3,
        {"size": [4, 5], "counts": [20]},
        {"size": [4, 5.5], "counts": "x"},
    ],
)
def test_everything_else_stays_as_it_is(given):
    assert normal_segmentation(given) is None


def test_lists_in_lists_without_end_are_refused():
    nested = TRIANGLE
    for _ in range(200):
        nested = [nested]
    assert normal_segmentation(nested) is None
