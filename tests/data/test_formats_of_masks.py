"""Label images and folders of masks."""

import numpy as np
import pytest
from helpers import exports
from helpers.exports import CLASSES, Photo, label_image, ring_with_island, scene
from helpers.read_exports import assert_same, objects_of, one_photo, only_mask
from PIL import Image
from tifffile import imwrite

from rdsnet.data.formats import read_export


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


def test_a_folder_may_be_given_twice_as_annotations_and_as_images(tmp_path):
    """Photographs beside their annotations are no masks; masks beside photographs are found."""
    via = exports.write_via(tmp_path / "via", scene()).parent
    assert_same(read_export(via, via), scene())
    (tmp_path / "masks").mkdir()
    values = np.zeros((30, 40), dtype=np.uint8)
    values[4:9, 5:20] = 1
    Image.fromarray(values).save(tmp_path / "masks" / "a_masks.png")
    Image.fromarray(np.full((30, 40, 3), 99, np.uint8)).save(tmp_path / "masks" / "a.png")
    export = read_export(tmp_path / "masks", tmp_path / "masks")
    np.testing.assert_array_equal(only_mask(export), values > 0)
    assert not export.left_out


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
