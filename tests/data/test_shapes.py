"""The synthetic data set: exact masks, tight boxes, the same bytes for the same seed."""

import cmath
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog
from matplotlib.path import Path as Outline
from PIL import Image

import rdsnet
from rdsnet.data.checks import check_coco
from rdsnet.data.datasets import register_coco_files
from rdsnet.data.shapes import CLASSES, Shape, draw_scene, make_shapes_dataset

SIZE = (90, 110)


def rasterised(shape: Shape, size=SIZE) -> np.ndarray:
    """The shape's mask by formulas of its own: complex rotation, quadratic form, point in path."""
    centres = np.array(
        [complex(column + 0.5, row + 0.5) for row in range(size[0]) for column in range(size[1])]
    )
    local = (centres - complex(shape.x, shape.y)) * cmath.exp(-1j * shape.angle)
    r = shape.radius
    if shape.kind == "ellipse":
        inside = local.real**2 + (local.imag / shape.aspect) ** 2 < r**2
    elif shape.kind == "ring":
        inside = (np.abs(local) < r) & (np.abs(local) > 0.55 * r)
    elif shape.kind == "rectangle":
        diagonal = math.atan(shape.aspect)
        inside = (np.abs(local.real) < r * math.cos(diagonal)) & (
            np.abs(local.imag) < r * math.sin(diagonal)
        )
    else:
        count = {"triangle": 3, "star": 10}[shape.kind]
        corners = [r * cmath.exp(1j * math.pi * (2 * k / count - 0.5)) for k in range(count)]
        if shape.kind == "star":
            corners = [c if k % 2 == 0 else c / 2 for k, c in enumerate(corners)]
        else:
            corners = [complex(c.real, c.imag * shape.aspect) for c in corners]
        outline = Outline([(c.real, c.imag) for c in [*corners, corners[0]]], closed=True)
        inside = outline.contains_points(np.stack([local.real, local.imag], axis=1))
    return inside.reshape(size)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_mask_is_the_pixels_whose_centre_is_inside(kind):
    rng = np.random.default_rng(5)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    for _ in range(30):
        place = rng.uniform((-5, -5), (115, 95))
        angle, aspect = rng.uniform(0, 7), rng.uniform(0.4, 1)
        shape = Shape(kind, *place, rng.uniform(4, 40), angle, aspect)
        mask = shape.signed_distance(x, y) < 0
        np.testing.assert_array_equal(mask, rasterised(shape))


@pytest.mark.parametrize("kind", ["triangle", "rectangle", "star", "ring"])
def test_distance_to_the_outline_is_how_far_the_nearest_outside_pixel_is(kind):
    shape = Shape(kind, 55.2, 44.7, 38.0, 0.4, 0.8)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    distance = shape.signed_distance(x, y)
    outside = np.argwhere(distance >= 0)
    inside = np.argwhere(distance < 0)[::50]
    assert len(inside) > 20
    for row, column in inside:
        nearest = np.hypot(*(outside - (row, column)).T).min()
        assert nearest == pytest.approx(-distance[row, column], abs=1.0)


def test_visible_masks_are_what_later_shapes_leave():
    for seed in range(10):
        scene = draw_scene(np.random.default_rng(seed), SIZE, (4, 8))
        assert scene.image.shape == (*SIZE, 3) and scene.image.dtype == np.uint8
        assert len(scene.shapes) == len(scene.masks) > 0
        assert scene.masks.sum(0).max() == 1  # no pixel belongs to two
        later = np.zeros(SIZE, dtype=bool)
        for shape, mask in zip(reversed(scene.shapes), scene.masks[::-1], strict=True):
            np.testing.assert_array_equal(mask, rasterised(shape) & ~later)
            later |= rasterised(shape)


def test_shapes_overlap_and_cross_the_border_and_come_in_all_classes_and_sizes():
    scenes = [draw_scene(np.random.default_rng(seed), (128, 160)) for seed in range(60)]
    shapes = [shape for scene in scenes for shape in scene.shapes]
    pairs = [pair for scene in scenes for pair in zip(scene.shapes, scene.masks, strict=True)]
    hidden = sum(rasterised(shape, (128, 160)).sum() > mask.sum() for shape, mask in pairs)
    cut = sum(
        mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
        for _, mask in pairs
    )
    assert min(hidden, cut) > 0.1 * len(pairs)
    assert {shape.kind for shape in shapes} == set(CLASSES)
    radii = [shape.radius for shape in shapes]
    assert 5 <= min(radii) < 7 and 28 < max(radii) <= 32
    assert 3 < len(shapes) / len(scenes) < 8
    assert min(mask.sum() for _, mask in pairs) >= 20


def test_a_shape_differs_from_what_surrounds_it():
    """Colours change at an outline, or there would be nothing to learn from."""
    contrasts = []
    for seed in range(20):
        scene = draw_scene(np.random.default_rng(seed), (128, 160), (1, 1))
        inside = scene.masks[0]
        contrasts.append(np.abs(scene.image[inside].mean(0) - scene.image[~inside].mean(0)).max())
    assert min(contrasts) > 15


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    return make_shapes_dataset(folder, num_train=6, num_val=3, size=(64, 96), seed=4), folder


def test_files_are_where_the_paths_say(dataset):
    paths, folder = dataset
    assert paths == {
        "train_json": str(folder / "train.json"),
        "train_images": str(folder / "train"),
        "val_json": str(folder / "val.json"),
        "val_images": str(folder / "val"),
    }
    assert len(list((folder / "train").iterdir())) == 6
    assert Image.open(folder / "val" / "000003.png").size == (96, 64)


def test_boxes_are_tight_and_areas_exact(dataset):
    content = json.loads(Path(dataset[0]["train_json"]).read_text())
    assert [c["name"] for c in content["categories"]] == list(CLASSES)
    assert len(content["annotations"]) > 12
    for annotation in content["annotations"]:
        mask = mask_util.decode(annotation["segmentation"])
        rows, columns = np.nonzero(mask)
        x, y, width, height = annotation["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
        assert annotation["area"] == len(rows) >= 20
        assert mask.shape == (64, 96)


def test_annotations_are_those_of_the_scene_in_the_image(dataset):
    content = json.loads(Path(dataset[0]["val_json"]).read_text())
    scene = draw_scene(np.random.default_rng([4, 1, 2]), (64, 96))  # seed, val, third image
    picture = np.asarray(Image.open(Path(dataset[0]["val_images"]) / "000003.png"))
    np.testing.assert_array_equal(picture, scene.image)
    annotations = [a for a in content["annotations"] if a["image_id"] == 3]
    for annotation, shape, mask in zip(annotations, scene.shapes, scene.masks, strict=True):
        assert CLASSES[annotation["category_id"] - 1] == shape.kind
        np.testing.assert_array_equal(mask_util.decode(annotation["segmentation"]), mask)


def test_the_files_pass_the_checks_and_load(dataset):
    paths = dataset[0]
    content = check_coco(paths["train_json"], paths["train_images"])
    assert content == json.loads(Path(paths["train_json"]).read_text())
    cfg = rdsnet.get_cfg()
    cfg.DATASETS.COCO_FILES = [["shapes", paths["train_json"], paths["train_images"]]]
    register_coco_files(cfg)
    assert len(DatasetCatalog.get("shapes")) == 6


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_the_same_seed_gives_the_same_bytes(dataset, tmp_path):
    make_shapes_dataset(tmp_path, num_train=6, num_val=3, size=(64, 96), seed=4)
    assert digests(tmp_path) == digests(dataset[1])


def test_another_seed_gives_other_images_and_more_images_keep_the_first(dataset, tmp_path):
    make_shapes_dataset(tmp_path / "a", num_train=6, num_val=3, size=(64, 96), seed=5)
    make_shapes_dataset(tmp_path / "b", num_train=8, num_val=3, size=(64, 96), seed=4)
    before, other, more = (digests(path) for path in (dataset[1], tmp_path / "a", tmp_path / "b"))
    images = [name for name in before if name.endswith(".png")]
    assert not any(before[name] == other[name] for name in images)
    assert all(before[name] == more[name] for name in [*images, "val.json"])
    assert before["train/000001.png"] != before["val/000001.png"]


def test_one_number_is_a_square(tmp_path):
    paths = make_shapes_dataset(tmp_path, num_train=1, num_val=0, size=48, seed=0)
    image = json.loads(Path(paths["train_json"]).read_text())["images"][0]
    assert (image["height"], image["width"]) == (48, 48)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"size": 16}, "at least 32 pixels, got 16"),
        ({"num_train": -1}, "num_train=-1"),
        ({"num_shapes": (5, 2)}, r"num_shapes=\(5, 2\)"),
    ],
)
def test_sizes_and_numbers_that_make_no_sense_are_refused(tmp_path, wrong, words):
    with pytest.raises(ValueError, match=words):
        make_shapes_dataset(tmp_path / "never", **wrong)
    assert not (tmp_path / "never").exists()
