"""Files of `rdsnet export`: what they find and what they say about themselves."""

import copy
import json
import os
import re
import shutil
from pathlib import Path

import cv2
import pytest
import torch
from detectron2.config import CfgNode
from helpers.exporting import (
    CLASSES,
    DRAWS,
    SIZE,
    assert_same,
    empty_image,
    found_by,
    need_onnx,
    onnx_file,
    random_image,
    untrained,
)
from helpers.rounding import ELEMENTARY, assert_within, gamma, random_signs
from torch import nn

import rdsnet
from rdsnet.cli import main
from rdsnet.export import files
from rdsnet.export.graph import ImageToObjects, Objects
from rdsnet.modeling import MBRM
from rdsnet.modeling.refinement import EnclosingBoxes

PAGE = Path(__file__).resolve().parents[2] / "docs" / "export.md"


@pytest.fixture(scope="module", params=["onnx", "torch"])
def exported(request, weights, tmp_path_factory):
    """(path, name of its format) of a file made by the command."""
    if request.param == "onnx":
        return Path(request.getfixturevalue("onnx_file")), request.param
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    assert main(["export", "--weights", weights, "--output", str(path)]) == 0
    return path, request.param


@pytest.fixture(scope="module")
def run(exported):
    return files.read(*exported)


@pytest.mark.parametrize("size", [SIZE, (96, 64), (65, 97), (33, 250), (160, 224), (200, 32)])
def test_one_file_finds_what_the_model_finds_in_images_of_any_size(run, model, size):
    image = random_image(*size, seed=size[0])
    expected = found_by(model, image)
    assert len(expected.scores) > 10 and len(expected.classes.unique()) > 1
    assert_same(run(image), model, image)


@pytest.mark.parametrize("output_size", [(128, 192), (61, 50), (300, 1)])
def test_results_in_another_size(run, model, output_size):
    image = random_image(*SIZE, seed=5)
    assert len(found_by(model, image, output_size).scores) > 5
    assert_same(run(image, output_size), model, image, output_size)


def test_file_on_an_image_without_objects(run, model):
    assert len(found_by(model, empty_image()).scores) == 0
    found = run(empty_image())
    assert [tuple(x.shape) for x in found] == [(0, 4), (0, 4), (0,), (0,), (0, *SIZE)]


@pytest.mark.skipif("RDSNET_DATA" not in os.environ, reason="RDSNET_DATA names no data folder")
def test_file_on_photographs(run, model):
    folder = Path(os.environ["RDSNET_DATA"]) / "tiny_coco"
    for path in sorted(folder.glob("val2017/*.jpg"))[:3]:
        photo = cv2.resize(cv2.imread(str(path)), SIZE[::-1], interpolation=cv2.INTER_AREA)
        image = torch.from_numpy(photo).permute(2, 0, 1).contiguous()
        assert len(found_by(model, image).scores) > 0
        assert_same(run(image), model, image)


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
    cfg = CfgNode.load_cfg(texts.pop("rdsnet_config"))
    assert cfg.DATASETS.CLASSES == CLASSES and cfg.MODEL.WEIGHTS == ""
    texts = {name: json.loads(text) for name, text in texts.items()}
    assert texts["classes"] == ["disc", "bar", "Größe"] and texts["category_ids"] == [4, 9, 11]
    assert texts["input"] == {
        "name": "image",
        "shape": [3, "height", "width"],
        "dtype": "uint8",
        "channels": "BGR",
        "padding": [104, 116, 124],
        "short_side": 60,
        "longest_side": 96,
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
    assert (image.name, image.type) == ("image", "tensor(uint8)")
    assert image.shape == [3, "height", "width"]
    (size,) = session.get_overridable_initializers()
    assert (size.name, size.shape, size.type) == ("output_size", [2], "tensor(int64)")
    assert {x.name: (x.shape, x.type) for x in session.get_outputs()} == {
        "boxes": (["objects", 4], "tensor(float)"),
        "regressed_boxes": (["objects", 4], "tensor(float)"),
        "scores": (["objects"], "tensor(float)"),
        "classes": (["objects"], "tensor(int64)"),
        "masks": (["objects", "output_height", "output_width"], "tensor(bool)"),
    }
    content = onnx.load(path)
    assert {node.domain for node in content.graph.node} <= {"", "ai.onnx"}  # standard operators
    assert [(x.domain, x.version) for x in content.opset_import] == [("", files.OPSET)]


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
        expected = refined_boxes(model, phi[chosen], psi, own)
        # Moved as the sums of 32 products, their interpolation and a sigmoid may be.
        moved = [x * (1 + gamma(50) * random_signs(x, generator)) for x in [psi] * DRAWS]
        draws = zip(*(refined_boxes(model, phi[chosen], x, own) for x in moved))
        for refined, base, own_draws in zip(outputs, expected, draws):
            assert (base != own).any() or not len(own)
            limits = torch.stack([(draw - base).abs() for draw in own_draws]).amax(0)
            assert_within(torch.from_numpy(refined), base, limits + gamma(ELEMENTARY) * 96)


@torch.no_grad()
def refined_boxes(model, phi, psi, boxes):
    masks = model.assemble(phi, psi, boxes, SIZE, SIZE)
    return [variant(masks.column_maxima, masks.row_maxima, boxes) for variant in VARIANTS]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rdsnet_R_50_FPN_1x", "rdsnet_R_101_FPN_1x"])
def test_models_of_the_paper_in_onnxruntime(name, tmp_path):
    cfg = rdsnet.get_cfg()
    cfg.merge_from_file(f"configs/COCO-InstanceSegmentation/{name}.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    # From scratch the fixed statistics of the backbone's normalisation fit nothing.
    cfg.merge_from_list(["MODEL.RESNETS.NORM", "GN"])
    model, image = untrained(cfg), random_image(200, 300)
    run = onnx_file(model, image, tmp_path)
    assert_same(run(image), model, image)
    assert len(Objects(*run(image)).scores) > 50
    other = random_image(330, 180)
    assert_same(run(other, (400, 200)), model, other, (400, 200))


def test_program_of_the_guide(exported, weights, tmp_path, monkeypatch):
    """On an image of another size and shape: what it draws is where the model sees objects."""
    path, file_format = exported
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "output").mkdir()
    shutil.copy(path, tmp_path / "output")
    names: dict = {}
    if file_format == "torch":
        (program,) = (text for text in programs if "torch.export.load" in text)
        exec(program.replace("256, 512", "64, 96"), names)
        assert names["names"] == ["disc", "bar", "Größe"] and names["masks"].shape[1:] == SIZE
        return
    photo = random_image(100, 130, seed=3).permute(1, 2, 0).numpy()
    cv2.imwrite("photo.png", photo)
    (program,) = (text for text in programs if "imread" in text)
    program = program.replace("photo.jpg", "photo.png").replace("score < 0.5", "score < 0.0")
    exec(program, names)
    drawn = cv2.imread("photo_objects.png")
    assert drawn.shape == photo.shape and (drawn != photo).any()
    # 100 x 130, the short side to 60.
    assert names["image"].shape == (3, 60, 78)
    assert len(names["scores"]) > 0 and names["masks"].shape[1:] == (100, 130)
    covered = names["masks"].any(0)
    assert ((drawn != photo).any(2) | ~covered).mean() > 0.95
