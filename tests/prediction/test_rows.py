"""Objects as rows of Arrow tables: what RayPredictor answers is what the model finds."""

import os

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.structures import Boxes, Instances
from helpers.predicting import OBJECTS, picture
from PIL import Image

from rdsnet.checkpoint.trained import prediction_config
from rdsnet.data.images import read_image
from rdsnet.data.rle import decoded_runs
from rdsnet.ops import CompactMasks
from rdsnet.prediction import Predictor

pytest.importorskip("pyarrow", reason="needs rdsnet[ray]")

import pyarrow as pa  # noqa: E402

from rdsnet.prediction.ray_predictor import RayPredictor  # noqa: E402
from rdsnet.prediction.rows import SCHEMA, frame_of, instances_of, row_of  # noqa: E402
from rdsnet.prediction.sources import Frame  # noqa: E402


def random_masks(rng, size):
    """(N, H, W) bool: full, empty, one pixel, noise."""
    masks = rng.random((6, *size)) < rng.random((6, 1, 1))
    masks[0], masks[1], masks[2] = True, False, False
    masks[2, rng.integers(size[0]), rng.integers(size[1])] = True
    return masks


def test_runs_are_those_that_pycocotools_wrote():
    rng = np.random.default_rng()
    masks = random_masks(rng, rng.integers(1, 60, 2))
    rles = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    lengths, offsets = decoded_runs([rle["counts"].decode() for rle in rles])
    for n, mask in enumerate(masks):
        runs = lengths[offsets[n] : offsets[n + 1]]
        assert (np.repeat(np.arange(len(runs)) % 2, runs) == mask.flatten("F")).all()
    assert [part.tolist() for part in decoded_runs([])] == [[], [0]]


@pytest.mark.parametrize("count", [0, 6, 300])
def test_a_row_gives_the_objects_again(count):
    rng = np.random.default_rng()
    size = tuple(rng.integers(1, 60, 2).tolist())
    masks = torch.from_numpy(np.tile(random_masks(rng, size), (50, 1, 1)))[:count]
    rles = [coco_mask.encode(np.asfortranarray(mask.numpy(), np.uint8)) for mask in masks]
    lengths, offsets = decoded_runs([rle["counts"].decode() for rle in rles])
    windows = torch.tensor([[0, 0, size[1], size[0]]]).expand(count, 4)
    nothing = torch.zeros(count, 0)
    runs = torch.from_numpy(lengths), torch.from_numpy(offsets)
    compact = CompactMasks(size, windows, masks.sum((1, 2)), nothing, nothing, *runs)
    instances = Instances(
        size,
        pred_boxes=Boxes(torch.rand(count, 4) * 50),
        regressed_boxes=Boxes(torch.rand(count, 4) * 50),
        scores=torch.rand(count),
        pred_classes=torch.randint(9, (count,)),
        pred_masks=compact,
    )
    frame = Frame("a", "a.tif", np.zeros((*size, 3), np.uint8), index=3, is_one_of_many=True)
    row = row_of(frame, instances, cut_off=True)
    (row,) = pa.Table.from_pylist([{"path": "a.tif", **row}], SCHEMA).to_pylist()
    got = instances_of(row)
    for name in ("pred_boxes", "regressed_boxes"):
        assert torch.equal(got.get(name).tensor, instances.get(name).tensor)
    assert torch.equal(got.scores, instances.scores)
    assert torch.equal(got.pred_classes, instances.pred_classes)
    assert torch.equal(got.pred_masks.dense(), masks)
    assert torch.equal(got.pred_masks.areas, compact.areas)
    assert got.pred_masks.rle() == compact.rle()
    for n in range(count):
        x1, y1, x2, y2 = got.pred_masks.windows[n].tolist()
        assert torch.equal(got.pred_masks.crop(n), masks[n, y1:y2, x1:x2])
    again = frame_of(row, "a.tif")
    assert (again.index, again.is_one_of_many, again.image.shape) == (3, True, (*size, 3))
    assert row["cut_off"] and row["objects"] == count


@pytest.fixture
def photos(tmp_path):
    """Paths of: an image, a file that is none, three pages, another image."""
    names = ["a.png", "broken.png", "stack.tif", "b.png"]
    Image.fromarray(picture(60, 90, 1)).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    pages = [Image.fromarray(picture(50, 70, seed)) for seed in (2, 3, 4)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    Image.fromarray(picture(90, 60, 5)).save(tmp_path / "b.png")
    return [str(tmp_path / name) for name in names]


@pytest.mark.parametrize("kind", ["text", "bytes"])
def test_a_batch_gives_rows_in_its_order(kind, photos, model_files):
    predict = RayPredictor(
        model_files["weights"],
        model_files["config"],
        score_threshold=0.0,
        opts=["MODEL.RDSNET.INFERENCE.PRECISION", "float32"],
    )
    paths = [os.fsencode(path) for path in photos] if kind == "bytes" else photos
    table = predict({"path": np.array(paths, object), "id": np.array(["w", "x", "y", "z"])})
    assert isinstance(table, pa.Table) and table.schema.names == [*SCHEMA.names, "id"]
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == ["w", "x", "y", "y", "y", "z"]
    assert [row["path"] for row in rows] == [photos[k] for k in (0, 1, 2, 2, 2, 3)]
    assert [row["frame"] for row in rows] == [None, None, 0, 1, 2, None]
    assert "broken.png cannot be read" in rows[1]["error"] and rows[1]["boxes"] is None

    cfg = prediction_config(model_files["config"], model_files["weights"], 0.0)
    reference = Predictor(cfg)
    for k, (path, page) in {0: (0, 0), 2: (2, 0), 4: (2, 2), 5: (3, 0)}.items():
        image = read_image(photos[path], "BGR", page)
        expected = reference(image)["instances"]
        got = instances_of(rows[k])
        assert rows[k]["error"] is None and (rows[k]["height"], rows[k]["width"]) == image.shape[:2]
        assert len(got) == rows[k]["objects"] == OBJECTS == len(expected)
        assert torch.equal(got.pred_boxes.tensor, expected.pred_boxes.tensor)
        assert torch.equal(got.scores, expected.scores)
        assert got.pred_masks.rle() == expected.pred_masks.rle()
        assert rows[k]["cut_off"]


def test_an_address_is_read_as_the_file_behind_it(photos, model_files, tmp_path):
    predict = RayPredictor(model_files["weights"], model_files["config"], score_threshold=0.0)
    strange = tmp_path / "a b#1.png"
    strange.write_bytes((tmp_path / "a.png").read_bytes())
    addresses = [f"file://{path}" for path in (*photos, strange, tmp_path / "lost.png")]
    got = predict({"path": addresses}).to_pylist()
    expected = predict({"path": photos}).to_pylist()
    for row, other in zip(got, expected):
        assert row["path"] == f"file://{other['path']}"
        same = row.keys() - {"path", "error"}
        assert {name: row[name] for name in same} == {name: other[name] for name in same}
    assert f"file://{photos[1]}" in got[1]["error"] and "tmp" in str(tmp_path)
    assert got[-2]["boxes"] == expected[0]["boxes"]
    assert "lost.png' cannot be read" in got[-1]["error"]


def test_tiles_are_parts(photos, model_files):
    how = {"score_threshold": 0.0, "tiled": True, "tile": 512, "overlap": 64}
    predict = RayPredictor(model_files["weights"], model_files["config"], **how)
    rows = predict({"path": photos[:2]}).to_pylist()
    assert [row["part"] for row in rows] == [*range(len(rows) - 1), None]
    assert rows[-1]["error"] and sum(row["objects"] for row in rows[:-1]) >= OBJECTS
