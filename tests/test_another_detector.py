"""The detector of docs/another-detector.md, taken from the page: it registers, trains, detects."""

import re
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from rdsnet.data.datasets import register_coco_files, with_num_classes
from rdsnet.data.mapper import RDSNetDatasetMapper
from rdsnet.data.shapes import make_shapes_dataset
from rdsnet.export.exporting import check_graph
from rdsnet.export.graph import ImageToObjects
from rdsnet.modeling import OBJECT_STREAM_REGISTRY

PAGE = Path(__file__).resolve().parents[1] / "docs" / "another-detector.md"


@pytest.fixture
def code_blocks(tmp_path, monkeypatch):
    """The page's code; its first block is importable as square_stream while the test runs."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "square_stream.py").write_text(blocks[0])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(PAGE.parents[1])
    yield blocks
    sys.modules.pop("square_stream", None)
    OBJECT_STREAM_REGISTRY._obj_map.pop("SquareStream", None)


def test_the_detector_of_the_page_learns_and_detects(code_blocks, tmp_path):
    names: dict = {}
    exec(code_blocks[1], names)  # "Using it": imports it and makes the config
    cfg = names["cfg"]
    data = make_shapes_dataset(tmp_path / "data", num_train=2, num_val=1, size=96, seed=5)
    cfg.DATASETS.COCO_FILES = [["square_test", data["train_json"], data["train_images"]]]
    cfg.DATASETS.TRAIN = ("square_test",)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (96,), "none"
    cfg.MODEL.DEVICE = "cpu"
    register_coco_files(cfg)
    cfg = with_num_classes(cfg)
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 5

    torch.manual_seed(0)
    model = build_model(cfg)
    mapper = RDSNetDatasetMapper(cfg, is_train=True)
    batch = [mapper(x) for x in DatasetCatalog.get("square_test")]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    first = {name: loss.item() for name, loss in model(batch).items()}
    assert set(first) == {"loss_cls", "loss_box_reg", "loss_mask"}
    for _ in range(500):  # it learns: all losses come down together, however long that takes
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        if all(loss < first[name] / 2 for name, loss in losses.items()):
            break
    else:
        pytest.fail(f"losses began at {first} and have come to {losses}")
    assert model.object_stream.head.rep_pred.weight.grad.abs().sum() > 0

    model.eval()
    model.object_stream.score_threshold = 0.0  # how sure it is by now is not the point
    with torch.no_grad():
        found = model([batch[0]])[0]["instances"]
    assert len(found) > 0
    assert found.pred_masks.shape == (len(found), 96, 96)
    assert found.regressed_boxes.tensor.shape == (len(found), 4)
    with torch.no_grad():
        image = batch[0]["image"].to(torch.uint8)
        assert "the graph finds" in check_graph(ImageToObjects(model).eval(), image)
    # without any object, the losses are those of background alone
    model.train()
    batch[0]["instances"] = batch[0]["instances"][:0]
    losses = model(batch[:1])
    assert losses["loss_box_reg"] == losses["loss_mask"] == 0 and losses["loss_cls"] > 0
    sum(losses.values()).backward()
