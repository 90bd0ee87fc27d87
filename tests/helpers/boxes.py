"""A trained model as a training leaves it, and an installed package that brings one."""

import json
import sys
from importlib.metadata import EntryPoint

import pytest
import torch

from rdsnet.checkpoint import load_config, load_model, shipped
from rdsnet.checkpoint.description import save_model
from rdsnet.checkpoint.packing import Card, pack

CARD = Card("discs and bars in noise", "CC0 1.0", "noise", "other noise", {"box AP": 12.34})
CLASSES = [[4, "disc"], [9, "bar"]]


@pytest.fixture(scope="session")
def trained_model(model_files, tmp_path_factory):
    """Output folder with ``model_best.pth``: the model of ``model_files`` with its description.

    Its weights are random but for MBRM's kernel and the statistics, which are as a fit leaves them.
    """
    folder = tmp_path_factory.mktemp("trained")
    cfg = load_config(model_files["config"], ["MODEL.WEIGHTS", model_files["weights"]])
    model = load_model(cfg)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        model.mbrm.weight += 0.1 * torch.rand(model.mbrm.weight.shape, generator=generator)
    cfg.DATASETS.CLASSES = CLASSES
    cfg.MODEL.RDSNET.MASK_THRESHOLD = 0.31
    cfg.OUTPUT_DIR = str(folder)
    save_model(folder / "model_best.pth", model.state_dict(), cfg, best={"value": 1.0})
    return folder


@pytest.fixture
def box(trained_model, tmp_path, monkeypatch):
    """Install a package with the model "shapes_in_noise"; returns the path of its file.

    A second one, "lost", has no file.
    """
    folder = tmp_path / "site" / "brings_models"
    for name in ("shapes_in_noise", "lost"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise RuntimeError('there is nothing to run')")
    (folder / "__init__.py").write_text("")
    path = folder / "shapes_in_noise" / "shapes_in_noise.pth"
    pack(trained_model, path, CARD)
    (path.parent / "model_card.md").write_text("# Shapes in noise\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    entries = [
        EntryPoint(name, f"brings_models.{name}", shipped.GROUP)
        for name in ("shapes_in_noise", "lost")
    ]
    monkeypatch.setattr(shipped, "entry_points", lambda group: entries)
    yield path
    sys.modules.pop("brings_models", None)


def data_words(tmp_path, photos):
    """Config options for the photographs as a data set, with one object."""
    image = {"id": 1, "file_name": "a.png", "height": 60, "width": 90}
    corners = [10, 10, 40, 10, 40, 40, 10, 40]
    annotation = {"id": 1, "image_id": 1, "category_id": 4, "bbox": [10, 10, 30, 30]}
    annotation |= {"segmentation": [corners], "area": 900, "iscrowd": 0}
    categories = [{"id": id_, "name": name} for id_, name in CLASSES]
    content = {"images": [image], "annotations": [annotation], "categories": categories}
    (tmp_path / "data.json").write_text(json.dumps(content))
    name = f"of_{tmp_path.name}"
    files = repr([[name, str(tmp_path / "data.json"), str(photos)]])
    words = ["DATASETS.COCO_FILES", files, "DATASETS.TRAIN", f"('{name}',)"]
    words += ["DATASETS.TEST", f"('{name}',)", "DATALOADER.NUM_WORKERS", "0"]
    return [*words, "OUTPUT_DIR", str(tmp_path / "output")]
