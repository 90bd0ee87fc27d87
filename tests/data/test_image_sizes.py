"""Sizes that are not those of the pixels change only where coordinates prove which one is right.

Every photograph has one bright rectangle, so that it can be measured whether masks lie on it.
"""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image, ImageOps

from rdsnet.cli import main

HEIGHT, WIDTH = 90, 140
# x1, y1, x2, y2: reaching the far corner, and inside the upper left quarter.
FAR, NEAR = (20, 15, 130, 80), (10, 5, 60, 40)


class Photographs:
    """A folder of pictures with their annotations, to be brought out of step."""

    def __init__(self, folder):
        self.folder, self.images, self.annotations = folder, [], []
        (folder / "photos").mkdir()

    def add(self, name, box, *, declared=(HEIGHT, WIDTH), scale=(1.0, 1.0), rle=False, exif=None):
        """A picture of WIDTH x HEIGHT as stored, with a bright ``box``.

        Args:
            declared: height and width in the json.
            scale: of the annotated coordinates to those of the stored pixels, in x and y.
            rle: mask as RLE of the declared size in place of a polygon.
            exif: orientation.
        """
        x1, y1, x2, y2 = box
        pixels = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
        pixels[y1:y2, x1:x2] = 250
        tags = Image.Exif()
        if exif:
            tags[0x0112] = exif
        Image.fromarray(pixels).save(self.folder / "photos" / name, exif=tags)
        x1, x2, y1, y2 = x1 * scale[0], x2 * scale[0], y1 * scale[1], y2 * scale[1]
        height, width = declared
        id_ = len(self.images) + 1
        self.images.append({"id": id_, "file_name": name, "height": height, "width": width})
        mask = [[x1, y1, x2, y1, x2, y2, x1, y2]]
        if rle:
            (coded,) = mask_util.frPyObjects(mask, height, width)
            mask = {"size": [height, width], "counts": coded["counts"].decode()}
        annotation = {"id": id_, "image_id": id_, "category_id": 1, "iscrowd": 0}
        box = [x1, y1, x2 - x1, y2 - y1]
        more = {"bbox": box, "area": box[2] * box[3], "segmentation": mask}
        self.annotations.append({**annotation, **more})

    def check(self, *words):
        content = {"images": self.images, "annotations": self.annotations}
        content["categories"] = [{"id": 1, "name": "window"}]
        (self.folder / "a.json").write_text(json.dumps(content))
        return main(["check-data", "a.json", "photos", *words])

    def fixed(self, name="fixed.json"):
        """{file name: IoU of its mask with the bright pixels, as the picture is shown}."""
        content = json.loads((self.folder / name).read_text())
        ious = {}
        for image in content["images"]:
            shown = ImageOps.exif_transpose(Image.open(self.folder / "photos" / image["file_name"]))
            truth = np.asarray(shown)[..., 0] > 150
            size = image["height"], image["width"]
            assert size == truth.shape
            (mask,) = [
                a["segmentation"] for a in content["annotations"] if a["image_id"] == image["id"]
            ]
            if isinstance(mask, list):
                mask = mask_util.merge(mask_util.frPyObjects(mask, *size))
            found = mask_util.decode(mask) > 0
            ious[image["file_name"]] = (found & truth).sum() / (found | truth).sum()
        return ious


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Photographs(tmp_path)


def test_size_is_corrected_where_coordinates_reach_beyond_the_declared_one(photographs, capsys):
    photographs.add("swapped.png", FAR, declared=(WIDTH, HEIGHT))
    photographs.add("small.png", FAR, declared=(HEIGHT // 2, WIDTH // 2))
    assert photographs.check() == 1
    printed = capsys.readouterr().out
    assert "image size: 2" in printed and "the coordinates fit the file alone" in printed
    assert "box beyond the image" not in printed  # judged by the size that is right
    assert photographs.check("--fix", "fixed.json") == 0
    assert photographs.fixed() == {"swapped.png": 1, "small.png": 1}


def test_what_no_coordinate_proves_is_left_out_by_name(photographs, capsys):
    photographs.add("exchanged.png", NEAR, declared=(WIDTH, HEIGHT))
    photographs.add("squeezed.png", NEAR, declared=(HEIGHT, WIDTH + 33))
    photographs.add("larger.png", FAR, declared=(HEIGHT + 200, WIDTH + 100), scale=(1.5, 3))
    photographs.add("good.png", NEAR)
    assert photographs.check() == 1
    printed = capsys.readouterr().out
    for words in (
        "turned image: 1",
        "are exchanged, and the coordinates fit both",
        "other image: 2",
        "fit the declared size alone",
    ):
        assert words in printed
    assert photographs.check("--fix", "fixed.json", "--scale-coordinates") == 0
    assert photographs.fixed() == {"good.png": 1}
    printed = capsys.readouterr().out
    assert "1 turned images left out" in printed and ": exchanged.png" in printed
    assert (
        "2 images of another size left out" in printed and ": squeezed.png, larger.png" in printed
    )


@pytest.mark.parametrize("rle", [False, True])
@pytest.mark.parametrize("factor", [2, 0.5, 3.3])
def test_resized_images_are_scaled_when_asked_for(photographs, capsys, rle, factor):
    declared = round(HEIGHT * factor), round(WIDTH * factor)
    photographs.add("a.png", FAR, declared=declared, scale=(factor, factor), rle=rle)
    photographs.add("b.png", NEAR, declared=declared, scale=(factor, factor), rle=rle)
    photographs.add("c.png", NEAR)
    assert photographs.check("--fix", "fixed.json") == 0
    printed = capsys.readouterr().out
    assert "resized image: 2" in printed and "--scale-coordinates" in printed
    assert "2 resized images left out" in printed and ": a.png, b.png" in printed
    assert photographs.fixed() == {"c.png": 1}
    assert photographs.check("--fix", "scaled.json", "--scale-coordinates") == 0
    ious = photographs.fixed("scaled.json")
    assert ious.keys() == {"a.png", "b.png", "c.png"}
    # Half a pixel at each edge of NEAR: 50 x 35 of 51 x 36 pixels.
    assert min(ious.values()) >= (50 * 35) / (51 * 36)
    content = json.loads((photographs.folder / "scaled.json").read_text())
    box = content["annotations"][0]["bbox"]
    assert np.allclose(box, [20, 15, 110, 65], atol=1)
    assert content["annotations"][0]["area"] == pytest.approx(110 * 65, rel=0.02)


def test_all_that_has_coordinates_is_scaled(photographs):
    photographs.add("a.png", FAR, declared=(2 * HEIGHT, 2 * WIDTH), scale=(2, 2))
    photographs.annotations[0]["keypoints"] = [40, 60, 2, 10, 20, 1]
    assert photographs.check("--fix", "scaled.json", "--scale-coordinates") == 0
    content = json.loads((photographs.folder / "scaled.json").read_text())
    assert content["annotations"][0]["keypoints"] == [20, 30, 2, 5, 10, 1]


def test_images_annotated_as_stored_are_not_taken_for_turned_sizes(photographs, capsys):
    """As a camera held upright stores them: 140 x 90 pixels that are shown as 90 x 140."""
    photographs.add("proof.jpg", FAR, exif=6)  # x reaches 130, and 90 are shown
    photographs.add("doubt.jpg", NEAR, exif=8)
    assert photographs.check() == 1
    printed = capsys.readouterr().out
    assert "turned image: 2" in printed and "the pixels as stored, before EXIF rotation" in printed
    assert "leave every image out" in printed
    assert photographs.check("--fix", "fixed.json") == 2
    error = capsys.readouterr().err
    assert "no image remains" in error and "proof.jpg, doubt.jpg" in error
    assert "folder of the images" not in error
    assert not (photographs.folder / "fixed.json").exists()


def test_images_annotated_as_shown_but_declared_as_stored_are_corrected(photographs):
    photographs.add("a.png", FAR, exif=6)
    # Turned by 90 degrees clockwise, (x, y) of the stored pixels is shown at (90 - y, x).
    x1, y1, x2, y2 = HEIGHT - FAR[3], FAR[0], HEIGHT - FAR[1], FAR[2]
    photographs.annotations[0] |= {
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
    }
    assert photographs.check("--fix", "fixed.json") == 0
    assert photographs.fixed() == {"a.png": 1}


def test_scaling_is_not_applied_where_others_of_the_same_sizes_refute_it(photographs, capsys):
    """Coordinates are those of the files, the declared size is half of it for another reason."""
    photographs.add("far.png", FAR, declared=(HEIGHT // 2, WIDTH // 2))
    photographs.add("near.png", NEAR, declared=(HEIGHT // 2, WIDTH // 2))
    assert photographs.check("--fix", "fixed.json", "--scale-coordinates") == 0
    assert photographs.fixed() == {"far.png": 1}
    assert "others of these sizes were not resized" in capsys.readouterr().out


def test_an_image_without_masks_gets_the_size_of_its_file(photographs):
    photographs.add("a.png", FAR)
    photographs.add("empty.png", NEAR, declared=(11, 12))
    photographs.annotations.pop()
    assert photographs.check("--fix", "fixed.json") == 0
    content = json.loads((photographs.folder / "fixed.json").read_text())
    assert [(i["height"], i["width"]) for i in content["images"]] == [(HEIGHT, WIDTH)] * 2


def test_sizes_that_are_none_come_from_the_file_where_coordinates_fit(photographs, capsys):
    photographs.add("missing.png", FAR, declared=(HEIGHT, None))
    photographs.add("words.png", FAR, declared=(HEIGHT, "wide"))
    photographs.add("beyond.png", FAR, declared=(None, None), scale=(4, 4))
    photographs.add("half.png", FAR, declared=(HEIGHT, WIDTH + 0.5))
    assert photographs.check() == 1
    printed = capsys.readouterr().out
    assert "'width' is 140.5, expected a whole number" in printed
    assert photographs.check("--fix", "fixed.json") == 0
    assert photographs.fixed() == {"missing.png": 1, "words.png": 1}
    printed = capsys.readouterr().out
    assert "no whole number of pixels: beyond.png, half.png" in printed


def test_scaling_needs_a_file_to_write(photographs, capsys):
    photographs.add("a.png", FAR)
    assert photographs.check("--scale-coordinates") == 2
    assert "--fix OUT" in capsys.readouterr().err
