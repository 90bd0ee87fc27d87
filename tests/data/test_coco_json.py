"""Files that are not json in COCO's instances format are refused, saying where they are broken."""

import json

import pytest

from rdsnet.data.coco_json import read_categories, read_coco_json


def assert_mentions(error: pytest.ExceptionInfo, *words: str) -> None:
    for word in words:
        assert word in str(error.value), f"'{word}' is not in: {error.value}"


def test_missing_json_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read_coco_json(tmp_path / "nowhere.json")
    assert_mentions(error, str(tmp_path / "nowhere.json"), "does not exist")


def test_folder_instead_of_json(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        read_coco_json(tmp_path)


def test_malformed_json_is_named_with_line_and_column(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text('{"images": [],\n "annotations": [1 2]}')
    with pytest.raises(ValueError) as error:
        read_coco_json(path)
    assert_mentions(error, str(path), "line 2, column 20")
    assert "cut off" not in str(error.value)


def test_json_that_ends_too_early_is_said_to_be_cut_off(coco):
    text = open(coco.write()).read()
    with open(coco.json_file, "w") as stream:
        stream.write(text[:-1])
    with pytest.raises(ValueError, match="cut off"):
        read_coco_json(coco.json_file)


def test_image_given_as_json(coco):
    with pytest.raises(ValueError, match="not valid json"):
        read_coco_json(coco.image_path("rle.png"))


def test_results_file_given_as_json(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("[]")
    with pytest.raises(ValueError) as error:
        read_coco_json(path)
    assert_mentions(error, str(path), "got a list", "results", "'annotations'")


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_missing_top_level_list(coco, key):
    coco.content.pop(key)
    with pytest.raises(ValueError) as error:
        read_coco_json(coco.write())
    assert_mentions(error, coco.json_file, f"'{key}' is missing")


def test_top_level_entry_that_is_no_list(coco):
    coco.content["images"] = {"a": 1}
    with pytest.raises(ValueError, match="'images' is a dict"):
        read_coco_json(coco.write())


@pytest.mark.parametrize(
    ("images", "reason"),
    [('{"id": ' + "7" * 4301 + "}", "4300 digits"), ("[" * 10**5 + "]" * 10**5, "lists inside")],
)
def test_json_beyond_pythons_limits_is_named(tmp_path, images, reason):
    path = tmp_path / "long.json"
    path.write_text(f'{{"images": [{images}], "annotations": [], "categories": []}}')
    with pytest.raises(ValueError) as error:
        read_coco_json(path)
    assert_mentions(error, str(path), reason)


def test_categories_are_read_without_the_rest_of_the_file(tmp_path):
    path = tmp_path / "cut_off.json"
    path.write_text('{"categories": [{"id": 1, "name": "a \\"categories\\": [b"}], "images": [{')
    assert read_categories(path) == [{"id": 1, "name": 'a "categories": [b'}]


def test_a_nested_key_called_categories_does_not_mislead(tmp_path):
    path = tmp_path / "nested.json"
    content = {"info": {"categories": [1]}, "images": [], "annotations": [], "categories": [2]}
    path.write_text(json.dumps(content))
    assert read_categories(path) == [2]


def test_categories_follow_the_file_when_it_changes(coco):
    coco.write()
    assert len(read_categories(coco.json_file)) == 2
    coco.content["categories"].append({"id": 20, "name": "cow"})
    coco.write()
    assert len(read_categories(coco.json_file)) == 3
