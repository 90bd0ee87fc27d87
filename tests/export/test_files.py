"""Files of `rdsnet export`: what they find, what they say about themselves, what is refused."""

import copy
import json
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from exporting import assert_same, file_and_model, need_onnx, random_image, untrained
from torch import nn

import rdsnet
from rdsnet.checkpoint.description import save_model
from rdsnet.cli import main
from rdsnet.export import exporting, files
from rdsnet.export.check import objects_of
from rdsnet.export.graph import ImageToObjects, Objects
from rdsnet.modeling import MBRM
from rdsnet.modeling.refinement import EnclosingBoxes

SIZE = (64, 96)
CLASSES = [[4, "disc"], [9, "bar"], [11, "Größe"]]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "export.md"


def tiny_config(*opts):
    """As small as a model can be: exporting takes time by the number of its layers."""
    cfg = rdsnet.get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "RDSNet"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_rdsnet_small_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = "GN"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.RDSNET.PIXEL_STREAM.CONV_DIM = 32
    cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "p4", "p5"]
    cfg.MODEL.RETINANET.NUM_CLASSES = len(CLASSES)
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0]]
    cfg.TEST.DETECTIONS_PER_IMAGE = 30
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 60, 96
    cfg.DATASETS.CLASSES = CLASSES
    cfg.merge_from_list(list(opts))
    return cfg


def empty_image():
    return torch.full((3, *SIZE), 128, dtype=torch.uint8)


@pytest.fixture(scope="module")
def model():
    """It has learnt to see objects in random colours and none in a grey image."""
    model = untrained(tiny_config())
    head, images = model.object_stream.head, [empty_image(), random_image(*SIZE, seed=9)]

    def logits():
        predictions = [ImageToObjects(model).predict(image)[1].logits for image in images]
        return [torch.cat(levels, 1) for levels in predictions]

    optimizer = torch.optim.Adam(head.cls_score.parameters(), 0.01)
    for _ in range(20):
        empty, full = logits()
        optimizer.zero_grad()
        (empty.logsumexp(1) - full.mean(1)).sum().backward()
        optimizer.step()
    with torch.no_grad():
        empty, full = (x.sigmoid() for x in logits())
    model.object_stream.score_threshold = float(empty.max()) + 1e-4
    assert (full > empty.max() + 1e-4).sum() > 200
    return model


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    """A checkpoint that holds its config."""
    threshold = model.object_stream.score_threshold
    cfg = tiny_config("MODEL.RETINANET.SCORE_THRESH_TEST", threshold)
    path = tmp_path_factory.mktemp("weights") / "model_best.pth"
    save_model(path, model.state_dict(), cfg)
    return str(path)


@pytest.fixture(scope="module", params=["onnx", "torch"])
def exported(request, weights, tmp_path_factory):
    """(path, name of its format) of a file made by the command."""
    if request.param == "onnx":
        need_onnx()
    folder = tmp_path_factory.mktemp("exported") / "new folder"
    path = folder / f"model{files.FORMATS[request.param]}"
    assert main(["export", "--weights", weights, "--output", str(path)]) == 0
    assert os.listdir(folder) == [path.name]
    return path, request.param


@pytest.fixture(scope="module")
def run(exported):
    return files.read(*exported)


def found_by(model, image):
    with torch.no_grad():
        return objects_of(model([{"image": image}])[0]["instances"])


@pytest.mark.parametrize("seed", range(4))
def test_file_finds_what_the_model_finds(run, model, seed):
    image = random_image(*SIZE, seed=seed)
    expected = found_by(model, image)
    assert len(expected.scores) == 30 and len(expected.classes.unique()) > 1
    assert_same(run(image), expected)


def test_file_on_an_image_without_objects(run, model):
    assert len(found_by(model, empty_image()).scores) == 0
    found = run(empty_image())
    assert [tuple(x.shape) for x in found] == [(0, 4), (0, 4), (0,), (0,), (0, *SIZE)]
    assert_same(found, found_by(model, empty_image()))


@pytest.mark.skipif("RDSNET_DATA" not in os.environ, reason="RDSNET_DATA names no data folder")
def test_file_on_photographs(run, model):
    folder = Path(os.environ["RDSNET_DATA"]) / "tiny_coco"
    for path in sorted(folder.glob("val2017/*.jpg"))[:3]:
        photo = cv2.resize(cv2.imread(str(path)), SIZE[::-1], interpolation=cv2.INTER_AREA)
        image = torch.from_numpy(photo).permute(2, 0, 1).contiguous()
        expected = found_by(model, image)
        assert len(expected.scores) > 5
        assert_same(run(image), expected)


def about(path, file_format):
    """The texts in a file, read without this package."""
    if file_format == "torch":
        extra = {"rdsnet.json": ""}
        torch.export.load(path, extra_files=extra)
        return json.loads(extra["rdsnet.json"])
    import onnxruntime

    return onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map


def test_file_says_what_it_is(exported, model):
    texts = dict(about(*exported))
    assert texts.pop("rdsnet_version") == rdsnet.__version__
    texts = {name: json.loads(text) for name, text in texts.items()}
    assert texts["classes"] == ["disc", "bar", "Größe"] and texts["category_ids"] == [4, 9, 11]
    assert texts["input"] == {
        "name": "image",
        "shape": [3, 64, 96],  # 60 x 96 rounded up to multiples of 32
        "dtype": "uint8",
        "channels": "BGR",
        "padding": [104, 116, 124],
    }
    assert texts["outputs"] == ["boxes", "regressed_boxes", "scores", "classes", "masks"]
    assert texts["config"]["MODEL.RDSNET.MBRM.METHOD"] == "mbrm"
    threshold = model.object_stream.score_threshold
    assert texts["config"]["MODEL.RETINANET.SCORE_THRESH_TEST"] == threshold


def test_onnx_names_and_shapes(exported):
    path, file_format = exported
    if file_format != "onnx":
        return
    import onnx
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    (image,) = session.get_inputs()
    assert (image.name, image.shape, image.type) == ("image", [3, 64, 96], "tensor(uint8)")
    assert {x.name: (x.shape, x.type) for x in session.get_outputs()} == {
        "boxes": (["objects", 4], "tensor(float)"),
        "regressed_boxes": (["objects", 4], "tensor(float)"),
        "scores": (["objects"], "tensor(float)"),
        "classes": (["objects"], "tensor(int64)"),
        "masks": (["objects", 64, 96], "tensor(bool)"),
    }
    domains = {node.domain for node in onnx.load(path).graph.node}
    assert domains <= {"", "ai.onnx"}  # standard operators alone


VARIANTS = [MBRM(0.1, 2), MBRM(readout="expectation"), EnclosingBoxes()]


class Refinements(nn.Module):
    """The last step of the graph in all its variants, for those of some objects that are found."""

    def __init__(self, model):
        super().__init__()
        self.graphs = nn.ModuleList()
        for refinement in VARIANTS:
            model = copy.copy(model)
            model._modules = {**model._modules, "mbrm": refinement}
            self.graphs.append(ImageToObjects(model))

    def forward(self, phi, psi, boxes, found):
        found = found.nonzero()[:, 0]
        arguments = phi[found], psi, boxes[found], SIZE, SIZE
        return tuple(graph.refine(*arguments)[1] for graph in self.graphs)


@pytest.mark.slow
def test_other_refinements_in_onnxruntime(model, tmp_path):
    onnxruntime = need_onnx()
    generator = torch.Generator().manual_seed(0)
    phi = 0.3 * torch.randn(40, 2, 32, generator=generator)
    psi = torch.randn(32, 16, 24, generator=generator)
    corners = torch.rand(40, 2, 2, generator=generator).sort(1).values
    boxes = (corners * torch.tensor([96.0, 64.0])).flatten(1)
    found = torch.rand(40, generator=generator) > 0.2
    with torch.no_grad(), files.quiet():
        program = torch.export.export(
            Refinements(model).eval(), (phi, psi, boxes, found), strict=False
        )
        converted = torch.onnx.export(program, dynamo=True, verbose=False)
    converted.save(tmp_path / "part.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "part.onnx"))
    names = [x.name for x in session.get_inputs()]
    for chosen in (found, found & False):
        inputs = zip(names, (phi, psi, boxes, chosen))
        outputs = session.run(None, {name: x.numpy() for name, x in inputs})
        own = boxes[chosen]
        masks = model.assemble(phi[chosen], psi, own, SIZE, SIZE)
        for refinement, refined in zip(VARIANTS, outputs):
            with torch.no_grad():
                expected = refinement(masks.column_maxima, masks.row_maxima, own)
            assert refined.shape == expected.shape
            assert (expected != own).any() or not len(own)
            assert ((torch.from_numpy(refined) - expected).abs() > 2e-3).sum() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rdsnet_R_50_FPN_1x", "rdsnet_R_101_FPN_1x"])
def test_models_of_the_paper_in_onnxruntime(name, tmp_path):
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file(f"configs/COCO-InstanceSegmentation/{name}.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    # From scratch the fixed statistics of the backbone's normalisation fit nothing.
    cfg.merge_from_list(["MODEL.RESNETS.NORM", "GN"])
    found, expected = file_and_model(untrained(cfg), random_image(200, 300), tmp_path)
    assert_same(found, expected, edges=4)
    assert len(found.scores) > 50


def test_program_of_the_guide(exported, weights, tmp_path, monkeypatch):
    """On an image of another size and shape: what it draws is where the model sees objects."""
    path, file_format = exported
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "output").mkdir()
    shutil.copy(path, tmp_path / "output")
    names: dict = {}
    if file_format == "torch":
        program = programs[1].replace("256, 512", "64, 96")
        exec(program, names)
        assert names["names"] == ["disc", "bar", "Größe"] and names["masks"].shape[1:] == SIZE
        return
    photo = random_image(100, 130, seed=3).permute(1, 2, 0).numpy()
    cv2.imwrite("photo.png", photo)
    program = programs[0].replace("photo.jpg", "photo.png").replace("score < 0.5", "score < 0.0")
    exec(program, names)
    drawn = cv2.imread("photo_objects.png")
    assert drawn.shape == photo.shape and (drawn != photo).any()
    # 100 x 130 fits into 64 x 96 as 64 x 83; the rest has the colour of the mean.
    assert (names["rows"], names["columns"]) == (64, 83)
    padding = names["image"][:, :, 83:]
    assert (padding == np.array([104, 116, 124])[:, None, None]).all()
    assert len(names["scores"]) > 0
    covered = np.zeros(photo.shape[:2], bool)
    for mask in names["masks"]:
        small = mask[:64, :83].astype(np.float32)
        covered |= cv2.resize(small, (130, 100)) > 0.5
    assert ((drawn != photo).any(2) | ~covered).mean() > 0.95


# ------------------------------------------------------------------------------- the command line


def export(*arguments, code=2):
    assert main(["export", *map(str, arguments)]) == code


@pytest.fixture
def unwritten(monkeypatch):
    """Spares the time of tracing: the file is a few bytes, and run by the graph itself."""
    written = {}

    def write(path, graph, file_format, texts):
        written.update(graph=graph, texts=texts)
        path.write_text("written")

    monkeypatch.setattr(exporting, "trace", lambda graph, image: graph)
    monkeypatch.setattr(exporting, "write", write)
    monkeypatch.setattr(
        exporting, "read", lambda *_: lambda image: Objects(*written["graph"](image))
    )
    return written


def test_options(unwritten, weights, tmp_path, capsys):
    target = tmp_path / "model.bin"
    arguments = ["--weights", weights, "--output", target, "--format", "torch"]
    export(
        *arguments, "--size", 40, 50, "--max-detections", 3, "--score-threshold", 0.01,
        "--opts", "MODEL.RDSNET.MBRM.METHOD", "none", code=0,
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "image (3, 40, 50) uint8, BGR" in said and "at most 3 objects" in said
    assert (
        "disc, bar, Größe" in said
        and "the file finds 3 of 3 objects" in said
        and str(target) in said
    )
    with torch.no_grad():
        found = Objects(*unwritten["graph"](random_image(40, 50)))
    assert torch.equal(found.boxes, found.regressed_boxes) and found.masks.shape == (3, 40, 50)
    config = json.loads(unwritten["texts"]["config"])
    assert config["TEST.DETECTIONS_PER_IMAGE"] == 3
    assert config["MODEL.RETINANET.SCORE_THRESH_TEST"] == 0.01
    assert config["MODEL.RDSNET.MBRM.METHOD"] == "none"


def test_mistakes_of_the_user_are_named(weights, tmp_path, capsys):
    target = tmp_path / "model.pt2"
    export("--weights", tmp_path / "none.pth", "--output", target)
    assert "none.pth' do not exist" in capsys.readouterr().err
    export("--weights", weights, "--output", tmp_path / "model.trt")
    assert "model.trt' ends neither in .onnx nor in .pt2" in capsys.readouterr().err
    export("--weights", weights, "--output", tmp_path, "--format", "torch")
    assert "is a folder: name a file in it" in capsys.readouterr().err
    export("--weights", weights, "--output", target, "--opts", "INPUT.MIN_SIZE_TEST", "0")
    assert "--size HEIGHT WIDTH" in capsys.readouterr().err
    export("--weights", weights, "--output", target, "--opts", "NO.SUCH", "0")
    assert "NO.SUCH" in capsys.readouterr().err
    bare = tmp_path / "bare.pth"
    torch.save({"model": {}}, bare)
    export("--weights", bare, "--output", target)
    assert "give the config that they were trained with by --config-file" in capsys.readouterr().err
    for wrong in (["--size", "0", "96"], ["--max-detections", "-1"], ["--format", "caffe2"]):
        with pytest.raises(SystemExit):
            main(["export", "--weights", weights, "--output", str(target), *wrong])
    assert os.listdir(tmp_path) == ["bare.pth"]


def test_checkpoint_with_code_is_refused(tmp_path, capsys):
    path = tmp_path / "model.pth"
    torch.save({"model": {}, "more": Path("x")}, path)
    (tmp_path / "config.yaml").write_text(tiny_config().dump())
    export("--weights", path, "--output", tmp_path / "model.pt2")
    assert "--trust-checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "model.pt2").exists()


def test_other_models_are_refused(tmp_path, capsys):
    cfg = tiny_config("MODEL.META_ARCHITECTURE", "RetinaNet")
    model = rdsnet.engine.Trainer.build_model(cfg)
    save_model(tmp_path / "model.pth", model.state_dict(), cfg)
    export("--weights", tmp_path / "model.pth", "--output", tmp_path / "model.pt2")
    assert "'RetinaNet' cannot be exported: only RDSNet" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_package_is_named_with_its_remedy(package, weights, tmp_path, capsys, monkeypatch):
    there = files.find_spec
    monkeypatch.setattr(files, "find_spec", lambda name: None if name == package else there(name))
    export("--weights", weights, "--output", tmp_path / "model.onnx")
    message = capsys.readouterr().err
    assert f"ONNX files need {package}: pip install 'rdsnet[export]'" in message


def test_what_pytorch_cannot_do_is_said(weights, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("step 3 failed") from ValueError("no such operator: x\nmore")

    pytest.importorskip("onnxscript", reason="needs rdsnet[export]")
    target = tmp_path / "model.onnx"
    monkeypatch.setattr(exporting, "trace", lambda graph, image: graph)
    monkeypatch.setattr(torch.onnx, "export", fail)
    export("--weights", weights, "--output", target)
    message = capsys.readouterr().err
    assert "cannot convert this model to ONNX (no such operator: x). torch 2.14 can" in message
    monkeypatch.undo()
    monkeypatch.setattr(torch.export, "export", fail)
    export("--weights", weights, "--output", target)
    assert "cannot trace this model (RuntimeError: step 3 failed)" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_without_onnxruntime_the_file_is_not_checked_and_that_is_said(model, monkeypatch):
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    graph = ImageToObjects(model)
    said = exporting.check_file(Path("none.onnx"), "onnx", graph, random_image(*SIZE))
    assert "not checked" in said and "onnxruntime is not installed" in said


def test_detector_without_scores_is_refused(weights, tmp_path, capsys, monkeypatch):
    def scores(self, predictions, level):
        raise NotImplementedError

    monkeypatch.setattr("rdsnet.modeling.RetinaNetStream.scores", scores)
    export("--weights", weights, "--output", tmp_path / "model.pt2")
    assert (
        "RetinaNetStream cannot be exported: it has no method scores()" in capsys.readouterr().err
    )
    assert os.listdir(tmp_path) == []


def test_detector_that_is_exported_as_another_is_refused(weights, tmp_path, capsys, monkeypatch):
    """It overrides what detection uses, and not what the graph uses."""
    monkeypatch.setattr(
        "rdsnet.modeling.RetinaNetStream.nms", lambda self, detections: detections.places.argsort()
    )
    export("--weights", weights, "--output", tmp_path / "model.pt2")
    assert "changes detect_padded() too" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_file_that_finds_something_else_is_not_kept(
    unwritten, weights, tmp_path, capsys, monkeypatch
):
    kept = tmp_path / "model.pt2"
    kept.write_text("what was there before")
    read = exporting.read
    monkeypatch.setattr(exporting, "read", lambda *file: lambda image: read(*file)(image.flip(1)))
    export("--weights", weights, "--output", kept)
    assert "so it is not kept" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["model.pt2"] and kept.read_text() == "what was there before"
