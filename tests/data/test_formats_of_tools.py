"""What single tools can draw: holes, parts, brushes, circles, and how they name things."""

from pathlib import Path

import numpy as np
import pytest
from helpers import exports
from helpers.exports import CLASSES, drawn, label_image, ring_with_island, scene
from helpers.read_exports import assert_same, objects_of, one_photo, only_mask
from PIL import Image

from rdsnet.data.formats import read_export


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
