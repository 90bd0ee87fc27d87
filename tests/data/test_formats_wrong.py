"""Exports that are unknown, incomplete, broken or hostile."""

import json
import re

import numpy as np
import pytest
import yaml
from helpers import exports
from helpers.exports import scene
from helpers.read_exports import assert_same, check_data_of
from PIL import Image

from rdsnet.data.checks import clean_coco, usable_annotations
from rdsnet.data.formats import FORMATS, read_export


def test_what_is_unknown_is_described_with_all_that_is_read(tmp_path):
    path = exports.write_json(tmp_path / "x.json", {"frames": [], "camera": 3})
    with pytest.raises(ValueError, match="a json object with frames, camera") as error:
        read_export(path)
    for format in FORMATS:
        assert format.WHAT in str(error.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: (f / "a.zip").write_bytes(b"PK\3\4"), "unpack it"),
        (lambda f: (f / "a.json").write_text('{"shapes": ['), "is not valid json"),
        (lambda f: (f / "a.json").write_text("[]"), "a json list of 0 entries"),
        (lambda f: (f / "a.xml").write_text("<annotations><image>"), "is not valid xml"),
        (
            lambda f: (f / "a.xml").write_text(
                '<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>'
            ),
            "declares a document type",
        ),
        (lambda f: (f / "a.xml").write_text("<annotation/>"), "xml of <annotation>"),
        (lambda f: (f / "a.yaml").write_text("names: [a\nb: }"), "is not valid yaml"),
        (lambda f: (f / "a.yaml").write_text("train: nowhere\nnames: [a]"), "is not there"),
        (lambda f: (f / "a.xml").write_text(VIDEO), "CVAT for images"),
        (lambda f: (f / "a.json").write_text('{"images": [], "annotations": []}'), "'categories'"),
        (lambda f: (f / "a.json").write_text(VIA_3), "VIA 3"),
    ],
)
def test_files_that_cannot_be_read_say_why(make, words, tmp_path):
    make(tmp_path)
    (path,) = tmp_path.iterdir()
    with pytest.raises(ValueError, match=words):
        read_export(path)


VIDEO = '<annotations><track id="0" label="a"><polygon points="1,1;2,2;3,1"/></track></annotations>'
VIA_3 = json.dumps({"project": {}, "metadata": {}, "view": {}, "config": {}})


def test_a_folder_of_two_formats_is_not_guessed_at(tmp_path):
    exports.write_labelme(tmp_path, scene())
    exports.write_via(tmp_path, scene())
    with pytest.raises(ValueError, match="may be several things: .*labelme json.*VIA json"):
        read_export(tmp_path)
    assert_same(read_export(tmp_path / "via_region_data.json"), scene())


def test_an_empty_folder_and_one_of_photographs_are_described(tmp_path):
    with pytest.raises(ValueError, match="an empty folder"):
        read_export(tmp_path)
    exports.save_photos(tmp_path, scene())
    with pytest.raises(ValueError, match="a folder with 3 files .2 .png, 1 .jpg."):
        read_export(tmp_path)


def test_yolo_for_detection_is_refused_and_single_boxes_are_left_out(tmp_path):
    path = exports.write_yolo(tmp_path, scene()[:2])
    labels = tmp_path / "train" / "labels"
    labels.joinpath("Käfer 1.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.1 0.1\n")
    export = read_export(path)
    assert len(export.left_out["boxes without masks"]) == 2
    labels.joinpath("blatt grün.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(ValueError, match="YOLO for detection: its 3 objects are boxes"):
        read_export(path)


def test_broken_lines_of_yolo_are_left_out_by_name(tmp_path):
    path = exports.write_yolo(tmp_path, scene()[:1])
    file = tmp_path / "train" / "labels" / "Käfer 1.txt"
    file.write_text(file.read_text() + "0 0.1 0.2 0.3\nfoo\n9 .1 .1 .2 .1 .2 .2\n")
    export = read_export(path)
    assert len(export.left_out["lines that are no polygons"]) == 2
    assert "line 4" in export.left_out["lines that are no polygons"][0]
    assert "objects of class 9, which has no name" in export.left_out
    assert_same(export, scene()[:1])


def test_files_of_a_folder_that_are_broken_are_named(tmp_path):
    exports.write_labelme(tmp_path, scene())
    (tmp_path / "leer.json").write_text('{"version": "5')
    export = read_export(tmp_path)
    (message,) = export.left_out["files that cannot be read"]
    assert "leer.json is not valid json" in message
    assert_same(export, scene()[:2])


def test_images_that_are_missing_are_found_by_the_checks(tmp_path):
    path = exports.write_labelme(tmp_path, scene())
    (tmp_path / "Käfer 1.png").unlink()
    export = read_export(path)
    with pytest.raises(FileNotFoundError, match="Käfer 1.png does not exist"):
        clean_coco(export.part("train"), "export", export.image_root)


def test_images_of_unknown_size_are_left_out_by_name(tmp_path):
    path = exports.write_via(tmp_path, scene())
    (tmp_path / "Käfer 1.png").unlink()
    export = read_export(path)
    assert "Käfer 1.png does not exist" in export.left_out["images whose size is not known"][0]
    assert_same(export, scene()[1:])
    for photo in scene()[1:]:
        (tmp_path / photo.name).unlink()
    with pytest.raises(ValueError, match="none of its 3 images can be read"):
        read_export(path)


def test_broken_polygons_get_the_words_of_the_checks(tmp_path):
    path = exports.write_via(tmp_path, scene()[:1])
    content = exports.via_images(scene()[:1])
    shape = next(iter(content.values()))["regions"][0]["shape_attributes"]
    shape["all_points_x"], shape["all_points_y"] = [3, 9], [3, 9]
    exports.write_json(path, content)
    usable, findings = usable_annotations(read_export(path).part("train"))
    assert [finding.kind for finding in findings] == ["polygon"] and len(usable) == 2
    assert "fewer than three points" in findings[0].message


JUNK = [
    None,
    True,
    3,
    -1.5,
    1e200,
    "x",
    [],
    {},
    [None],
    {"a": 1},
    [[1]],
    float("nan"),
    10**400,
    "\0",
]


def with_junk(value, junk):
    """Copies of a json value, each with junk in one place."""
    yield junk
    if isinstance(value, dict):
        for key in value:
            for changed in with_junk(value[key], junk):
                yield {**value, key: changed}
    elif isinstance(value, list):
        for n in range(min(len(value), 2)):
            for changed in with_junk(value[n], junk):
                yield [*value[:n], changed, *value[n + 1 :]]


@pytest.mark.parametrize("junk", JUNK, ids=repr)
@pytest.mark.parametrize("name", ["labelme", "via", "label studio", "geojson"])
def test_junk_anywhere_in_a_json_is_a_message_or_left_out(name, junk, tmp_path):
    """Never another error than those for people, and what is read can be checked."""
    write = {
        "labelme": exports.write_labelme,
        "via": exports.write_via,
        "label studio": exports.write_label_studio,
        "geojson": exports.write_geojson,
    }[name]
    write(tmp_path, [scene()[1]])
    (path,) = [p for p in tmp_path.iterdir() if p.suffix in (".json", ".geojson")]
    for content in with_junk(json.loads(path.read_text()), junk):
        path.write_text(json.dumps(content))
        try:
            export = read_export(path)
            for part in export.parts.values():
                clean_coco(part, "export", export.image_root, "skip")
            export.sentences()
        except (ValueError, OSError) as error:
            assert str(error)


WORDS = ["", "x", "-7", "1e400", "1e200", "nan", "99999999999999", "1,2;3", "0,0", "ü"]


@pytest.mark.parametrize("word", WORDS)
def test_junk_anywhere_in_cvats_xml_is_a_message_or_left_out(word, tmp_path):
    photo = scene()[1]
    exports.save_photos(tmp_path / "images", [photo])
    shapes = (
        exports.cvat_polygon("Käfer", photo.things[0].polygon, 'group_id="1"')
        + f'<mask label="Käfer" {exports.cvat_mask(photo.things[0].mask)}></mask>'
        + '<ellipse label="Käfer" cx="9" cy="9" rx="5" ry="3" rotation="12"/>'
    )
    text = exports.cvat_xml([(photo, shapes)])
    for match in re.finditer('="([^"]*)"', text):
        changed = f'{text[: match.start()]}="{word}"{text[match.end() :]}'
        (tmp_path / "annotations.xml").write_text(changed, encoding="utf-8")
        try:
            export = read_export(tmp_path / "annotations.xml")
            clean_coco(export.part("train"), "export", export.image_root, "skip")
        except (ValueError, OSError) as error:
            assert str(error)


@pytest.mark.parametrize("junk", JUNK[:12], ids=repr)
def test_junk_anywhere_in_yolos_yaml_is_a_message_or_read(junk, tmp_path):
    path = exports.write_yolo(tmp_path, [scene()[1]], [scene()[2]])
    for content in with_junk({**yaml.safe_load(path.read_text()), "path": "."}, junk):
        path.write_text(yaml.safe_dump(content))
        try:
            read_export(path)
        except (ValueError, OSError) as error:
            assert str(error)


@pytest.mark.parametrize("write", [exports.write_label_images, exports.write_voc])
def test_masks_that_are_damaged_or_of_another_size_are_told(write, tmp_path):
    photos = [photo for photo in scene() if photo.things]
    write(tmp_path, photos)
    masks = sorted(tmp_path.glob("[mS]*/blatt grün.png"))[-1]
    data = masks.read_bytes()
    masks.write_bytes(data[: len(data) // 2])
    export = read_export(tmp_path)
    assert_same(export, photos[:1], with_classes=write is exports.write_voc)
    assert "blatt grün.png" in " ".join(export.sentences())
    Image.fromarray(np.ones((9, 9), dtype=np.uint8)).save(masks)
    if write is exports.write_voc:
        (message,) = read_export(tmp_path).left_out["images whose masks cannot be used"]
        assert "differ in size" in message
    else:  # the checks know the size of the photograph
        check = check_data_of(read_export(tmp_path), tmp_path)
        assert [problem.where for problem in check.problems] == ["image 2"]
