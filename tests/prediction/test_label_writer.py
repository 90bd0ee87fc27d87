"""Label images: what is read again are the masks."""

import json
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as coco_mask
import pytest
import tifffile
import torch
from detectron2.structures import Boxes, Instances
from helpers.blobs import compact
from helpers.predicting import load_coco, picture

from rdsnet.benchmark.measure import extra_peak_mb
from rdsnet.cli import main
from rdsnet.data.georeference import read_georeference
from rdsnet.prediction.sources import Frame
from rdsnet.prediction.writers import build_writers

UTM = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)
TAGS = (
    (33550, "d", 3, (0.5, 0.5, 0.0), True),
    (33922, "d", 6, (0.0, 0.0, 0.0, 400_000.0, 5_000_000.0, 0.0), True),
    (34735, "H", len(UTM), UTM, True),
)


@pytest.fixture
def predict_tiles(model_files, tmp_path):
    """``rdsnet predict --tile 384`` with a model of random weights, into tmp_path/out."""

    def call(path, *arguments):
        words = ["predict", "--config-file", model_files["config"], "--tile", "384"]
        words += ["--weights", model_files["weights"], "--input", str(path)]
        words += ["--output", str(tmp_path / "out"), "--score-threshold", "0"]
        words += ["--precision", "float32", "--max-detections", "6"]
        return main([*words, *arguments])

    return call


def expected_labels(results, size):
    """By the run lengths of the COCO results, which have the order of objects.csv."""
    labels = np.zeros(size, np.uint32)
    for number, result in reversed(list(enumerate(results, start=1))):
        labels[coco_mask.decode(result["segmentation"]) > 0] = number
    return labels


def test_labels_of_a_tiled_image_are_its_masks(predict_tiles, tmp_path):
    path = tmp_path / "map.tif"
    tifffile.imwrite(path, picture(300, 700), tile=(64, 64), photometric="rgb", extratags=TAGS)
    assert predict_tiles(path, "--format", "coco,csv,labels") == 0
    _, results = load_coco(tmp_path / "out")
    written = tmp_path / "out" / "labels" / "map.ome.tif"
    labels = tifffile.imread(written)
    assert labels.dtype == np.uint32 and labels.shape == (300, 700)
    assert np.array_equal(labels, expected_labels(results, (300, 700)))
    assert len(np.unique(labels)) > 6
    with tifffile.TiffFile(written) as file:
        assert file.is_ome and not file.is_bigtiff
        assert file.pages[0].is_tiled and file.pages[0].compression != 1
    assert read_georeference(written) == read_georeference(path)
    assert [file.name for file in written.parent.iterdir()] == ["map.ome.tif"]


def test_labels_of_images_that_are_seen_at_once(model_files, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), picture())
    cv2.imwrite(str(tmp_path / "b.png"), picture(50, 70, seed=1))
    words = ["predict", "--config-file", model_files["config"], "--weights", model_files["weights"]]
    words += ["--input", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main([*words, "--score-threshold", "0", "--format", "labels,coco"]) == 0
    images, results = load_coco(tmp_path / "out")
    for image in images["images"]:
        own = [r for r in results if r["image_id"] == image["id"]]
        labels = tifffile.imread(
            tmp_path / "out" / "labels" / f"{Path(image['file_name']).stem}.ome.tif"
        )
        assert np.array_equal(labels, expected_labels(own, (image["height"], image["width"])))


def test_parts_and_overlaps(tmp_path):
    """Of two objects the first keeps the pixels; the next image begins another file."""
    size = (600, 1100)

    def squares(*corners):
        windows = [(x, y, x + 20, y + 20) for x, y in corners]
        masks = compact(windows, [np.ones((20, 20), bool)] * len(windows), size)
        boxes = Boxes(masks.windows.float())
        classes = torch.zeros(len(windows), dtype=torch.int64)
        return Instances(size, pred_boxes=boxes, pred_masks=masks, pred_classes=classes)

    image = np.broadcast_to(np.uint8(0), (*size, 3))
    (writer,) = build_writers(["labels"], tmp_path, (None, [1]))
    with writer:
        for name in ("one", "two"):
            corners = [(500, 505), (1080, 580)], [(510, 515)], []
            for part, some in enumerate(corners):
                writer.write(Frame(name, Path("nowhere"), image, part=part), squares(*some))
    for name in ("one", "two"):
        labels = tifffile.imread(tmp_path / "labels" / f"{name}.ome.tif")
        assert labels.shape == size
        assert [int((labels == n).sum()) for n in (1, 2, 3, 4)] == [400, 400, 300, 0]
        assert labels[520, 515] == 1 and labels[599, 1099] == 2 and labels[530, 525] == 3


def empty_frame(name, size=(600, 1100), path="nowhere"):
    image = np.broadcast_to(np.uint8(0), (*size, 3))
    masks = compact([], [], size)
    fields = {"pred_boxes": Boxes(torch.zeros(0, 4)), "pred_masks": masks}
    instances = Instances(size, **fields, pred_classes=torch.zeros(0, dtype=torch.int64))
    return Frame(name, Path(path), image, part=0), instances


def test_an_image_that_cannot_be_written_is_lost_alone(tmp_path):
    (writer,) = build_writers(["labels"], tmp_path, (None, [1]))
    (tmp_path / "labels" / "bad.ome.tif").mkdir(parents=True)  # no file can have this name
    with writer:
        writer.write(*empty_frame("bad"))
        with pytest.raises(OSError, match="bad.ome.tif"):
            writer.write(*empty_frame("good"))
        writer.write(*empty_frame("good"))
    assert {file.name for file in (tmp_path / "labels").iterdir()} == {
        "bad.ome.tif",
        "good.ome.tif",
    }


def test_labels_of_an_image_with_damaged_map_coordinates_have_none(tmp_path, caplog):
    path = tmp_path / "map.tif"
    damaged = ((33550, "d", 1, (0.5,), True), *TAGS[1:])
    tifffile.imwrite(path, picture(300, 700), photometric="rgb", extratags=damaged)
    (writer,) = build_writers(["labels"], tmp_path, (None, [1]))
    with writer:
        writer.write(*empty_frame("map", (300, 700), path))
    assert "cannot be read" in caplog.text and "The label image has none." in caplog.text
    assert read_georeference(tmp_path / "labels" / "map.ome.tif") is None


def test_memory_does_not_depend_on_the_image(tmp_path):
    size = (8000, 6000)  # 192 MB of numbers
    windows = [(0, y, size[1], y + 100) for y in range(0, size[0], 200)]
    parts = []
    for window in windows:
        masks = compact([window], [np.ones((100, size[1]), bool)], size)
        classes = torch.zeros(1, dtype=torch.int64)
        boxes = Boxes(masks.windows.float())
        parts.append(Instances(size, pred_boxes=boxes, pred_masks=masks, pred_classes=classes))
    image = np.broadcast_to(np.uint8(0), (*size, 3))

    def write():
        (writer,) = build_writers(["labels"], tmp_path, (None, [1]))
        with writer:
            for part, instances in enumerate(parts):
                writer.write(Frame("one", Path("nowhere"), image, part=part), instances)

    extra = extra_peak_mb(write, "cpu")
    assert extra is None or extra < 192  # what it would take to hold them all
    with tifffile.TiffFile(tmp_path / "labels" / "one.ome.tif") as file:
        (labels,) = (page.asarray() for page in file.pages)
    assert labels[50, ::999].tolist() == [1] * 7 and labels[7850, 1] == len(windows)


def test_outlines_on_the_map_are_those_of_the_image(predict_tiles, tmp_path, capsys):
    path = tmp_path / "map.tif"
    tifffile.imwrite(path, picture(300, 700), tile=(64, 64), photometric="rgb", extratags=TAGS)

    def features(*arguments):
        assert predict_tiles(path, *arguments) == 0
        return json.loads((tmp_path / "out" / "geojson" / "map.geojson").read_text())

    in_pixels, on_map = features(), features("--coordinates", "map")
    assert "crs" not in in_pixels
    assert on_map["crs"] == {
        "type": "name",
        "properties": {"name": "urn:ogc:def:crs:EPSG::32633"},
    }
    assert len(in_pixels["features"]) == len(on_map["features"]) > 6
    for one, other in zip(in_pixels["features"], on_map["features"]):
        assert one["properties"] == other["properties"] and one["id"] == other["id"]
        assert one["geometry"]["type"] == other["geometry"]["type"]
        ring, there = (f["geometry"]["coordinates"] for f in (one, other))
        while not isinstance(ring[0][0], int | float):
            ring, there = ring[0], there[0]
        expected = np.array([400_000, 5_000_000]) + np.array(ring) * (0.5, -0.5)
        assert np.allclose(there, expected)


def test_map_coordinates_that_a_file_does_not_have_are_refused(predict_tiles, tmp_path, capsys):
    np.save(tmp_path / "image.npy", picture(30, 40))
    assert predict_tiles(tmp_path / "image.npy", "--coordinates", "map") == 1
    error = capsys.readouterr().err
    assert "image.npy has no map coordinates" in error and "--coordinates pixels" in error
    words = ["predict", "--weights", "nuclei", "--input", "x", "--coordinates", "map"]
    assert main(words) != 0
    assert "--coordinates can only be given together with --tile" in capsys.readouterr().err
