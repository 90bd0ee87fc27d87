"""Large images in tiles: what is found is what the model finds in the whole."""

import json
import os
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as coco_mask
import pytest
import tifffile
import torch
from detectron2.structures import Boxes, Instances
from helpers.predicting import load_coco

from rdsnet.checkpoint.trained import prediction_config
from rdsnet.cli import main
from rdsnet.data.windows import ArrayReader
from rdsnet.prediction import Predictor, TiledPrediction, predict_tiled, tiled_pass
from rdsnet.prediction.tiled_pass import TiledPass, reach_border, run_streams
from rdsnet.prediction.tiles import Tile, spread_windows
from rdsnet.prediction.writers.labelme import exact_outlines

NUCLEI = Path(os.environ.get("RDSNET_DATA", "nowhere")) / "nuclei"
needs_nuclei = pytest.mark.skipif(not NUCLEI.is_dir(), reason="RDSNET_DATA has no nuclei/")
# Objects of an image without tiles: more than any of these images has.
MANY = 5000


def mosaic(height, width, seed=0):
    """(height, width, 3) uint8 BGR of images of nuclei, all of fluorescence, dark and less dark."""
    rng = np.random.default_rng(seed)
    content = json.loads((NUCLEI / "val.json").read_text())
    names = [i["file_name"] for i in content["images"] if (i["height"], i["width"]) == (256, 256)]
    picture = np.zeros((height, width, 3), np.uint8)
    for y in range(0, height, 256):
        for x in range(0, width, 256):
            piece = cv2.imread(str(NUCLEI / "images" / names[rng.integers(len(names))]))
            picture[y : y + 256, x : x + 256] = piece[: height - y, : width - x]
    return picture


@pytest.fixture(scope="module")
def predictor():
    cfg = prediction_config(None, "nuclei", 0.5, ["TEST.DETECTIONS_PER_IMAGE", str(MANY)], None)
    cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST = MANY
    return Predictor(cfg)


@pytest.fixture(scope="module")
def small(predictor):
    picture = mosaic(200, 420)
    return picture, predictor(picture)["instances"].to("cpu")


@pytest.fixture(scope="module")
def large(predictor):
    picture = mosaic(900, 1100, seed=1)
    return picture, predictor(picture)["instances"].to("cpu")


def assert_equal(found, whole):
    """The same objects; boxes within a pixel; masks of IoU above 0.98 for 99.5 %; no doubles.

    One pixel, the least by which masks differ, is no difference: of 44 pixels the IoU is 0.977.
    """
    whole = whole[whole.scores >= 0.5 + 1e-3]  # what is above the threshold by a hair may fall
    found_masks, whole_masks = found.pred_masks.rle(), whole.pred_masks.rle()
    overlaps = coco_mask.iou(whole_masks, found_masks, [0] * len(found_masks))
    partner = overlaps.argmax(1)
    assert len(set(partner.tolist())) == len(whole)
    moved = (whole.pred_boxes.tensor - found.pred_boxes.tensor[partner]).abs().amax(1)
    allowed = max(1, 0.005 * len(whole))
    assert (moved > 1).sum() <= allowed
    ious = overlaps.max(1)
    pairs = zip(whole_masks, (found_masks[n] for n in partner), strict=True)
    areas = [int(coco_mask.area(a)) + int(coco_mask.area(b)) for a, b in pairs]
    pixels = np.array(areas) * (1 - ious) / (1 + ious)  # that only one of both has
    assert ((ious <= 0.98) & (pixels > 1.5)).sum() <= allowed and ious.min() > 0.8
    new = np.setdiff1d(np.arange(len(found)), partner)
    assert (found.scores[new] < 0.5 + 1e-3).all()
    among = coco_mask.iou(found_masks, found_masks, [0] * len(found_masks))
    assert (among > 0.5).sum() == len(found)


@needs_nuclei
def test_tiled_equals_whole(predictor, small):
    picture, whole = small
    assert len(whole) > 10
    prediction = TiledPrediction(picture, predictor, tile=384, overlap=256)
    assert len(prediction.tiles) > 1
    assert_equal(Instances.cat(list(prediction)), whole)
    assert prediction.too_large == prediction.cut_off == 0


@needs_nuclei
@pytest.mark.parametrize("statistics", ["image", "sample"])
def test_tiled_equals_whole_where_features_cannot_be_kept(
    predictor, small, statistics, monkeypatch
):
    """In rounds; and, of an image as small as this, from a look at all of it at once."""
    picture, whole = small
    monkeypatch.setattr(tiled_pass, "_KEPT_BYTES", 0)
    options = {"tile": 384, "overlap": 256, "statistics": statistics}
    assert_equal(predict_tiled(picture, predictor, **options), whole)


@needs_nuclei
def test_an_image_of_few_tiles_is_one_run_of_the_model(predictor, small):
    picture, _ = small
    model, runs, hooks = predictor.model, [], []
    for part in (model.backbone, model.object_stream.head.cls_subnet[0]):
        hooks.append(part.register_forward_pre_hook(lambda *_: runs.append(0)))
    prediction = TiledPrediction(picture, predictor, tile=384, overlap=256)
    first = list(prediction)
    for hook in hooks:
        hook.remove()
    levels = len(model.object_stream.in_features)
    assert len(runs) == (1 + levels) * len(prediction.tiles)
    # Threads take turns in any order, and what is found is the same to the last bit.
    for one, again in zip(first, prediction, strict=True):
        assert torch.equal(one.scores, again.scores)
        assert torch.equal(one.pred_boxes.tensor, again.pred_boxes.tensor)
        assert one.pred_masks.rle() == again.pred_masks.rle()


@needs_nuclei
def test_few_tiles_keep_their_features_while_there_is_room(predictor, monkeypatch):
    def way(height, width, tile, statistics="auto"):
        reader = ArrayReader(np.broadcast_to(np.uint8(0), (height, width, 3)))
        options = {"score_threshold": 0.5, "scale": 1.0, "most_objects": 9, "overlap": 256}
        run = TiledPass(reader, predictor, tile=tile, statistics=statistics, **options)
        return run._seen.__name__, run._samples()

    assert way(2500, 3500, 2048)[0] == "_together"
    assert way(2500, 3500, 2048, "tile")[0] == way(900, 900, 2048)[0] == "_one_by_one"
    assert way(6000, 6000, 2048)[0] == "_estimated"  # too much to be kept
    assert way(6000, 6000, 2048, "image")[0] == "_measured"
    name, windows = way(3000, 4000, 640)
    assert name == "_estimated" and 12 <= len(windows) < 20  # too many threads
    # At most as many pixels as a tile, and no more than a fortieth of a large image.
    assert len(way(9000, 12000, 2048)[1]) * 384**2 < 0.03 * 9000 * 12000
    assert len(way(20000, 20000, 2048)[1]) * 384**2 < 1.1 * 2048**2
    assert way(1000, 900, 384)[1] == [(0, 0, 900, 1000)]


@needs_nuclei
def test_an_estimate_comes_close_to_the_statistics_of_the_image(predictor, large):
    """Closer than a tile alone: dark and less dark pieces lie beside each other."""
    picture, _ = large
    options = {"score_threshold": 0.5, "scale": 1.0, "most_objects": 9}
    run = TiledPass(
        ArrayReader(picture), predictor, tile=640, overlap=256, statistics="image", **options
    )
    statistics = run._statistics

    def deviations(one):
        """Of means and standard deviations from those of the image, in standard deviations."""
        found = []
        for place, (mean, variance) in exact.items():
            deviation = variance.sqrt()
            found.append((one[place][0] - mean).abs() / deviation)
            found.append((one[place][1].sqrt() - deviation).abs() / deviation)
        return torch.cat(found).mean()

    next(run._seen())
    exact = dict(statistics._measured)
    windows = spread_windows(picture.shape[:2], 384, 4, 128)
    with run._computing():
        batch = [run._inputs(window) for window in windows]
        statistics.estimate(partial(run_streams, predictor.model, batch))
        estimated = deviations(statistics._measured)
        statistics.estimate(partial(run_streams, predictor.model, batch[:1]))
    assert estimated < deviations(statistics._measured)
    assert estimated < 0.15


@needs_nuclei
@pytest.mark.slow
@pytest.mark.parametrize(
    "tile, overlap, size",
    [
        *((tile, 256, (900, 1100)) for tile in (384, 512, 600, 640, 777, 1024)),
        *((tile, 384, (900, 1100)) for tile in (640, 700, 1024)),
        *((512, 256, size) for size in ((897, 513), (400, 1100), (640, 641))),
    ],
)
def test_tiled_equals_whole_for_any_geometry(predictor, large, tile, overlap, size):
    picture, whole = large
    if size != picture.shape[:2]:
        picture = np.ascontiguousarray(picture[: size[0], : size[1]])
        whole = predictor(picture)["instances"].to("cpu")
    assert_equal(predict_tiled(picture, predictor, tile=tile, overlap=overlap), whole)


@needs_nuclei
def test_objects_beyond_the_limit_of_a_tile_are_counted(predictor, small):
    picture, _ = small
    prediction = TiledPrediction(
        picture, predictor, tile=384, overlap=256, most_objects=1, statistics="tile"
    )
    assert sum(len(part) for part in prediction) < 9
    assert prediction.cut_off > 0


def test_objects_that_reach_beyond_what_their_tile_sees_are_counted():
    middle = Tile((128, 0, 256, 300), (64, 0, 320, 300), (300, 700))  # the image ends above, below
    boxes = [
        [0, 100, 150, 140],  # centre in the core, cut off on the left
        [100, 100, 256, 140],  # on the right
        [90, 0, 120, 300],  # from the upper to the lower end of the image: whole
        [0, 20, 40, 60],  # cut off, but its centre is in the core of a neighbour
        [1, 10, 250, 90],  # as wide as possible
    ]
    boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    found = Instances((300, 256), pred_boxes=boxes, regressed_boxes=boxes)
    assert reach_border(found, middle).tolist() == [True, True, False, False, False]


@needs_nuclei
def test_tiles_that_are_too_small_are_refused_with_what_would_do(predictor):
    with pytest.raises(ValueError, match="tiles of 300 px are too small.* 384 px"):
        predict_tiled(np.zeros((9, 9, 3), np.uint8), predictor, tile=300)
    with pytest.raises(ValueError, match="'rows'"):
        predict_tiled(np.zeros((9, 9, 3), np.uint8), predictor, statistics="rows")


@pytest.fixture
def predict_tiles(model_files, tmp_path):
    """``rdsnet predict --tile`` with a model of random weights, into tmp_path/out."""

    def call(path, *arguments):
        words = ["predict", "--config-file", model_files["config"]]
        words += ["--weights", model_files["weights"], "--input", str(path)]
        words += ["--output", str(tmp_path / "out"), "--score-threshold", "0"]
        words += ["--precision", "float32"]
        return main([*words, "--max-detections", "6", *arguments])

    return call


def noise(height, width):
    return np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_all_formats_have_the_same_objects(predict_tiles, tmp_path, capsys):
    picture = noise(300, 700)
    tifffile.imwrite(tmp_path / "slide.tif", picture, tile=(64, 64), photometric="rgb")
    arguments = ("--tile", "384", "--format", "geojson,coco,csv")
    assert predict_tiles(tmp_path / "slide.tif", *arguments) == 0
    captured = capsys.readouterr()
    assert "700 x 300 px: in tiles of 384 px" in captured.err
    assert "had more than 6 objects" in captured.out
    images, results = load_coco(tmp_path / "out")
    assert [(i["width"], i["height"]) for i in images["images"]] == [(700, 300)]
    assert {r["image_id"] for r in results} == {0} and len(results) > 6
    rows = (tmp_path / "out" / "objects.csv").read_text().splitlines()[1:]
    assert [row.split(",")[2] for row in rows] == [str(n) for n in range(len(results))]
    content = json.loads((tmp_path / "out" / "geojson" / "slide.geojson").read_text())
    assert content["type"] == "FeatureCollection" and len(content["features"]) == len(results)
    for feature, result in zip(content["features"], results, strict=True):
        check_feature(feature, coco_mask.decode(result["segmentation"]))


def check_feature(feature, mask):
    """QuPath's form, and an outline that encloses the pixels of the mask."""
    assert feature["type"] == "Feature" and len(feature["id"]) == 36
    properties = feature["properties"]
    assert properties["objectType"] == "detection"
    assert properties["classification"]["name"] in ("disc", "bar")
    assert all(0 <= c <= 255 for c in properties["classification"]["color"])
    assert properties["measurements"]["Area px^2"] == mask.sum()
    geometry = feature["geometry"]
    polygons = geometry["coordinates"]
    if geometry["type"] == "Polygon":
        polygons = [polygons]
    rings = [ring for polygon in polygons for ring in polygon]
    assert all(ring[0] == ring[-1] and len(ring) >= 4 for ring in rings)
    if mask.any():
        x = [point[0] for ring in rings for point in ring]
        y = [point[1] for ring in rings for point in ring]
        columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        assert abs(min(x) - columns[0]) <= 1 and abs(max(x) - columns[-1] - 1) <= 1
        assert abs(min(y) - rows[0]) <= 1 and abs(max(y) - rows[-1] - 1) <= 1


def test_auto_takes_tiles_for_what_would_be_shrunk_and_says_so(predict_tiles, tmp_path, capsys):
    np.save(tmp_path / "large.npy", noise(300, 700))  # the config shrinks it to 160 px
    np.save(tmp_path / "small.npy", noise(90, 120))
    assert predict_tiles(tmp_path / "large.npy", "--tile", "auto") == 0
    assert "since it is too large at once" in capsys.readouterr().err
    assert predict_tiles(tmp_path / "small.npy", "--tile", "auto") == 0
    assert "small enough" in capsys.readouterr().err
    assert (tmp_path / "out" / "geojson" / "large.geojson").exists()
    assert (tmp_path / "out" / "geojson" / "small.geojson").exists()


def test_what_does_not_fit_is_refused(predict_tiles, tmp_path, capsys):
    np.save(tmp_path / "image.npy", noise(30, 40))
    assert predict_tiles(tmp_path / "image.npy", "--tile", "384", "--format", "png") != 0
    assert "writes the formats coco, csv, geojson, labels" in capsys.readouterr().err
    assert predict_tiles(tmp_path / "image.npy", "--tile", "200") != 0
    assert "too small" in capsys.readouterr().err
    assert predict_tiles(tmp_path / "image.npy", "--tile", "384", "--batch-size", "2") != 0
    assert "--batch-size does not go with --tile" in capsys.readouterr().err
    assert predict_tiles(tmp_path / "image.npy", "--overlap", "64") != 0
    assert "only be given together with --tile" in capsys.readouterr().err
    (tmp_path / "model.onnx").write_bytes(b"of something")
    weights = ("--weights", str(tmp_path / "model.onnx"))
    assert predict_tiles(tmp_path / "image.npy", "--tile", "384", *weights) != 0
    assert "--tile needs the checkpoint" in capsys.readouterr().err
    (tmp_path / "broken.tif").write_bytes(b"II*\0broken")
    assert predict_tiles(tmp_path / "broken.tif", "--tile", "384") == 1
    assert "skipped" in capsys.readouterr().err


def test_an_image_without_objects_is_written_too(model_files, predict_tiles, tmp_path):
    np.save(tmp_path / "empty.npy", noise(300, 500))
    arguments = ("--tile", "384", "--score-threshold", "1", "--format", "geojson,coco")
    assert predict_tiles(tmp_path / "empty.npy", *arguments) == 0
    content = json.loads((tmp_path / "out" / "geojson" / "empty.geojson").read_text())
    assert content == {"type": "FeatureCollection", "features": []}
    images, results = load_coco(tmp_path / "out")
    assert len(images["images"]) == 1 and results == []


@needs_nuclei
def test_masks_of_a_part_are_those_of_the_image(predictor, small):
    picture, _ = small
    found = predict_tiled(picture, predictor, tile=384, overlap=256, statistics="tile")
    assert found.image_size == picture.shape[:2]
    dense = found.pred_masks.dense()
    assert dense.shape == (len(found), *picture.shape[:2])
    assert torch.equal(dense.sum((1, 2)), found.pred_masks.areas)


def test_geojson_has_the_holes_of_masks():
    mask = np.zeros((12, 14), np.uint8)
    mask[1:11, 2:12] = 1
    mask[3:6, 4:9] = 0
    mask[7:9, 5:7] = 0
    mask[4, 6] = 1  # an island in the first hole
    ring, island = sorted(exact_outlines(mask), key=len, reverse=True)

    def area(points):
        x, y = points.T
        return abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2

    assert sorted(area(points) for points in ring) == [4, 15, 100]
    assert [area(points) for points in island] == [1]
    assert ring[0].min(0).tolist() == [2, 1] and ring[0].max(0).tolist() == [12, 11]
