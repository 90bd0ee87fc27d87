"""Annotations of every tool become the same objects, as COCO's content."""

import json
import re
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import yaml
from helpers import exports
from helpers.exports import CLASSES, Photo, drawn, label_image, ring_with_island, scene
from PIL import Image
from tifffile import imwrite

from rdsnet.data.checks import clean_coco, structure_findings, usable_annotations
from rdsnet.data.formats import FORMATS, read_export
from rdsnet.data.rle import segmentation_rle
from rdsnet.reports.data_check import check_data


def objects_of(export, part=None):
    """{image: [(class, mask)]} of a part."""
    content = export.part(part) if part else export.part("train")
    names = {category["id"]: category["name"] for category in content["categories"]}
    found = {Path(image["file_name"]).name: [] for image in content["images"]}
    images = {image["id"]: image for image in content["images"]}
    for annotation in content["annotations"]:
        image = images[annotation["image_id"]]
        size = image["height"], image["width"]
        mask = mask_util.decode(segmentation_rle(annotation["segmentation"], size)).astype(bool)
        label = names[annotation["category_id"]]
        found[Path(image["file_name"]).name].append((label, mask))
    return found


def assert_same(export, photos, *, with_classes=True, part=None):
    """The masks are those of the scene, pixel by pixel, in any order; and pass the checks."""
    found = objects_of(export, part)
    assert set(found) == {photo.name for photo in photos}
    for photo in photos:
        wanted = [(t.label if with_classes else "object", t.mask) for t in photo.things]
        assert len(found[photo.name]) == len(wanted)
        for label, mask in wanted:
            assert any(label == a and (mask == b).all() for a, b in found[photo.name])
    for content in export.parts.values():
        assert not structure_findings(content)
        clean_coco(content, "export", export.image_root)


def one_photo(height=40, width=60, name="Foto ü.png"):
    return Photo(name, height, width, [])


def only_mask(export):
    ((_, mask),) = [thing for things in objects_of(export).values() for thing in things]
    return mask


# --------------------------------------------------------------------------------------------------
# Round trips

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


# --------------------------------------------------------------------------------------------------
# What single tools can draw


def test_masks_of_labelme_may_have_holes_and_parts_of_a_group_are_one_object(tmp_path):
    photo = one_photo()
    exports.save_photos(tmp_path, [photo])
    mask = ring_with_island(40, 60)
    rows, columns = np.nonzero(mask)
    corners = [[columns.min(), rows.min()], [columns.max(), rows.max()]]
    box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    a, b = [1.0, 1.0, 9.0, 1.0, 5.0, 9.0], [21.0, 1.0, 29.0, 1.0, 25.0, 9.0]
    shapes = [
        exports.labelme_shape("ring", np.array(corners).tolist(), "mask", mask=exports.png(box)),
        exports.labelme_shape("pair", exports.pairs(a), group_id=4),
        exports.labelme_shape("pair", exports.pairs(b), group_id=4),
        exports.labelme_shape("other", exports.pairs(b), group_id=4),
    ]
    exports.write_json(tmp_path / "x.json", exports.labelme_file(photo, shapes))
    found = {label: mask for label, mask in objects_of(read_export(tmp_path))[photo.name]}
    np.testing.assert_array_equal(found["ring"], mask)
    np.testing.assert_array_equal(found["pair"], drawn([a, b], 40, 60))
    np.testing.assert_array_equal(found["other"], drawn([b], 40, 60))


def test_rectangles_and_circles_are_outlines_and_lines_are_left_out(tmp_path):
    photo = one_photo()
    exports.save_photos(tmp_path, [photo])
    shapes = [
        exports.labelme_shape("box", [[30.0, 20.0], [10.0, 5.0]], "rectangle"),
        exports.labelme_shape("disc", [[40.0, 20.0], [40.0, 30.0]], "circle"),
        exports.labelme_shape("line", [[1, 1], [5, 5]], "line"),
        exports.labelme_shape("dot", [[1, 1]], "point"),
    ]
    exports.write_json(tmp_path / "x.json", exports.labelme_file(photo, shapes))
    export = read_export(tmp_path)
    found = dict(objects_of(export)[photo.name])
    expected = np.zeros((40, 60), dtype=bool)
    expected[5:20, 10:30] = True
    np.testing.assert_array_equal(found["box"], expected)
    y, x = np.mgrid[:40, :60] + 0.5
    inside = (x - 40) ** 2 + (y - 20) ** 2 < 10**2
    assert (found["disc"] != inside).mean() < 0.02  # pixels of the outline
    assert set(export.left_out) == {"shapes (line) without area", "shapes (point) without area"}


def test_images_of_labelme_may_be_elsewhere(tmp_path):
    photo = scene()[0]
    exports.write_labelme(tmp_path / "json", [])
    exports.save_photos(tmp_path / "fotos", [photo])
    shapes = [exports.labelme_shape(t.label, exports.pairs(t.polygon)) for t in photo.things]
    for image_path, images in [
        (f"..\\fotos\\{photo.name}", None),
        (f"C:\\Users\\me\\{photo.name}", tmp_path / "fotos"),
    ]:
        content = exports.labelme_file(photo, shapes, image_path)
        exports.write_json(tmp_path / "json" / "a.json", content)
        assert_same(read_export(tmp_path / "json", images), [photo])


def test_masks_of_cvat_may_have_holes_and_groups_are_one_object(tmp_path):
    photo, mask = one_photo(), ring_with_island(40, 60)
    exports.save_photos(tmp_path / "images", [photo])
    a, b = [1.0, 1.0, 9.0, 1.0, 5.0, 9.0], [21.0, 1.0, 29.0, 1.0, 25.0, 9.0]
    shapes = (
        f'<mask label="ring" {exports.cvat_mask(mask)} z_order="0"></mask>'
        + exports.cvat_polygon("pair", a, 'group_id="3"')
        + exports.cvat_polygon("pair", b, 'group_id="3"')
        + '<box label="box" xtl="10" ytl="8" xbr="30" ybr="18" rotation="90.0"/>'
        + '<polyline label="pair" points="1,1;2,2"/>'
    )
    (tmp_path / "annotations.xml").write_text(exports.cvat_xml([(photo, shapes)]))
    export = read_export(tmp_path / "annotations.xml")
    found = dict(objects_of(export)[photo.name])
    np.testing.assert_array_equal(found["ring"], mask)
    np.testing.assert_array_equal(found["pair"], drawn([a, b], 40, 60))
    turned = np.zeros((40, 60), dtype=bool)
    turned[3:23, 15:25] = True  # around the centre (20, 13)
    np.testing.assert_array_equal(found["box"], turned)
    assert "shapes (polyline without area)" in export.left_out


def test_classes_keep_the_order_that_the_export_declares(tmp_path):
    path = exports.write_cvat(tmp_path, scene())
    categories = read_export(path).part("train")["categories"]
    assert categories == [{"id": 1, "name": "Käfer"}, {"id": 2, "name": "leaf blade"}]


def test_subsets_of_cvat_are_parts(tmp_path):
    """A project's export: images lie in a folder of their subset."""
    photos = scene()[:2]
    subsets = {photos[0].name: "Train", photos[1].name: "Validation"}
    for photo in photos:
        exports.save_photos(tmp_path / "images" / subsets[photo.name], [photo])
    text = exports.cvat_xml(
        [(p, "".join(exports.cvat_polygon(*t[:2]) for t in p.things)) for p in photos]
    )
    for name, subset in subsets.items():
        text = text.replace(f'name="{name}"', f'name="{name}" subset="{subset}"')
    (tmp_path / "annotations.xml").write_text(text, encoding="utf-8")
    export = read_export(tmp_path)
    assert_same(export, photos[:1])
    assert_same(export, photos[1:], part="val")
    for content in export.parts.values():
        (image,) = content["images"]
        assert (Path(export.image_root) / image["file_name"]).is_file()


def test_brushes_of_label_studio_may_have_holes(tmp_path):
    photo, mask = one_photo(), ring_with_island(40, 60)
    exports.save_photos(tmp_path, [photo])
    region = exports.label_studio_region(photo, "brush", "ring", exports.brush(mask))
    task = exports.label_studio_task(photo, 1, [region])
    task["data"]["image"] = photo.name
    path = exports.write_json(tmp_path / "p.json", [task])
    np.testing.assert_array_equal(only_mask(read_export(path)), mask)


def test_a_brush_that_label_studios_own_converter_has_written():
    """5 x 4 pixels, all four channels alike, as its mask2rle writes them."""
    from rdsnet.data.formats.label_studio import unpacked

    mask = np.array([[0, 1, 1, 0, 0], [0, 1, 0, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 1]])
    code = SDK_CODE
    values = unpacked(bytes(code), most=4 * mask.size).reshape(4, 5, 4)
    np.testing.assert_array_equal(values, np.repeat(mask[..., None] * 255, 4, axis=2))


SDK_CODE = [
    0,
    0,
    0,
    80,
    57,
    27,
    252,
    96,
    19,
    255,
    219,
    0,
    143,
    254,
    48,
    8,
    255,
    231,
    0,
    183,
    255,
    132,
    192,
    35,
    255,
    0,
]


def test_label_studios_classes_may_be_apart_from_the_shapes(tmp_path):
    photo = one_photo()
    exports.save_photos(tmp_path, [photo])
    polygon = [6.0, 4.0, 30.0, 4.0, 18.0, 32.0]
    points = {"points": exports.percent(photo, polygon)}
    shape = exports.label_studio_region(photo, "polygon", "x", points)
    shape["type"] = "polygon"
    del shape["value"]["polygonlabels"]
    label = {**shape, "type": "labels", "value": {**shape["value"], "labels": ["leaf"]}}
    task = exports.label_studio_task(photo, 1, [shape, label])
    task["data"]["image"] = photo.name
    path = exports.write_json(tmp_path / "p.json", [task])
    found = objects_of(read_export(path))[photo.name]
    assert {name for name, _ in found} == {"leaf"}
    for _, mask in found:
        np.testing.assert_array_equal(mask, drawn([polygon], 40, 60))


def test_json_min_of_label_studio(tmp_path):
    photo = one_photo()
    exports.save_photos(tmp_path, [photo])
    polygon = [6.0, 4.0, 30.0, 4.0, 18.0, 32.0]
    region = {"points": exports.percent(photo, polygon), "polygonlabels": ["leaf"]}
    region |= {"original_width": photo.width, "original_height": photo.height}
    task = {"image": f"/data/local-files/?d=a/{photo.name}", "id": 1, "label": [region]}
    path = exports.write_json(tmp_path / "min.json", [task])
    np.testing.assert_array_equal(only_mask(read_export(path)), drawn([polygon], 40, 60))


def test_several_peoples_annotations_of_an_image_are_not_mixed(tmp_path):
    photo = one_photo()
    exports.save_photos(tmp_path, [photo])
    polygons = [[6.0, 4.0, 30.0, 4.0, 18.0, 32.0], [40.0, 4.0, 50.0, 4.0, 45.0, 32.0]]
    regions = [
        exports.label_studio_region(photo, "polygon", "a", {"points": exports.percent(photo, p)})
        for p in polygons
    ]
    task = exports.label_studio_task(photo, 1, [regions[0]])
    task["annotations"].append({"id": 2, "ground_truth": True, "result": [regions[1]]})
    task["data"]["image"] = photo.name
    export = read_export(exports.write_json(tmp_path / "p.json", [task]))
    np.testing.assert_array_equal(only_mask(export), drawn([polygons[1]], 40, 60))
    assert "annotations of images that somebody else has annotated" in export.left_out


@pytest.mark.parametrize("form", ["project", "regions", "version 1"])
def test_via_writes_projects_and_regions(form, tmp_path):
    path = exports.write_via(tmp_path, scene())
    content = exports.via_images(scene())
    if form == "version 1":  # regions under numbers
        for image in content.values():
            image["regions"] = {str(n): region for n, region in enumerate(image["regions"])}
    if form == "project":
        options = dict.fromkeys(CLASSES, "")
        attributes = {"region": {"kind": {"type": "radio", "options": options}}, "file": {}}
        content = {
            "_via_settings": {},
            "_via_img_metadata": content,
            "_via_attributes": attributes,
        }
    exports.write_json(path, content)
    assert_same(read_export(path), scene())


def test_via_draws_rectangles_and_ellipses(tmp_path):
    photo = one_photo()
    exports.save_photos(tmp_path, [photo])
    shapes = [
        {"name": "rect", "x": 10, "y": 5, "width": 20, "height": 15},
        {"name": "ellipse", "cx": 40, "cy": 20, "rx": 12, "ry": 4, "theta": np.pi / 2},
    ]
    regions = [
        {"shape_attributes": shape, "region_attributes": {"class": {shape["name"]: True}}}
        for shape in shapes
    ]
    image = {"filename": photo.name, "size": 1, "regions": regions, "file_attributes": {}}
    path = exports.write_json(tmp_path / "v.json", {"k": image})
    found = dict(objects_of(read_export(path))[photo.name])
    expected = np.zeros((40, 60), dtype=bool)
    expected[5:20, 10:30] = True
    np.testing.assert_array_equal(found["rect"], expected)
    rows, columns = np.nonzero(found["ellipse"])
    assert np.ptp(rows) > 2.5 * np.ptp(columns)  # upright: turned by a quarter


def test_polygons_of_qupath_may_have_holes_and_parts(tmp_path):
    photo = one_photo()
    exports.save_photos(tmp_path, [photo])
    outer = [4.25, 3.5, 40.0, 3.5, 40.0, 30.75, 4.25, 30.75]
    hole = [10.0, 10.5, 20.0, 10.5, 20.0, 20.0, 10.0, 20.0]
    part = [45.0, 5.0, 55.0, 5.0, 50.0, 30.0]
    rings = [[exports.closed(outer), exports.closed(hole)], [exports.closed(part)]]
    features = [
        exports.feature({"type": "MultiPolygon", "coordinates": rings}, "Tumor"),
        exports.feature({"type": "Point", "coordinates": [1, 2]}, "Tumor"),
    ]
    exports.write_json(tmp_path / "Foto ü.geojson", features)
    export = read_export(tmp_path)
    ring = drawn([outer], 40, 60) & ~drawn([hole], 40, 60)
    np.testing.assert_array_equal(only_mask(export), ring | drawn([part], 40, 60))
    assert list(export.left_out) == ["shapes (Point) without area"]


def test_the_region_around_qupaths_cells_is_no_object(tmp_path):
    photo = scene()[0]._replace(name="Schnitt 1.ome.tif")
    exports.save_photos(tmp_path, [photo])
    region = [0.0, 0.0, 60.0, 0.0, 60.0, 40.0, 0.0, 40.0]
    features = [exports.feature({"type": "Polygon", "coordinates": [exports.closed(region)]}, None)]
    for thing in photo.things:
        geometry = {"type": "Polygon", "coordinates": [exports.closed(thing.polygon)]}
        features.append(exports.feature(geometry, thing.label, "cell"))
    collection = {"type": "FeatureCollection", "features": features}
    exports.write_json(tmp_path / "Schnitt 1.geojson", collection)
    assert_same(read_export(tmp_path / "Schnitt 1.geojson"), [photo])


def test_voc_in_colours_as_cvat_writes_it(tmp_path):
    photos = scene()
    exports.write_voc(tmp_path, photos, val=("blatt grün.jpg",))
    for photo in photos:
        colours = np.array([[0, 0, 0], [10, 20, 30], [74, 20, 30], [224, 224, 192]], dtype=np.uint8)
        numbers = [CLASSES.index(t.label) + 1 for t in photo.things]
        classes = label_image(photo, numbers) if numbers else label_image(photo)
        objects = label_image(photo)
        picture = np.stack([objects * 40, objects * 0, objects * 7], axis=2).astype(np.uint8)
        file = f"{photo.stem}.png"
        Image.fromarray(picture).save(tmp_path / "SegmentationObject" / file)
        Image.fromarray(colours[classes]).save(tmp_path / "SegmentationClass" / file)
    export = read_export(tmp_path)
    assert_same(export, [photos[0], photos[2]])
    assert_same(export, [photos[1]], part="val")


# --------------------------------------------------------------------------------------------------
# Label images


@pytest.mark.parametrize("kind", ["png16", "tiff16", "tiff32", "npy", "colours", "tiff float"])
def test_numbers_above_255_stay_apart(kind, tmp_path):
    """1,500 cells of 2 x 2 pixels; in 32 bits they have numbers above 70,000."""
    cells = np.arange(1500).reshape(30, 50)
    first = 70_001 if kind in ("tiff32", "npy", "colours") else 301
    labels = np.zeros((120, 200), dtype=np.int64)
    for dy in range(2):
        for dx in range(2):
            labels[dy::4, dx::4] = cells + first
    exports.save_photos(tmp_path / "images", [Photo("a.png", 120, 200, [])])
    (tmp_path / "masks").mkdir()
    stem = tmp_path / "masks" / "a"
    if kind == "png16":
        Image.fromarray(labels.astype(np.uint16)).save(f"{stem}.png")
    elif kind == "npy":
        np.save(f"{stem}.npy", labels)
    elif kind == "colours":
        rgb = np.stack([labels >> 16, labels >> 8 & 255, labels & 255], axis=2)
        Image.fromarray(rgb.astype(np.uint8)).save(f"{stem}.png")
    else:
        dtypes = {"tiff16": np.uint16, "tiff32": np.uint32, "tiff float": np.float32}
        imwrite(f"{stem}.tif", labels.astype(dtypes[kind]), compression="zlib")
    annotations = read_export(tmp_path).part("train")["annotations"]
    assert len(annotations) == 1500 and {a["area"] for a in annotations} == {4}
    assert sorted(a["bbox"] for a in annotations)[1] == [0.0, 4.0, 2.0, 2.0]


def test_parts_of_one_number_stay_one_object(tmp_path):
    mask = ring_with_island(40, 60)
    exports.save_photos(tmp_path / "images", [one_photo()])
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask.astype(np.uint16) * 777).save(tmp_path / "masks" / "Foto ü.png")
    np.testing.assert_array_equal(only_mask(read_export(tmp_path)), mask)


@pytest.mark.parametrize(
    ("photo", "mask"),
    [
        ("images/a b.png", "masks/a b.png"),
        ("images/a.jpg", "masks/a_mask.png"),
        ("imgs/a.png", "labels/a.tif"),
        ("a_img.png", "a_masks.png"),
        ("a.png", "a_cp_masks.png"),
        ("train/images/a.png", "train/masks/a.png"),
        ("images/a.png", "masks/a/one.png"),
        ("images/a.png", "masks/a_3.png"),
        ("stage1_train/a/images/a.png", "stage1_train/a/masks/b.png"),
    ],
)
def test_ways_to_name_masks(photo, mask, tmp_path):
    for name in (photo, mask):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((30, 40, 3), 99, dtype=np.uint8)).save(tmp_path / photo)
    values = np.zeros((30, 40), dtype=np.uint8)
    values[4:9, 5:20] = 255
    save = imwrite if mask.endswith(".tif") else lambda path, v: Image.fromarray(v).save(path)
    save(tmp_path / mask, values)
    export = read_export(tmp_path)
    np.testing.assert_array_equal(only_mask(export), values > 0)
    assert not export.left_out


def test_masks_may_be_given_with_the_folder_of_the_images(tmp_path):
    photos = [photo for photo in scene() if photo.things]
    folder = exports.write_label_images(tmp_path, photos)
    export = read_export(folder / "masks", folder / "images")
    assert_same(export, photos, with_classes=False)


def test_folders_of_masks_that_are_no_photographs_are_classes(tmp_path):
    photo = scene()[0]
    exports.save_photos(tmp_path / "images", [photo])
    for label in CLASSES:
        (tmp_path / "masks" / label).mkdir(parents=True)
        labels = np.zeros((photo.height, photo.width), dtype=np.uint8)
        for n, thing in enumerate((t for t in photo.things if t.label == label), start=1):
            labels[thing.mask] = n
        Image.fromarray(labels).save(tmp_path / "masks" / label / f"{photo.stem}.png")
    assert_same(read_export(tmp_path), [photo])


def test_parts_of_folders_of_masks(tmp_path):
    for part, photo in (("train", scene()[0]), ("test", scene()[1])):
        exports.write_label_images(tmp_path / part, [photo])
    export = read_export(tmp_path)
    assert list(export.parts) == ["train", "test"]
    assert_same(export, scene()[:1], with_classes=False)
    assert_same(export, scene()[1:2], with_classes=False, part="test")


def test_masks_of_classes_are_refused(tmp_path):
    """Roboflow's semantic masks: a value is a class, and not an object."""
    exports.save_photos(tmp_path / "train", scene()[:1])
    labels = Image.fromarray(label_image(scene()[0]).astype(np.uint8))
    labels.save(tmp_path / "train" / "Käfer 1_mask.png")
    (tmp_path / "train" / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, a\n")
    with pytest.raises(ValueError, match="masks of classes"):
        read_export(tmp_path)


def test_jpeg_does_not_keep_numbers(tmp_path):
    exports.write_label_images(tmp_path, scene())
    first = scene()[0]
    (tmp_path / "masks" / f"{first.stem}.png").unlink()
    labels = Image.fromarray(label_image(first).astype(np.uint8))
    labels.save(tmp_path / "masks" / f"{first.stem}.jpg")
    export = read_export(tmp_path)
    (message,) = export.left_out["masks that cannot be read"]
    assert "does not keep numbers" in message and first.stem in message
    assert first.name not in objects_of(export)


def test_masks_of_one_value_are_said(tmp_path):
    exports.save_photos(tmp_path / "images", [one_photo()])
    (tmp_path / "masks").mkdir()
    values = np.zeros((40, 60), dtype=np.uint8)
    values[2:9, 3:9] = values[20:30, 20:30] = 255
    Image.fromarray(values).save(tmp_path / "masks" / "Foto ü.png")
    assert "one value (255)" in " ".join(read_export(tmp_path).sentences())


# --------------------------------------------------------------------------------------------------
# Classes of several exports


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


# --------------------------------------------------------------------------------------------------
# What is wrong


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


def check_data_of(export, folder):
    path = exports.write_json(folder / "converted.json", export.part("train"))
    return check_data(path, export.image_root)


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
