"""``rdsnet.load``: what a notebook gets is what the command line writes."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from helpers.predicting import OBJECTS, load_coco, picture
from PIL import Image
from pycocotools import mask as coco_mask

import rdsnet
from rdsnet.cli import build_parser, main
from rdsnet.data.shapes import make_shapes_dataset
from rdsnet.prediction import result as results

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "quickstart.ipynb"
NUCLEI = Path(__file__).resolve().parents[1] / "projects" / "Nuclei" / "nuclei" / "nuclei.pth"


@pytest.fixture(scope="module")
def model(trained_model):
    """In float32, where no two scores are equal."""
    return rdsnet.load(trained_model / "model_best.pth", device="cpu", precision="float32")


@pytest.fixture
def found(model):
    return model.predict(picture(), score_threshold=0)


def test_importing_the_package_imports_neither_torch_nor_detectron2():
    code = "import sys, rdsnet; print({'torch', 'detectron2', 'cv2'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert printed.strip() == "set()"
    assert "load" in rdsnet.__all__


def test_objects_are_those_of_the_command_line(model, trained_model, tmp_path):
    """Boxes, scores, classes and masks, of a file and of the same pixels as an array."""
    Image.fromarray(picture()).save(tmp_path / "a.png")
    words = ["predict", "--weights", str(trained_model / "model_best.pth"), "--format", "coco"]
    words += ["--input", str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
    assert main([*words, "--score-threshold", "0", "--precision", "float32"]) == 0
    images, expected = load_coco(tmp_path / "out")
    names = {category["id"]: category["name"] for category in images["categories"]}
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), picture()):
        found = model.predict(image, score_threshold=0)
        assert len(found) == len(expected) == OBJECTS
        for n, entry in enumerate(expected):
            x, y, width, height = entry["bbox"]
            assert found.boxes[n] == pytest.approx([x, y, x + width, y + height])
            assert found.scores[n] == pytest.approx(entry["score"])
            assert found.names[n] == names[entry["category_id"]]
            assert found.names[n] == model.class_names[found.classes[n]]
            assert (found.masks[n] == coco_mask.decode(entry["segmentation"])).all()
        assert (found.image == picture()).all()  # RGB


def test_unless_asked_it_computes_in_what_the_command_line_does(trained_model):
    words = ["predict", "--weights", "x", "--input", "y"]
    asked = build_parser().parse_args(words).precision
    model = rdsnet.load(trained_model / "model_best.pth", device="cpu")
    assert model.cfg.MODEL.RDSNET.INFERENCE.PRECISION == asked


def test_scores_are_shown_from_the_threshold_on(model, found):
    assert len(model.predict(picture())) == 0  # 0.5; the model of random weights is not sure
    middle = float(np.sort(found.scores)[::-1][2:4].mean())
    assert len(model.predict(picture(), middle)) == 3
    assert len(model.predict(picture(), score_threshold=0)) == OBJECTS  # a low one after a high one
    with pytest.raises(ValueError, match="a number from 0 to 1 or 'auto', not 'high'"):
        model.predict(picture(), "high")


def test_every_kind_of_image_is_read_as_files_are(model, tmp_path):
    grey = picture()[..., 0]
    transparent = np.dstack([picture(), np.full(grey.shape, 255, np.uint8)])
    transparent[:30, :, 3] = 0
    palette = Image.fromarray(picture()).quantize(16)
    turned = Image.fromarray(picture())
    turned.getexif()[0x0112] = 6  # to be turned by a quarter
    for image, expected in (
        (grey, np.dstack([grey] * 3)),
        (grey[..., None], np.dstack([grey] * 3)),
        (Image.fromarray(grey), np.dstack([grey] * 3)),
        (grey.astype(np.int64), np.dstack([grey] * 3)),
        (grey.astype(np.uint16) * 256, np.dstack([grey] * 3)),
        (Image.fromarray(grey.astype(np.uint16) * 256), np.dstack([grey] * 3)),
        (transparent, np.where(transparent[..., 3:] > 0, picture(), 255)),
        (Image.fromarray(transparent), np.where(transparent[..., 3:] > 0, picture(), 255)),
        (palette, np.asarray(palette.convert("RGB"))),
        (turned, np.rot90(picture(), -1)),
    ):
        assert (model.predict(image).image == expected).all()


def test_the_image_of_a_result_is_its_own(model):
    pixels = picture()
    found = model.predict(pixels)
    pixels[:] = 0
    assert found.image.any()


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((4, 9, 9, 3), np.uint8), ValueError, r"not \(4, 9, 9, 3\). Give several images"),
        (np.zeros((9, 9, 5), np.uint8), ValueError, r"\(H, W, 3\), \(H, W\) or \(H, W, 4\)"),
        (np.zeros((0, 9, 3), np.uint8), ValueError, r"not \(0, 9, 3\)"),
        (
            np.zeros((9, 9, 3)),
            ValueError,
            "float64 pixels, whose range is unknown",
        ),
        (Image.fromarray(np.zeros((9, 9), np.float32)), ValueError, "has floating-point pixels"),
        (np.full((9, 9), -1), ValueError, "negative levels"),
        ([[0, 1]], TypeError, "not a list"),
        ("nowhere.png", FileNotFoundError, "nowhere.png does not exist"),
    ],
)
def test_what_is_no_image_is_refused_in_words(model, image, error, message):
    with pytest.raises(error, match=message):
        model.predict(image)


def test_a_table_has_a_row_per_object(found):
    pytest.importorskip("pandas", reason="pandas is not installed")
    table = found.to_pandas()
    assert list(table) == ["class", "score", "x1", "y1", "x2", "y2", "area"]
    assert table["class"].tolist() == found.names
    assert (table[["x1", "y1", "x2", "y2"]].to_numpy() == found.boxes).all()
    assert table["area"].tolist() == [int(mask.sum()) for mask in found.masks]


def test_a_table_may_have_more_objects_than_a_byte_counts():
    pytest.importorskip("pandas", reason="pandas is not installed")
    masks = torch.zeros(300, 20, 20, dtype=torch.bool)
    for n in range(300):
        masks[n, n % 20, : 1 + n % 19] = True
    instances = Instances((20, 20), pred_masks=masks, scores=torch.ones(300))
    instances.pred_boxes = Boxes(torch.zeros(300, 4))
    instances.pred_classes = torch.zeros(300, dtype=torch.int64)
    table = results.Result(np.zeros((20, 20, 3), np.uint8), instances, None).to_pandas()
    assert table["area"].tolist() == masks.sum((1, 2)).tolist()


def test_tables_of_images_without_objects_fit_the_others(model, found):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table, empty = found.to_pandas(), model.predict(picture(), score_threshold=1.0).to_pandas()
    assert len(empty) == 0 and (empty.dtypes == table.dtypes).all()
    assert (pandas.concat([empty, table]).dtypes == table.dtypes).all()


def test_supervision_gets_everything_under_its_names(found, monkeypatch):
    """By a stand-in with supervision's documented arguments: it is not installed here."""
    module = SimpleNamespace(Detections=lambda **fields: fields)
    monkeypatch.setitem(sys.modules, "supervision", module)
    fields = found.to_supervision()
    assert set(fields) == {"xyxy", "mask", "confidence", "class_id", "data"}
    assert (fields["xyxy"] == found.boxes).all() and (fields["mask"] == found.masks).all()
    assert (fields["confidence"] == found.scores).all()
    assert fields["data"]["class_name"].tolist() == found.names


@pytest.mark.parametrize("package", ["pandas", "supervision"])
def test_a_package_that_is_missing_is_named_with_its_remedy(found, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)

    def missing(name):
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(results, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=f"pip install {package}$"):
        getattr(found, f"to_{package}")()


def test_a_notebook_shows_the_overlay(model, found):
    shown = found._repr_html_()
    assert 'src="data:image/jpeg;base64,' in shown and f"{OBJECTS} objects in 90 x 60" in shown
    picture_ = found.plot()
    assert picture_.mode == "RGB" and picture_.width == 640  # small images are enlarged
    plain = model.predict(picture()).plot()
    assert (np.asarray(plain) != np.asarray(picture_)).any()
    assert "disc" in repr(found) or "bar" in repr(found)
    assert "2 classes: disc, bar" in repr(model)


def test_nothing_found_is_a_result_like_others(model):
    empty = model.predict(picture(), 1.0)
    assert len(empty) == 0 and empty.boxes.shape == (0, 4) and empty.masks.shape == (0, 60, 90)
    assert empty.names == [] and "0 objects" in empty._repr_html_()


def test_names_of_classes_are_text_on_the_page(model, found):
    found = results.Result(found.image, found.instances, ["<b>", "&"])
    shown = found._repr_html_()
    assert "<b>" not in shown and "&lt;b&gt;</figcaption>" in shown


def test_export_is_that_of_the_command_line(model, monkeypatch, trained_model, tmp_path):
    asked = {}
    monkeypatch.setattr("rdsnet.api.export", lambda *words, **more: asked.update(more, words=words))
    model.export(tmp_path / "model.onnx", size=(64, 96), score_threshold=0.2)
    assert asked["words"] == (None, str(trained_model / "model_best.pth"), tmp_path / "model.onnx")
    assert asked["size"] == (64, 96) and asked["score_threshold"] == 0.2


def test_wishes_that_contradict_each_other_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="epochs or iterations"):
        model.train(("a.json", "a"), epochs=1, iterations=2)
    with pytest.raises(FileNotFoundError, match="a.json"):
        model.train(("a.json", "a"))
    with pytest.raises(FileNotFoundError, match="a.json"):
        model.train("a.json")
    with pytest.raises(ValueError, match="or a pair of it and the folder of images"):
        model.train(("a.json", "a", "b"))
    with pytest.raises(ValueError, match="INPUT.AUGMENTATION must be one of"):
        data = make_shapes_dataset(tmp_path / "shapes", num_train=4, num_val=2, size=64)
        folders = [(data[f"{split}_json"], data[f"{split}_images"]) for split in ("train", "val")]
        model.train(*folders, output=str(tmp_path / "run"), augment="wild")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_training_gives_a_model_of_the_new_classes(model, tmp_path):
    data = make_shapes_dataset(tmp_path / "shapes", num_train=4, num_val=2, size=64)
    folders = [(data[f"{split}_json"], data[f"{split}_images"]) for split in ("train", "val")]
    output = str(tmp_path / "run")
    opts = "DATALOADER.NUM_WORKERS 0 MODEL.MASK_ON True INPUT.MASK_FORMAT bitmask".split()
    trained = model.train(*folders, output=output, iterations=2, batch_size=2, opts=opts)
    content = json.loads(Path(data["train_json"]).read_text())
    assert trained.class_names == [category["name"] for category in content["categories"]]
    assert trained.weights == f"{output}/model_best.pth"
    assert len(trained.predict(picture(), 0.0)) <= trained.cfg.TEST.DETECTIONS_PER_IMAGE


def cells():
    """Code of the notebook, cell by cell."""
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.skipif(not NUCLEI.is_file(), reason="this checkout is without nuclei.pth")
def test_the_quick_start_works_cell_by_cell(tmp_path, monkeypatch):
    """The code of its cells is run in their order, in one name space, as a notebook does."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for source in cells():
        exec(compile(source, NOTEBOOK.name, "exec"), names)
    assert len(names["result"]) == 6 and (tmp_path / "overlay.png").is_file()
    assert (tmp_path / "output" / "shapes" / "report.html").is_file()


def test_the_quick_start_is_a_notebook_without_outputs():
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4 and content["cells"]
    assert not any(cell.get("outputs") for cell in content["cells"])
