"""Images that are no photographs, predicted by every way in: command, tiles, Python, uploads."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import tifffile
from helpers.exporting import tiny_config, untrained
from helpers.predicting import load_coco

import rdsnet
from rdsnet.checkpoint.description import save_model
from rdsnet.cli import main
from rdsnet.data.channels import Channels, picture_of
from rdsnet.data.windows import LargeImage
from rdsnet.prediction import Predictor
from rdsnet.prediction.large import TiledPrediction
from rdsnet.prediction.uploads import RefusedUploadError, UploadPredictor

COUNT = 5
RANGES = [[100, 3000], [0, 5000], [50, 60000], [0, 4000], [200, 2500]]
SIZE = 72, 90


def numbers(seed=None):
    """(H, W, 5) uint16, with blobs in it."""
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.uniform(0, 8000, (*SIZE, COUNT)), (0, 0), 3)
    return noise.astype(np.uint16)


def config(scaling="dataset"):
    cfg = tiny_config("INPUT.CHANNELS", COUNT, "INPUT.SCALING", scaling)
    cfg.INPUT.SCALE_RANGES = RANGES if scaling == "dataset" else []
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [127.0] * COUNT, [64.0] * COUNT
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 96
    return cfg


@pytest.fixture(scope="module", params=["dataset", "image"])
def model(request, tmp_path_factory):
    """Config, and the path of a checkpoint of random weights."""
    cfg = config(request.param)
    path = tmp_path_factory.mktemp("weights") / "model_best.pth"
    save_model(path, untrained(cfg).state_dict(), cfg)
    cfg.MODEL.WEIGHTS = str(path)
    return cfg, str(path)


def predict(weights, inputs, out, *more):
    words = ["predict", "--weights", weights, "--input", *map(str, inputs), "--output", str(out)]
    return main([*words, "--precision", "float32", "--score-threshold", "0", *more])


def test_the_command_finds_what_the_model_finds(model, tmp_path):
    cfg, weights = model
    values = [numbers() for _ in range(4)]
    np.save(tmp_path / "a.npy", values[0])
    stack = np.moveaxis(np.stack(values[1:3]), -1, 1)
    tifffile.imwrite(tmp_path / "b.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    tifffile.imwrite(tmp_path / "c.tif", values[3], metadata={"axes": "YXC"})
    files = [tmp_path / name for name in ("a.npy", "b.tif", "c.tif")]
    out = tmp_path / "out"
    assert predict(weights, files, out, "--format", "coco,png") == 0
    images, results = load_coco(out)
    assert len(images["images"]) == 4
    predictor, channels = Predictor(cfg), Channels.of(cfg)
    for image, one in zip(images["images"], values, strict=True):
        instances = predictor(channels.scaled(one, ""))["instances"]
        scores = [r["score"] for r in results if r["image_id"] == image["id"]]
        assert len(scores) == len(instances) > 5
        np.testing.assert_allclose(sorted(scores), sorted(instances.scores.tolist()), atol=1e-5)
    assert len(list((out / "overlays").iterdir())) == 4


def test_another_number_of_channels_is_said_by_name(model, tmp_path, capsys):
    np.save(tmp_path / "good.npy", numbers())
    np.save(tmp_path / "two.npy", numbers()[:, :, :2])
    cv2.imwrite(str(tmp_path / "photo.png"), np.zeros((*SIZE, 3), np.uint8))
    files = [tmp_path / name for name in ("two.npy", "photo.png", "good.npy")]
    predict(model[1], files, tmp_path / "out", "--format", "coco")
    said = capsys.readouterr().err
    assert "two.npy has 2 channels, and the model expects 5 (INPUT.CHANNELS)" in said
    assert "photo.png has 3 channels, and the model expects 5" in said
    assert len(load_coco(tmp_path / "out")[0]["images"]) == 1


def test_windows_are_scaled_as_the_whole(model, tmp_path):
    cfg, _ = model
    channels, values = Channels.of(cfg), numbers()
    np.save(tmp_path / "a.npy", values)
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(values, -1, 0), compression="zlib")
    whole = channels.scaled(values, "")
    for name in ("a.npy", "a.tif"):
        with LargeImage(str(tmp_path / name), channels=channels) as image:
            assert image.shape == (*SIZE, COUNT)
            for _ in range(5):
                (y1, y2), (x1, x2) = (
                    np.sort(np.random.default_rng().choice(side + 1, 2, False)) for side in SIZE
                )
                np.testing.assert_array_equal(image.read((x1, y1, x2, y2)), whole[y1:y2, x1:x2])


def test_tiles_of_an_image_of_channels(model, tmp_path):
    cfg, weights = model
    np.save(tmp_path / "a.npy", np.tile(numbers(), (6, 6, 1)))
    options = ["--tile", "384", "--overlap", "64", "--format", "geojson"]
    assert predict(weights, [tmp_path / "a.npy"], tmp_path / "out", *options) == 0
    assert list((tmp_path / "out").rglob("*.geojson"))
    predictor = Predictor(cfg)
    with LargeImage(str(tmp_path / "a.npy"), channels=predictor.channels) as image:
        one = TiledPrediction(image, predictor, tile=2048, score_threshold=0.0)
        (inputs,) = [one._first._inputs(tile.window) for tile in one.tiles]
        assert inputs["image"].shape == (COUNT, 6 * SIZE[0], 6 * SIZE[1])
    photo = np.zeros((*SIZE, 3), np.uint8)
    with pytest.raises(ValueError, match="has 3 channels, the model expects 5"):
        list(TiledPrediction(photo, predictor, tile=2048))


def test_in_python(model, tmp_path):
    cfg, weights = model
    values = numbers()
    np.save(tmp_path / "a.npy", values)
    loaded = rdsnet.load(weights, precision="float32")
    of_file = loaded.predict(tmp_path / "a.npy", score_threshold=0.0)
    of_array = loaded.predict(values, score_threshold=0.0)
    assert len(of_file) > 5
    np.testing.assert_array_equal(of_file.boxes, of_array.boxes)
    expected = picture_of(Channels.of(cfg).scaled(values, ""))[:, :, ::-1]
    np.testing.assert_array_equal(of_array.image, expected)
    assert of_array.plot().mode == "RGB"
    with pytest.raises(ValueError, match=r"an array \(H, W, 5\), not \(72, 90, 4\)"):
        loaded.predict(values[:, :, :4])


def test_uploads(model, tmp_path):
    cfg, weights = model
    uploads, values, content = UploadPredictor(None, weights, 1.0), numbers(), io.BytesIO()
    tifffile.imwrite(content, np.moveaxis(values, -1, 0), imagej=True, metadata={"axes": "CYX"})
    (tmp_path / "x.tif").write_bytes(content.getvalue())
    for where in ({"stream": io.BytesIO(content.getvalue())}, {"path": tmp_path / "x.tif"}):
        upload = uploads.read("x.tif", **where)
        np.testing.assert_array_equal(upload.image, Channels.of(cfg).scaled(values, ""))
        assert uploads.prepare(upload)["image"].shape[0] == COUNT
    photo = io.BytesIO(cv2.imencode(".png", np.zeros((*SIZE, 3), np.uint8))[1].tobytes())
    with pytest.raises(RefusedUploadError, match="'y.png' has 3 channels, and the model expects 5"):
        uploads.read("y.png", stream=photo)
    array = io.BytesIO()
    np.save(array, values)
    array.seek(0)
    with pytest.raises(RefusedUploadError, match="not an image"):
        uploads.read("z.npy", stream=array)
    uploads.max_megapixels = 1e-3
    with pytest.raises(RefusedUploadError, match="megapixels"):
        uploads.read("x.tif", stream=io.BytesIO(content.getvalue()))
