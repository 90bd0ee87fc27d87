"""The path of a new user: check the data, train on it, lose the json, predict."""

import csv
import json
import shutil

import cv2
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor

import rdsnet
from rdsnet.checkpoint import load_config
from rdsnet.checkpoint.description import read_config
from rdsnet.cli import main
from rdsnet.data.shapes import CLASSES, make_shapes_dataset


@pytest.mark.slow
def test_check_train_predict(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    paths = make_shapes_dataset(tmp_path / "data", num_train=8, num_val=3, size=(96, 128), seed=1)
    train = [paths["train_json"], paths["train_images"]]
    val = [paths["val_json"], paths["val_images"]]
    assert main(["check-data", *train]) == 0
    assert main(["check-data", *val]) == 0

    words = ["train", "--data", *train, "--val", *val, "--config", "small"]
    # In full: Detectron2 remembers by the folder's name that it logs there, for every test.
    words += ["--output", str(tmp_path / "out")]
    words += ["--iterations", "30", "--batch-size", "2", "--ema", "--device", "cpu"]
    # Two evaluations; and input and anchors for images this small.
    words += ["TEST.EVAL_PERIOD", "15", "DATALOADER.NUM_WORKERS", "0", "SEED", "1"]
    words += ["INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "python train_net.py --config-file" in printed
    assert "box without MBRM" in printed  # the evaluation's table
    best = tmp_path / "out" / "model_best.pth"
    content = torch.load(best, weights_only=True)
    assert content["best"]["metric"] == "segm/AP" and "optimizer" not in content
    assert (tmp_path / "out" / "mbrm" / "kernel.json").is_file()
    final = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)
    assert final["iteration"] == 29 and int(final["ema"]["n_averaged"]) == 30

    # The checkpoint serves as config, too.
    words = ["eval", "--config-file", str(best), "MODEL.WEIGHTS", str(best)]
    assert main([*words, "OUTPUT_DIR", str(tmp_path / "evaluated")]) == 0
    assert "box without MBRM" in capsys.readouterr().out

    # Another process, another place, no data.
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    shutil.move(paths["val_images"], tmp_path / "photos")
    shutil.rmtree(tmp_path / "data")
    DatasetCatalog.clear()
    MetadataCatalog.clear()
    weights = str(tmp_path / "elsewhere" / "model_best.pth")
    words = ["predict", "--weights", weights, "--input", "photos", "--output", "predictions"]
    words += ["--format", "png,coco,csv,masks", "--score-threshold", "0"]
    assert main([*words]) == 0
    images = json.loads((tmp_path / "predictions" / "images.json").read_text())
    assert [c["name"] for c in images["categories"]] == list(CLASSES)
    assert [c["id"] for c in images["categories"]] == [1, 2, 3, 4, 5]
    rows = list(csv.DictReader(open(tmp_path / "predictions" / "objects.csv")))
    assert rows and {row["class"] for row in rows} <= set(CLASSES)
    assert len(list((tmp_path / "predictions" / "overlays").iterdir())) == 3

    # And as Detectron2's users do it.
    stored = read_config(weights)
    assert [name for _, name in stored.DATASETS.CLASSES] == list(CLASSES)
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file(str(tmp_path / "elsewhere" / "config.yaml"))
    cfg.MODEL.WEIGHTS = weights
    predictor = DefaultPredictor(cfg)
    assert predictor.metadata.thing_classes == list(CLASSES)
    image = cv2.imread(str(next((tmp_path / "photos").iterdir())))
    assert predictor(image)["instances"].pred_masks.shape[1:] == image.shape[:2]


SHORT = ("--config", "small", "--iterations", "2", "--batch-size", "2", "--device", "cpu")
SHORT += (
    "DATALOADER.NUM_WORKERS",
    "0",
    "INPUT.MIN_SIZE_TRAIN",
    "(96,)",
    "SOLVER.WARMUP_ITERS",
    "1",
)
SHORT += ("INPUT.MIN_SIZE_TEST", "96", "MODEL.RDSNET.MBRM.FIT.MAX_ITER", "2", "TEST.REPORT", "True")


def as_other_tools_write_it(content):
    """Ids that are UUIDs and hashes, sizes as floats, polygons as points, in place."""
    images = {image["id"]: f"{image['id']:08x}-ab" for image in content["images"]}
    categories = {c["id"]: 2**64 - c["id"] for c in content["categories"]}
    for image in content["images"]:
        image["id"], image["width"] = images[image["id"]], float(image["width"])
    for category in content["categories"]:
        category["id"] = categories[category["id"]]
    for annotation in content["annotations"]:
        annotation["id"] = -(10**25) - annotation["id"]
        annotation["image_id"] = images[annotation["image_id"]]
        annotation["category_id"] = str(categories[annotation["category_id"]])
        x, y, width, height = annotation["bbox"]
        corners = [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]
        annotation["segmentation"] = [corners]


@pytest.mark.slow
@pytest.mark.parametrize("objects", [True, False])
def test_what_the_check_passes_is_trained_evaluated_and_reported(
    tmp_path, monkeypatch, capsys, objects
):
    monkeypatch.chdir(tmp_path)
    paths = make_shapes_dataset(tmp_path / "data", num_train=6, num_val=3, size=(96, 128), seed=2)
    for split in ("train", "val"):
        content = json.loads(open(paths[f"{split}_json"]).read())
        as_other_tools_write_it(content)
        if split == "val" and not objects:
            content["annotations"] = []
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    train, val = ("train.json", paths["train_images"]), ("val.json", paths["val_images"])
    assert main(["check-data", *train]) == 0
    assert "Training would work." in capsys.readouterr().out
    # In full: Detectron2 remembers by the folder's name that it logs there, for every test.
    out = str(tmp_path / "out")
    words = ["train", "--data", *train, "--val", *val, "--output", out, *SHORT]
    assert main([*words, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "out/inference/coco_instances_results.json").read_text())
    assert {r["image_id"] for r in results} == {f"{n:08x}-ab" for n in (1, 2, 3)}
    assert {r["category_id"] for r in results} <= {2**64 - n for n in range(1, 6)}
    report = (tmp_path / "out" / "report.html").read_text()
    assert "could not be made" not in report
    best = torch.load(tmp_path / "out" / "model_best.pth", weights_only=True)
    assert ("best" in best) is objects
    assert ("nothing was compared" in printed) is not objects
    assert ("has no objects (crowds do not count)" in printed) is not objects


def test_config_of_a_checkpoint_without_one_is_explained(tmp_path, capsys):
    torch.save({"model": {}}, tmp_path / "bare.pth")
    with pytest.raises(ValueError, match="holds no config"):
        load_config(str(tmp_path / "bare.pth"))
    words = ["predict", "--weights", str(tmp_path / "bare.pth"), "--input", __file__]
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    assert "give the config that they were trained with" in capsys.readouterr().err
