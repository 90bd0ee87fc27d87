"""What tests of annotation formats compare: the objects of an export."""

from pathlib import Path

import pycocotools.mask as mask_util
from helpers import exports
from helpers.exports import Photo

from rdsnet.data.checks import clean_coco, structure_findings
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


def check_data_of(export, folder):
    path = exports.write_json(folder / "converted.json", export.part("train"))
    return check_data(path, export.image_root)
