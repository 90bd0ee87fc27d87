"""rdsnet predict: which files are read, what is written, what happens when something is wrong."""

import contextlib
import csv
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from helpers.predicting import OBJECTS, load_coco, picture, seen_images
from PIL import Image
from pycocotools.coco import COCO

import rdsnet
from rdsnet.checkpoint import load_config
from rdsnet.checkpoint.description import save_model
from rdsnet.cli import main
from rdsnet.prediction import pipeline
from rdsnet.prediction.output_names import OutputNames
from rdsnet.prediction.predictor import CountingPredictor
from rdsnet.prediction.sources import find_sources


def test_all_formats_are_written_with_the_names_and_ids_of_the_data(predict, tmp_path, capsys):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    assert predict(tmp_path / "a.png") == 0
    out = tmp_path / "out"
    images, results = load_coco(out)
    assert images["categories"] == [{"id": 4, "name": "disc"}, {"id": 9, "name": "bar"}]
    assert images["images"] == [
        {"id": 0, "file_name": str(tmp_path / "a.png"), "height": 60, "width": 90}
    ]
    assert len(results) == OBJECTS
    assert {result["category_id"] for result in results} <= {4, 9}
    assert {"bbox", "bbox_regressed", "segmentation", "score"} <= set(results[0])
    overlay = cv2.imread(str(out / "overlays" / "a.png"))
    assert overlay.shape[1] / overlay.shape[0] == pytest.approx(1.5, rel=0.01)
    labelme = json.loads((out / "labelme" / "a.json").read_text())
    assert (labelme["imageHeight"], labelme["imageWidth"]) == (60, 90)
    assert (out / "labelme" / labelme["imagePath"]).resolve() == (tmp_path / "a.png").resolve()
    assert {shape["label"] for shape in labelme["shapes"]} <= {"disc", "bar"}
    assert all(shape["shape_type"] == "polygon" for shape in labelme["shapes"])
    assert f"{OBJECTS} objects in 1 image" in capsys.readouterr().out


def test_results_are_loaded_by_pycocotools(predict, tmp_path):
    for k in range(3):
        Image.fromarray(picture(seed=k)).save(tmp_path / f"{k}.png")
    assert predict(*(tmp_path / f"{k}.png" for k in range(3))) == 0
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "out" / "images.json"))
        results = coco.loadRes(str(tmp_path / "out" / "coco_instances_results.json"))
    assert len(results.anns) == 3 * OBJECTS
    assert coco.imgs[2]["file_name"].endswith("2.png")
    masks = [results.annToMask(annotation) for annotation in results.loadAnns(results.getAnnIds(2))]
    assert {mask.shape for mask in masks} == {(60, 90)}


def test_images_of_every_kind_are_read(predict, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rgb = picture()
    Image.fromarray(rgb[..., 0]).save(folder / "grey.png")
    Image.fromarray(np.dstack([rgb, rgb[..., :1]])).save(folder / "rgba.png")
    Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(folder / "sixteen.png")
    Image.fromarray(rgb).quantize(16).save(folder / "palette.png")
    Image.fromarray(rgb[..., 0] > 100).save(folder / "bits.png")
    Image.fromarray(rgb).save(folder / "upper.JPG")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter turn
    Image.fromarray(rgb).save(folder / "turned.jpg", exif=exif)
    (folder / "notes.txt").write_text("not an image, and not reported")
    assert predict(folder) == 0
    images, _ = load_coco(tmp_path / "out")
    sizes = {Path(i["file_name"]).name: (i["height"], i["width"]) for i in images["images"]}
    kinds = ("bits.png", "grey.png", "palette.png", "rgba.png", "sixteen.png", "upper.JPG")
    assert sizes == {**dict.fromkeys(kinds, (60, 90)), "turned.jpg": (90, 60)}
    assert list(sizes) == sorted(sizes)


def test_grey_levels_of_16_bit_images_are_kept(predict, tmp_path, monkeypatch):
    seen = seen_images(monkeypatch)
    grey = picture()[..., 0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    assert predict(tmp_path / "sixteen.png") == 0
    assert (seen[0] == grey[..., None]).all()


def test_unreadable_files_are_reported_and_skipped(predict, tmp_path, capsys):
    Image.fromarray(picture()).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("this is no image")
    names = ("cut.png", "empty.jpg", "good.png", "text.jpg")
    assert predict(*(tmp_path / name for name in names)) == 1
    output = capsys.readouterr()
    for name in ("cut.png", "empty.jpg", "text.jpg"):
        assert name in output.err
    assert "good.png" not in output.err
    assert "3 files could not be read" in output.out
    images, _ = load_coco(tmp_path / "out")
    assert [Path(image["file_name"]).name for image in images["images"]] == ["good.png"]


def test_objects_below_the_threshold_are_left_out(predict, tmp_path, capsys):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    everything = ["--format", "coco", "--score-threshold", "0"]
    assert predict(tmp_path / "a.png", arguments=everything) == 0
    scores = sorted(result["score"] for result in load_coco(tmp_path / "out")[1])
    middle = (scores[2] + scores[3]) / 2
    assert scores[2] < middle < scores[3]
    threshold = ["--format", "coco", "--score-threshold", str(middle)]
    assert predict(tmp_path / "a.png", arguments=threshold) == 0
    kept = [result["score"] for result in load_coco(tmp_path / "out")[1]]
    assert sorted(kept) == pytest.approx(scores[3:])
    capsys.readouterr()
    nothing = ["--format", "coco,labelme,png", "--score-threshold", "1"]
    assert predict(tmp_path / "a.png", arguments=nothing) == 0
    assert "lower --score-threshold" in capsys.readouterr().out
    images, results = load_coco(tmp_path / "out")
    assert len(images["images"]) == 1 and results == []
    assert json.loads((tmp_path / "out" / "labelme" / "a.json").read_text())["shapes"] == []


def test_objects_that_are_cut_off_are_told_and_how_to_keep_them(predict, tmp_path, capsys):
    """Exactly as many objects as allowed are not too many."""
    for k in range(2):  # without padding, in which boxes are found that are then outside
        Image.fromarray(picture(96, 160, seed=k)).save(tmp_path / f"{k}.png")
    arguments = ["--format", "coco", "--score-threshold", "0.01"]
    # Of random weights all anchors are candidates: none is left out before NMS.
    all_candidates = ["--opts", "MODEL.RETINANET.TOPK_CANDIDATES_TEST", "1000000"]

    def run(*more):
        files = tmp_path / "0.png", tmp_path / "1.png"
        assert predict(*files, arguments=[*arguments, *more[:2], *all_candidates, *more[2:]]) == 0
        found = [result["image_id"] for result in load_coco(tmp_path / "out")[1]]
        return sorted((found.count(0), found.count(1))), capsys.readouterr().out

    found, said = run()
    assert found == [OBJECTS, OBJECTS]
    assert f"2 images had more than {OBJECTS} objects" in said and "--max-detections" in said
    (fewer, more), said = run("--max-detections", "3000")
    assert OBJECTS < fewer < more < 3000 and "cut off" not in said
    assert run("--max-detections", str(more))[0] == [fewer, more]
    assert "cut off" not in run("--max-detections", str(more))[1]
    found, said = run("--max-detections", str(fewer))
    assert found == [fewer, fewer] and f"1 image had more than {fewer} objects" in said
    # Options at the end of the line come after all other arguments.
    found, said = run("--max-detections", "5", "TEST.DETECTIONS_PER_IMAGE", "1")
    assert found == [1, 1] and "2 images had more than 1 object;" in said


def test_more_detections_look_at_more_candidates(model_files):
    usual = load_config(model_files["config"])
    assert usual.MODEL.RETINANET.TOPK_CANDIDATES_TEST == 1000
    many = load_config(model_files["config"], max_detections=450)
    assert many.TEST.DETECTIONS_PER_IMAGE == 450
    assert many.MODEL.RETINANET.TOPK_CANDIDATES_TEST == 4500
    few = load_config(model_files["config"], max_detections=3)
    assert few.MODEL.RETINANET.TOPK_CANDIDATES_TEST == 1000


def test_interrupted_run_leaves_complete_json(predict, tmp_path, monkeypatch):
    for k in range(3):
        Image.fromarray(picture(seed=k)).save(tmp_path / f"{k}.png")
    original, calls = CountingPredictor.find, []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(CountingPredictor, "find", interrupt)
    assert predict(*(tmp_path / f"{k}.png" for k in range(3))) == 130
    images, results = load_coco(tmp_path / "out")
    assert len(images["images"]) == 1 and len(results) == OBJECTS


def test_classes_have_numbers_when_the_training_data_is_gone(predict, model_files, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    hidden = model_files["json"].rename(tmp_path / "elsewhere.json")
    try:
        # A name that nothing in this process has registered before.
        files = repr([["cli_test_gone", str(model_files["json"]), str(tmp_path)]])
        opts = ["--opts", "DATASETS.COCO_FILES", files, "DATASETS.TRAIN", "('cli_test_gone',)"]
        opts += ["DATASETS.TEST", "('cli_test_gone',)"]
        arguments = ["--format", "coco", "--score-threshold", "0", *opts]
        assert predict(tmp_path / "a.png", arguments=arguments) == 0
    finally:
        hidden.rename(model_files["json"])
    images, results = load_coco(tmp_path / "out")
    assert images["categories"] == [{"id": 0, "name": "class 0"}, {"id": 1, "name": "class 1"}]
    assert {result["category_id"] for result in results} <= {0, 1}


@pytest.fixture
def own_config(model_files, tmp_path):
    """The model with names in its config, whose json has never existed."""
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file(model_files["config"])
    cfg.DATASETS.COCO_FILES = [["never", "/never/was.json", "/never"]]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("never",)
    cfg.DATASETS.CLASSES = [[4, "disc"], [9, "bar, long"]]
    return cfg


@pytest.mark.parametrize("place", ["in the checkpoint", "beside it"])
def test_config_and_names_come_with_the_checkpoint(place, own_config, model_files, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    weights = tmp_path / "model" / "weights.pth"
    weights.parent.mkdir()
    content = torch.load(model_files["weights"], weights_only=True)
    if place == "in the checkpoint":
        save_model(weights, content["model"], own_config)
    else:
        torch.save(content, weights)
        (weights.parent / "config.yaml").write_text(own_config.dump())
    words = ["predict", "--weights", str(weights), "--input", str(tmp_path / "a.png")]
    words += ["--output", str(tmp_path / "out"), "--format", "coco", "--score-threshold", "0"]
    many = ["--opts", "TEST.DETECTIONS_PER_IMAGE", "200"]  # the first are all of one class
    assert main([*words, *many]) == 0
    images, results = load_coco(tmp_path / "out")
    assert images["categories"] == [{"id": 4, "name": "disc"}, {"id": 9, "name": "bar, long"}]
    of_class = [result for result in results if result["category_id"] == 9]
    assert 0 < len(of_class) < len(results)
    for given in (["bar, long"], ["9"]):
        assert main([*words, "--classes", *given, *many]) == 0
        assert load_coco(tmp_path / "out")[1] == of_class
    assert main([*words, "--classes", "disc,9", *many]) == 0
    assert load_coco(tmp_path / "out")[1] == results


def test_classes_of_one_name_are_told_apart_and_chosen_together(predict, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    # 200 detections: the first are all of one class.
    words = ["--score-threshold", "0", "--format", "csv", "--opts"]
    words += ["TEST.DETECTIONS_PER_IMAGE", "200", "DATASETS.COCO_FILES", "[]"]
    words += ["DATASETS.CLASSES", "[[4,'knot'],[9,'knot']]"]

    def classes(*chosen):
        arguments = [*(["--classes", *chosen] if chosen else []), *words]
        assert predict(tmp_path / "a.png", arguments=arguments) == 0
        with open(tmp_path / "out" / "objects.csv") as file:
            return [row["class"] for row in csv.DictReader(file)]

    everything = classes()
    assert set(everything) == {"knot (id 4)", "knot (id 9)"}
    assert classes("knot") == everything
    second = [name for name in everything if name == "knot (id 9)"]
    assert classes("9") == classes("knot (id 9)") == second


def test_unknown_class_lists_the_known(predict, tmp_path, capsys):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    assert predict(tmp_path / "a.png", arguments=["--classes", "cat"]) == 2
    assert "the model has no 'cat'. It has: disc, bar" in capsys.readouterr().err


def test_masks_and_csv_say_the_same_as_coco(predict, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    assert predict(tmp_path / "a.png", arguments=["--format", "coco,masks,csv"]) == 0
    arguments = ["--format", "coco,masks,csv", "--score-threshold", "0"]
    assert predict(tmp_path / "a.png", arguments=arguments) == 0
    results = load_coco(tmp_path / "out")[1]
    with open(tmp_path / "out" / "objects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results) == OBJECTS
    names = {4: "disc", 9: "bar"}
    for n, (row, result) in enumerate(zip(rows, results, strict=True)):
        mask = cv2.imread(str(tmp_path / "out" / "masks" / "a" / f"{n:03d}.png"), -1)
        assert set(np.unique(mask)) <= {0, 255}
        assert (mask > 0).tolist() == coco_mask.decode(result["segmentation"]).astype(bool).tolist()
        assert int(row["area"]) == (mask > 0).sum() and row["object"] == str(n)
        x, y, width, height = result["bbox"]
        box = [float(row[key]) for key in ("x1", "y1", "x2", "y2", "width", "height")]
        assert box == pytest.approx([x, y, x + width, y + height, width, height], abs=0.011)
        assert row["class"] == names[result["category_id"]] and row["frame"] == ""
        assert float(row["score"]) == pytest.approx(result["score"], abs=1e-4)
    assert len(list((tmp_path / "out" / "masks" / "a").iterdir())) == OBJECTS


def test_files_of_the_same_name_get_different_outputs(predict, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.fromarray(picture()).save(tmp_path / folder / "cat.png")
    assert predict(tmp_path / "one", tmp_path / "two") == 0
    assert {p.name for p in (tmp_path / "out" / "overlays").iterdir()} == {"cat.png", "cat_2.png"}
    assert {p.name for p in (tmp_path / "out" / "labelme").iterdir()} == {"cat.json", "cat_2.json"}


def test_overlay_never_overwrites_its_image(predict, tmp_path, capsys):
    folder = tmp_path / "out" / "overlays"
    folder.mkdir(parents=True)
    Image.fromarray(picture()).save(folder / "a.png")
    before = (folder / "a.png").read_bytes()
    assert predict(folder) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert (folder / "a.png").read_bytes() == before


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("missing.jpg", ["missing.jpg", "does not exist"]),
        ("empty", ["empty", "has no image and no video", "**"]),
        ("*.nothing", ["*.nothing", "no file fits"]),
    ],
)
def test_input_that_names_nothing_is_an_error_before_the_model_is_loaded(
    given, words, predict, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(pipeline, "Predictor", None)
    (tmp_path / "empty").mkdir()
    assert predict(tmp_path / given) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "cut"])
def test_weights_that_are_missing_or_damaged_are_named(kind, model_files, tmp_path, capsys):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    weights = tmp_path / f"{kind}.pth"
    whole = Path(model_files["weights"]).read_bytes()
    content = {"empty": b"", "text": b"this is no checkpoint", "cut": whole[: len(whole) // 2]}
    if kind in content:
        weights.write_bytes(content[kind])
    words = ["predict", "--config-file", model_files["config"], "--weights", str(weights)]
    words += ["--input", str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert str(weights) in message and "Traceback" not in message
    assert ("do not exist" if kind == "missing" else "cut off or not a checkpoint") in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--format", "png,pdf"],
            "'pdf' is not among the formats png, mp4, coco, labelme, masks, csv",
        ),
        (["--score-threshold", "50"], "'50' is not a number from 0 to 1"),
    ],
)
def test_wrong_arguments_are_explained(predict, tmp_path, arguments, words, capsys):
    with pytest.raises(SystemExit) as exit_:
        predict(tmp_path / "a.png", arguments=arguments)
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err


def test_inputs_are_found_in_their_order_and_once(tmp_path):
    for name in ("b/2.png", "b/1.jpg", "b/inner/3.png", "a.dat"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    given = [
        tmp_path / "b",
        tmp_path / "b" / "1.jpg",
        tmp_path / "**" / "*.png",
        tmp_path / "a.dat",
    ]
    found = find_sources([str(path) for path in given]).sources
    names = [source.path.relative_to(tmp_path).as_posix() for source in found]
    assert names == ["b/1.jpg", "b/2.png", "b/inner/3.png", "a.dat"]


def test_numbers_are_added_to_names_that_are_taken():
    names = OutputNames()
    found = [names.new(stem) for stem in ("cat", "Cat", "cat", "cat_2", "dog")]
    assert found == ["cat", "Cat_2", "cat_3", "cat_2_2", "dog"]
    assert len({name.lower() for name in found}) == 5
