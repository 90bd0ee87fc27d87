"""Exported files as `--weights` of `rdsnet predict` and `rdsnet eval`."""

import csv
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.exporting import CLASSES, SIZE, found_by, need_onnx, random_image, tiny_config
from torch import nn

from rdsnet.checkpoint.description import save_model
from rdsnet.checkpoint.trained import prediction_config
from rdsnet.cli import main
from rdsnet.export import ExportedModel
from rdsnet.export.check import agreeing_objects, objects_of
from rdsnet.prediction import Predictor
from rdsnet.prediction.exported import ExportedPredictor, build_predictor

PAGE = Path(__file__).resolve().parents[2] / "docs" / "export.md"


@pytest.fixture(scope="module")
def compact_file(weights, tmp_path_factory):
    need_onnx()
    path = tmp_path_factory.mktemp("compact") / "compact.onnx"
    assert main(["export", "--weights", weights, "--output", str(path), "--compact"]) == 0
    return str(path)


@pytest.fixture(scope="module", params=["dense", "compact"])
def file(request):
    """Either form of the model in one ONNX file."""
    name = "onnx_file" if request.param == "dense" else "compact_file"
    return request.getfixturevalue(name)


@pytest.fixture
def photos(tmp_path):
    """Images of several sizes, that are resized on their way in."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate([(90, 140), (200, 110), SIZE]):
        image = random_image(*size, seed=number).permute(1, 2, 0).numpy()
        cv2.imwrite(str(folder / f"{number}.png"), image)
    return folder


def config(weights, *opts, threshold=None, **more):
    return prediction_config(None, weights, threshold, opts, **more)


def test_predictor_gives_what_the_model_gives(file, weights, photos):
    exported, model = build_predictor(config(file)), Predictor(config(weights))
    assert isinstance(exported, ExportedPredictor)
    for path in sorted(photos.iterdir()):
        image = cv2.imread(str(path))
        found, expected = exported(image)["instances"], model(image)["instances"]
        assert found.image_size == expected.image_size == image.shape[:2]
        assert found.get_fields().keys() == expected.get_fields().keys()
        agreeing = agreeing_objects(objects_of(expected), objects_of(found))
        assert len(agreeing) > 10 and agreeing.float().mean() > 0.9


def rows(folder):
    with open(folder / "objects.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_predict_writes_what_it_writes_for_the_checkpoint(file, weights, photos, model, tmp_path):
    lowest = str(model.object_stream.score_threshold + 1e-3)
    for name, given in (("file", file), ("model", weights)):
        assert main([
            "predict", "--weights", given, "--input", str(photos), "--format", "csv,coco,png",
            "--output", str(tmp_path / name), "--score-threshold", lowest,
            "--classes", "disc", "bar", *([] if name == "file" else ["--precision", "float32"]),
        ]) == 0  # fmt: skip
    found, expected = (rows(tmp_path / name) for name in ("file", "model"))
    written = [sorted(p.name for p in (tmp_path / n).rglob("*")) for n in ("file", "model")]
    assert written[0] == written[1] and len(expected) > 10
    names = [[(row["file"], row["class"]) for row in one] for one in (found, expected)]
    assert sorted(names[0]) == sorted(names[1])
    files = ("coco_instances_results.json", "images.json")
    results, images = (json.loads((tmp_path / "file" / name).read_text()) for name in files)
    sizes = {image["id"]: [image["height"], image["width"]] for image in images["images"]}
    assert all(one["segmentation"]["size"] == sizes[one["image_id"]] for one in results)


def test_evaluation_gives_the_figures_of_the_checkpoint(onnx_file, weights, photos, tmp_path):
    content = {
        "images": [
            {"id": int(path.stem), "file_name": path.name, "height": h, "width": w}
            for path in photos.iterdir()
            for h, w in [cv2.imread(str(path)).shape[:2]]
        ],
        "annotations": [
            {"id": n + 1, "image_id": n, "category_id": id_, "iscrowd": 0, "area": 400}
            | {"bbox": [5, 6, 20, 20], "segmentation": [[5, 6, 25, 6, 25, 26, 5, 26]]}
            for n, (id_, _) in enumerate(CLASSES)
        ],
        "categories": [{"id": id_, "name": name} for id_, name in CLASSES],
    }
    (tmp_path / "photos.json").write_text(json.dumps(content))
    files = ["photos", str(tmp_path / "photos.json"), str(photos)]
    results = {}
    for name, given in (("file", onnx_file), ("model", weights)):
        output = tmp_path / name
        assert main([
            "eval", "--weights", given, "DATASETS.TEST", "('photos',)", "DATASETS.COCO_FILES",
            str([files]), "OUTPUT_DIR", str(output),
            "DATALOADER.NUM_WORKERS", "0", "TEST.REPORT", "False",
        ]) == 0  # fmt: skip
        results[name] = json.loads(
            (output / "inference" / "coco_instances_results.json").read_text()
        )
    assert len(results["file"]) == len(results["model"]) > 0
    scores = [[one["score"] for one in results[name]] for name in ("file", "model")]
    np.testing.assert_allclose(*scores, atol=1e-4)


def test_what_the_file_cannot_do_is_refused_with_a_remedy(onnx_file):
    for opts, more, message in (
        (["MODEL.RDSNET.MBRM.METHOD", "none"], {}, "--opts MODEL.RDSNET.MBRM.METHOD none"),
        (["INPUT.FORMAT", "RGB"], {}, "INPUT.FORMAT is BGR in"),
        ([], {"threshold": 1e-6}, "again with --score-threshold 1e-06"),
        ([], {"max_detections": 77}, "again with --max-detections 77"),
        (["MODEL.RDSNET.INFERENCE.PRECISION", "bf16"], {}, "computes in float32, not in bf16"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            ExportedModel(config(onnx_file, *opts, **more))


def test_fewer_and_surer_objects(onnx_file, photos):
    image = cv2.imread(str(photos / "0.png"))
    everything = build_predictor(config(onnx_file))(image)["instances"]
    best = build_predictor(config(onnx_file, max_detections=4))
    assert torch.equal(best(image)["instances"].scores, everything.scores[:4])
    assert best.was_cut_off
    middle = float(everything.scores[9] + everything.scores[10]) / 2
    surer = build_predictor(config(onnx_file, threshold=middle))
    assert torch.equal(surer(image)["instances"].scores, everything.scores[:10])
    none = build_predictor(config(onnx_file, threshold=0.99))
    assert len(none(image)["instances"]) == 0


def test_foreign_damaged_and_missing_files_are_refused(onnx_file, photos, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    foreign = tmp_path / "foreign.onnx"
    value = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, [3, None, None])
    out = onnx.helper.make_tensor_value_info("masks", onnx.TensorProto.UINT8, [3, None, None])
    node = onnx.helper.make_node("Identity", ["image"], ["masks"])
    graph = onnx.helper.make_graph([node], "other", [value], [out])
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), foreign)
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(Path(onnx_file).read_bytes()[:5000])
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    for path, message in (
        (foreign, "is an ONNX file of something else"),
        (damaged, "the file is cut off or no ONNX file"),
        (text, "the file is cut off or no ONNX file"),
        (tmp_path / "none.onnx", "do not exist"),
    ):
        arguments = ["--weights", str(path), "--input", str(photos)]
        assert main(["predict", *arguments, "--output", str(tmp_path / "o")]) == 2
        message_shown = capsys.readouterr().err
        assert message in message_shown and path.name in message_shown
    assert not (tmp_path / "o").exists()


def test_other_commands_ask_for_the_checkpoint(onnx_file, tmp_path, capsys):
    assert main(["export", "--weights", onnx_file, "--output", str(tmp_path / "m.pt2")]) == 2
    assert "needs the checkpoint that it was made from" in capsys.readouterr().err


@pytest.mark.slow  # to be traced takes a minute
def test_file_of_one_size_says_so(tmp_path, monkeypatch):
    need_onnx()
    cfg = tiny_config("MODEL.RETINANET.SCORE_THRESH_TEST", 1e-4)
    from detectron2.modeling import build_model

    torch.manual_seed(0)
    save_model(tmp_path / "model.pth", build_model(cfg).state_dict(), cfg)
    path = tmp_path / "fixed.onnx"
    arguments = ["--weights", str(tmp_path / "model.pth"), "--output", str(path)]
    assert main(["export", *arguments, "--size", "64", "96"]) == 0
    import onnxruntime

    (image,) = onnxruntime.InferenceSession(str(path)).get_inputs()
    assert image.shape == [3, 64, 96]
    model = ExportedModel(config(str(path)))
    (found,) = model([{"image": random_image(64, 96), "height": 100, "width": 140}])
    assert found["instances"].image_size == (100, 140)
    with pytest.raises(ValueError, match="takes images of 64 x 96 pixels alone"):
        model([{"image": random_image(60, 96)}])


def test_decoder_of_the_guide(compact_file, model, tmp_path, monkeypatch):
    """Its masks are those of the model itself."""
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (program,) = (text for text in programs if "def decoded" in text)
    assert len(program[program.index("def resized") : program.index("session =")].split("\n")) <= 30
    (tmp_path / "output").mkdir()
    shutil.copy(compact_file, tmp_path / "output")
    names: dict = {}
    exec(program, names)
    assert names["masks"].shape[1:] == (256, 512)
    image = random_image(70, 110, seed=4)
    feeds = {"image": image.numpy(), "output_size": np.array([140, 99])}
    outputs = names["session"].run(None, feeds)
    results = dict(zip(json.loads(names["about"]["outputs"]), outputs))
    masks = torch.from_numpy(names["decoded"](results, names["threshold"]))
    expected = found_by(model, image, (140, 99))
    assert len(masks) == len(expected.masks) > 10
    assert masks.any() and (masks ^ expected.masks).float().mean() < 1e-3


def test_exported_model_is_a_module_in_evaluation_mode(onnx_file):
    model = ExportedModel(config(onnx_file))
    assert isinstance(model, nn.Module) and not model.training and not list(model.parameters())
