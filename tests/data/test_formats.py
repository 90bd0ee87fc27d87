"""Annotations of every tool become the same objects, as COCO's content."""

import json
from pathlib import Path

import pytest
from helpers import exports
from helpers.exports import CLASSES, scene
from helpers.read_exports import assert_same, objects_of

from rdsnet.data.formats import read_export

WRITERS = {
    "labelme json": exports.write_labelme,
    "CVAT xml": exports.write_cvat,
    "VIA json": exports.write_via,
    "GeoJSON": exports.write_geojson,
    "Pascal VOC": exports.write_voc,
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_a_tool_exports_comes_back_as_the_same_masks(name, tmp_path):
    path = WRITERS[name](tmp_path / "mein Export ß", scene())
    export = read_export(path)
    assert export.format == name
    assert_same(export, scene())
    names = [category["name"] for category in export.part("train")["categories"]]
    assert sorted(names) == sorted(CLASSES)


@pytest.mark.parametrize("name", WRITERS)
def test_polygons_keep_their_coordinates(name, tmp_path):
    path = WRITERS[name](tmp_path, scene())
    found = [a["segmentation"] for a in read_export(path).part("train")["annotations"]]
    if name == "Pascal VOC":  # pictures
        assert all(isinstance(segmentation, dict) for segmentation in found)
    else:
        expected = [[t.polygon] for photo in scene() for t in photo.things]
        assert sorted(found) == sorted(expected)


def test_label_studio_finds_the_images_that_it_has_renamed(tmp_path):
    path = exports.write_label_studio(tmp_path / "Export ä", scene())
    renamed = [p._replace(name=f"0a1b2c3d-{p.name.replace(' ', '_')}") for p in scene()]
    assert_same(read_export(path), renamed)
    assert_same(read_export(tmp_path / "Export ä"), renamed)


@pytest.mark.parametrize("write", [exports.write_label_images, exports.write_object_pictures])
def test_pictures_of_masks_come_back_as_the_same_masks(write, tmp_path):
    """Also a label image without a number, and a folder without a picture."""
    assert_same(read_export(write(tmp_path, scene())), scene(), with_classes=False)


def test_yolo_has_its_own_parts(tmp_path):
    train, val = [scene()[0], scene()[2]], [scene()[1]]
    path = exports.write_yolo(tmp_path / "Käfer v2", train, val)
    for given in (path, path.parent):
        export = read_export(given)
        assert list(export.parts) == ["train", "val"]
        assert_same(export, train)
        assert_same(export, val, part="val")


def test_a_part_of_yolo_can_be_given_alone(tmp_path):
    path = exports.write_yolo(tmp_path, scene()[:1], scene()[1:])
    export = read_export(path.parent / "valid")
    assert_same(export, scene()[1:])
    names = [category["name"] for category in export.part("train")["categories"]]
    assert names == list(CLASSES)


def test_cocos_json_is_taken_as_it_is(coco, tmp_path):
    path = coco.write()
    for images in (coco.image_root, None):
        export = read_export(path, images)
        assert export.json_file == path and export.is_plain
        assert export.part("train") == coco.content
        assert Path(export.image_root) == Path(coco.image_root)


def test_yolo_as_cvat_writes_it(tmp_path):
    """Lists of images with a folder too much, and classes by number."""
    photo = scene()[0]
    exports.save_photos(tmp_path / "images" / "train", [photo])
    label = tmp_path / "labels" / "train" / f"{photo.stem}.txt"
    label.parent.mkdir(parents=True)
    label.write_text(exports.yolo_lines(photo), encoding="utf-8")
    (tmp_path / "train.txt").write_text(f"data/images/train/{photo.name}\n", encoding="utf-8")
    names = "".join(f"  {n}: {name}\n" for n, name in enumerate(CLASSES))
    yaml = tmp_path / "data.yaml"
    yaml.write_text(f"names:\n{names}path: .\ntrain: train.txt\n", encoding="utf-8")
    assert_same(read_export(tmp_path), [photo])


def test_yolo_as_label_studio_writes_it(tmp_path):
    """Without data.yaml: classes.txt, images/ and labels/."""
    photo = scene()[0]
    exports.save_photos(tmp_path / "images", [photo])
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / f"{photo.stem}.txt").write_text(exports.yolo_lines(photo))
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    exports.write_json(tmp_path / "notes.json", {"categories": [], "info": {}})
    assert_same(read_export(tmp_path), [photo])


def test_parts_of_a_roboflow_export_of_coco_keep_their_images(tmp_path):
    """As Roboflow writes it: a json beside the images of every part."""
    for part, photo in (("train", scene()[0]), ("valid", scene()[1])):
        exports.save_photos(tmp_path / part, [photo])
        image = {"id": 0, "file_name": photo.name, "height": photo.height, "width": photo.width}
        things = [
            {"id": n, "image_id": 0, "category_id": 1, "segmentation": [thing.polygon]}
            | {"bbox": [1, 1, 5, 5], "iscrowd": 0}
            for n, thing in enumerate(photo.things)
        ]
        categories = [{"id": 1, "name": "a"}]
        content = {"images": [image], "annotations": things, "categories": categories}
        exports.write_json(tmp_path / part / "_annotations.coco.json", content)
    export = read_export(tmp_path)
    assert list(export.parts) == ["train", "val"] and export.json_file is None
    for content in export.parts.values():
        for image in content["images"]:
            assert (Path(export.image_root) / image["file_name"]).is_file()


def test_validation_gets_the_ids_of_training(tmp_path):
    """Another order, a class less, and regions without any."""
    export = read_export(exports.write_via(tmp_path / "v", scene()), classes={7: "leaf blade"})
    assert export.part("train")["categories"] == [
        {"id": 7, "name": "leaf blade"},
        {"id": 8, "name": "Käfer"},
    ]


def test_objects_without_a_class_get_the_only_one_and_else_are_left_out(tmp_path):
    content = exports.via_images(scene()[:1])
    for image in content.values():
        for region in image["regions"]:
            region["region_attributes"] = {}
    exports.save_photos(tmp_path, scene()[:1])
    path = exports.write_json(tmp_path / "v.json", content)

    def names(classes):
        return {label for label, _ in objects_of(read_export(path, classes=classes))["Käfer 1.png"]}

    assert names(None) == {"object"}
    assert names({3: "bug"}) == {"bug"}
    assert names({3: "bug", 4: "leaf"}) == set()
    export = read_export(path, classes={3: "bug", 4: "leaf"})
    assert len(export.left_out["objects without a class"]) == 3


def test_real_kudzu_of_via(real_data):
    """520 and 349 regions, as its json files have them; those for validation have no class."""
    folder = real_data / "kudzu"
    if not folder.is_dir():
        pytest.skip("there is no kudzu/ in RDSNET_DATA")
    export = read_export(folder)
    counts = {part: len(content["annotations"]) for part, content in export.parts.items()}
    assert counts == {"train": 520, "val": 349}
    regions = json.loads((folder / "train" / "via_region_data.json").read_text())
    region = regions["1.jpg71410"]["regions"][0]["shape_attributes"]
    points = zip(region["all_points_x"], region["all_points_y"])
    first = export.part("train")["annotations"][0]["segmentation"]
    assert first == [[float(value) for point in points for value in point]]
    assert {c["name"] for c in export.part("val")["categories"]} == {"kudzu"}
